//! For any sequence of edits and scans, the declared objects finally match the files.

use std::collections::{BTreeMap, BTreeSet};

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;

const FILES: [&str; 3] = ["a.yaml", "b.yaml", "team/c.yaml"];
const NAMES: [&str; 4] = ["p", "q", "r", "s"];

#[derive(Clone, Debug)]
enum Step {
    /// Writes a file with these names, each with a command of this number.
    Write(usize, Vec<usize>, u8),
    Remove(usize),
    Rename(usize, usize),
    Scan {
        completed: bool,
        settled: bool,
    },
    Restart,
}

fn step() -> impl Strategy<Value = Step> {
    let file = 0..FILES.len();
    prop_oneof![
        4 => (file.clone(), vec(0..NAMES.len(), 0..3), 0..3_u8)
            .prop_map(|(file, names, number)| Step::Write(file, names, number)),
        1 => file.clone().prop_map(Step::Remove),
        1 => (file.clone(), file).prop_map(|(from, to)| Step::Rename(from, to)),
        4 => (any::<bool>(), any::<bool>()).prop_map(|(completed, settled)| Step::Scan { completed, settled }),
        1 => Just(Step::Restart),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_edit_sequence_ends_in_the_state_of_the_files(steps in vec(step(), 1..25)) {
        let mut fixture = ScanFixture::new(&[("other.yaml", "# keeps the tree from being empty\n")]);
        let mut files: BTreeMap<usize, (Vec<usize>, u8)> = BTreeMap::new();
        for step in &steps {
            match step {
                Step::Write(file, names, number) => {
                    let text: String = names.iter().map(|name| server(NAMES[*name], &format!("c{number}"))).collect();
                    fixture.write(FILES[*file], &text);
                    files.insert(*file, (names.clone(), *number));
                }
                Step::Remove(file) => {
                    if files.remove(file).is_some() {
                        fixture.remove(FILES[*file]);
                    }
                }
                Step::Rename(from, to) => {
                    if from != to && let Some(content) = files.remove(from) {
                        fs::create_dir_all(fixture.path(FILES[*to]).parent().unwrap()).unwrap();
                        fs::rename(fixture.path(FILES[*from]), fixture.path(FILES[*to])).unwrap();
                        files.insert(*to, content);
                    }
                }
                Step::Scan { completed, settled } => {
                    let before = fixture.uids();
                    fixture.scan(if *completed { &FILES } else { &[] }, *settled);
                    let after = fixture.uids();
                    prop_assert!(*settled || before.is_subset(&after), "only a settled scan removes objects");
                }
                Step::Restart => fixture.restart(),
            }
        }
        fixture.scan_until_settled();
        fixture.scan_until_settled();

        let mut declared: BTreeMap<&str, BTreeSet<String>> = BTreeMap::new();
        for (names, number) in files.values() {
            for name in names {
                declared.entry(NAMES[*name]).or_default().insert(format!("c{number}"));
            }
        }
        let desired = Arc::clone(&fixture.scanner.desired);
        prop_assert!(desired.source.synced);
        let found: Vec<_> = desired.servers.keys().map(|key| key.name.to_string()).collect();
        prop_assert_eq!(found, declared.keys().map(ToString::to_string).collect::<Vec<_>>());
        for server in desired.servers.values() {
            let command = server.spec.as_ref().unwrap().stdio.as_ref().unwrap().command.clone();
            prop_assert!(declared[&*server.meta.key.name].contains(&command), "{command}");
            prop_assert_eq!(&server.rejected, &None);
        }
        let duplicates: usize = files.values().map(|(names, _)| names.len()).sum::<usize>() - declared.len();
        prop_assert_eq!(desired.source.problems.len(), duplicates);

        // A restart restores everything unchanged.
        let uids = fixture.uids();
        fixture.restart();
        fixture.scan(&[], false);
        prop_assert!(fixture.scanner.desired.source.synced);
        prop_assert_eq!(fixture.uids(), uids);
    }
}

impl ScanFixture {
    fn uids(&self) -> BTreeSet<Arc<str>> {
        self.scanner.desired.servers.values().map(|server| Arc::clone(&server.meta.uid)).collect()
    }
}
