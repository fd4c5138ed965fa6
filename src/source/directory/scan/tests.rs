mod env_files_and_ignore_rules;
mod links_git_and_secrets;
mod random_edits;
mod skills;

use std::fs;
use std::os::unix::fs::symlink;
use std::time::Duration;

use jiff::SignedDuration;
use tempfile::TempDir;

use super::*;
use crate::source::directory::testing::new_scanner;

/// A directory with a scanner that uses a clock of its own.
struct ScanFixture {
    folder: TempDir,
    scanner: Scanner,
    now: Instant,
    wall_clock: Timestamp,
}

fn server(name: &str, command: &str) -> String {
    format!(
        "---\napiVersion: evenkeel.dev/v1alpha1\nkind: McpServer\nmetadata: {{ name: {name} }}\n\
         spec: {{ stdio: {{ command: {command} }} }}\n"
    )
}

impl ScanFixture {
    fn new(files: &[(&str, &str)]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("root")).unwrap();
        let now = Instant::now();
        let fixture =
            Self { scanner: new_scanner(&folder, now, false), folder, now, wall_clock: Timestamp::now() };
        for (name, text) in files {
            fixture.write(name, text);
        }
        fixture
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join("root").join(name)
    }

    fn write(&self, name: &str, text: &str) {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    fn remove(&self, name: &str) {
        fs::remove_file(self.path(name)).unwrap();
    }

    fn scan(&mut self, completed: &[&str], settled: bool) -> Vec<String> {
        self.now += Duration::from_millis(250);
        self.wall_clock += SignedDuration::from_millis(250);
        let root = self.path("").canonicalize().unwrap_or_default();
        let completed = completed.iter().map(|name| root.join(name)).collect();
        self.scanner.scan(&completed, (self.now, self.wall_clock), settled);
        self.scanner.save_records();
        self.describe_servers()
    }

    /// Scans as after a first event, and again as after the quiet period.
    fn scan_until_settled(&mut self) -> Vec<String> {
        self.scan(&[], false);
        self.scan(&[], true)
    }

    fn restart(&mut self) {
        self.scanner = new_scanner(&self.folder, self.now, false);
    }

    /// Returns each server as `name/generation command`, with the reason it is rejected.
    fn describe_servers(&self) -> Vec<String> {
        let desired = &self.scanner.desired;
        if !desired.source.synced {
            return vec!["not synced".to_owned()];
        }
        let describe = desired.servers.values().map(|server| {
            let spec = server.spec.as_ref();
            let command = spec.map_or("-", |spec| spec.stdio.as_ref().unwrap().command.as_str());
            let refused = server.rejected.as_ref().map(|problem| format!(" {}", problem.reason));
            format!(
                "{}/{} {command}{}",
                server.meta.key.name,
                server.meta.generation,
                refused.unwrap_or_default()
            )
        });
        describe.collect()
    }

    fn faults(&self) -> Vec<String> {
        let faults = self.scanner.desired.source.problems.iter();
        faults.map(|fault| fault.problem.to_string()).collect()
    }

    fn uid(&self, name: &str) -> Arc<str> {
        let servers = self.scanner.desired.servers.values();
        let server = servers.into_iter().find(|server| &*server.meta.key.name == name);
        Arc::clone(&server.unwrap().meta.uid)
    }
}

#[test]
fn first_scan_applies_every_declaration() {
    let mut fixture = ScanFixture::new(&[
        ("a.yaml", &server("a", "x")),
        ("team/b.yml", &server("b", "x")),
        (".hidden.yaml", &server("c", "x")),
        (".git/d.yaml", &server("d", "x")),
        ("notes.txt", &server("e", "x")),
        ("f.yaml", "apiVersion: v1\nkind: Secret\n"),
    ]);
    assert_eq!(fixture.scan(&[], false), ["a/1 x", "b/1 x"]);
    assert_eq!(fixture.scanner.desired.source.foreign_documents, 1);
    assert_eq!(fixture.faults(), [""; 0]);
}

#[test]
fn new_files_apply_at_once_and_changes_after_two_equal_scans() {
    let mut fixture = ScanFixture::new(&[("a.yaml", &server("a", "x"))]);
    fixture.scan_until_settled();

    fixture.write("b.yaml", &server("b", "x"));
    fixture.write("c.yaml", &server("c", "x"));
    fixture.write("a.yaml", &(server("a", "w") + &server("d", "x")));
    assert_eq!(
        fixture.scan(&["b.yaml", "a.yaml"], false),
        ["a/1 x", "b/1 x", "d/1 x"],
        "c may be incomplete"
    );
    fixture.write("c.yaml", &server("c", "w"));
    assert_eq!(fixture.scan(&[], true), ["a/2 w", "b/1 x", "d/1 x"], "c changed after the last scan");
    assert_eq!(fixture.scan(&[], false), ["a/2 w", "b/1 x", "d/1 x"], "the tree is not quiet");
    assert_eq!(fixture.scan(&[], true), ["a/2 w", "b/1 x", "c/1 w", "d/1 x"]);

    fixture.remove("b.yaml");
    assert_eq!(fixture.scan(&[], true).len(), 4, "one scan is not enough");
    fixture.write("b.yaml", &server("b", "x"));
    let before = fixture.uid("b");
    assert_eq!(fixture.scan(&[], true).len(), 4);
    assert_eq!(fixture.uid("b"), before, "it was only replaced");
    fixture.remove("b.yaml");
    assert_eq!(fixture.scan_until_settled(), ["a/2 w", "c/1 w", "d/1 x"]);
}

#[test]
fn objects_that_applied_at_once_are_removed_normally() {
    let mut fixture = ScanFixture::new(&[("a.yaml", &server("a", "x"))]);
    fixture.scan_until_settled();
    fixture.write("b.yaml", &server("b", "x"));
    fixture.write("a.yaml", &(server("a", "x") + &server("c", "x")));
    assert_eq!(fixture.scan(&["a.yaml", "b.yaml"], false), ["a/1 x", "b/1 x", "c/1 x"]);
    fixture.remove("b.yaml");
    fixture.write("a.yaml", &server("a", "x"));
    assert_eq!(fixture.scan_until_settled(), ["a/1 x"]);
    assert_eq!(fixture.scan(&[], false), ["a/1 x"]);
}

#[test]
fn unchanged_tree_keeps_desired_and_is_not_read() {
    let files: Vec<_> = (0..300).map(|n| (format!("f{n}.yaml"), server(&format!("s{n}"), "x"))).collect();
    let files: Vec<_> = files.iter().map(|(name, text)| (name.as_str(), text.as_str())).collect();
    let mut fixture = ScanFixture::new(&files);
    fixture.scan_until_settled();
    fixture.wall_clock += SignedDuration::from_secs(10);
    fixture.scan_until_settled();
    let before = Arc::clone(&fixture.scanner.desired);
    let bytes_read = || {
        let text = fs::read_to_string("/proc/thread-self/io").unwrap_or_default();
        let line = text.lines().find_map(|line| line.strip_prefix("rchar: "));
        line.map_or(0, |number| number.parse::<u64>().unwrap())
    };
    let start = bytes_read();
    fixture.scan_until_settled();
    let bytes = bytes_read() - start;
    assert!(Arc::ptr_eq(&before, &fixture.scanner.desired));
    assert!(bytes < 4_096, "{bytes} bytes were read, including those of this count");

    // The stamp and the inode differ, but the content decides.
    fixture.remove("f0.yaml");
    fixture.write("f0.yaml", &server("s0", "x"));
    fixture.scan_until_settled();
    assert!(Arc::ptr_eq(&before, &fixture.scanner.desired));

    fixture.write("f0.yaml", &server("s0", "w"));
    fixture.scan_until_settled();
    let after = &fixture.scanner.desired;
    let same =
        before.servers.iter().filter(|(key, server)| Arc::ptr_eq(server, &after.servers[*key])).count();
    assert_eq!(same, 299);
}

#[test]
fn last_good_declaration_survives_errors_and_restarts() {
    let mut fixture = ScanFixture::new(&[("a.yaml", &server("a", "x")), ("b.yaml", &server("b", "x"))]);
    fixture.scan_until_settled();
    let uid = fixture.uid("a");
    fixture.write("a.yaml", &server("a", "w"));
    assert_eq!(fixture.scan_until_settled(), ["a/2 w", "b/1 x"]);

    fixture.write("a.yaml", "apiVersion: [");
    assert_eq!(fixture.scan_until_settled(), ["a/2 w ParseError", "b/1 x"]);
    assert_eq!(fixture.faults().len(), 1);
    fixture.restart();
    assert_eq!(fixture.scan(&[], false), ["a/2 w ParseError", "b/1 x"], "restored unchanged");
    fixture.write("b.yaml", &server("b", "z"));
    fixture.restart();
    assert_eq!(fixture.scan(&[], false), ["not synced"], "the old b must not be started");
    assert_eq!(fixture.scan(&[], true), ["a/2 w ParseError", "b/2 z"]);
    fixture.write("a.yaml", &server("a", "z"));
    fixture.remove("b.yaml");
    fixture.restart();
    assert_eq!(fixture.scan_until_settled(), ["a/3 z"]);
    assert_eq!(fixture.uid("a"), uid);
    fixture.write("b.yaml", &server("b", "z"));
    assert_eq!(fixture.scan_until_settled(), ["a/3 z", "b/1 z"], "a removed object returns as a new one");
    let records = fixture.scanner.state_dir.list("declarations").unwrap();
    assert_eq!(records.len(), 2);
}

#[test]
fn only_changed_records_are_written() {
    let mut fixture = ScanFixture::new(&[("a.yaml", &server("a", "x")), ("b.yaml", &server("b", "x"))]);
    fixture.scan_until_settled();
    let inodes = |fixture: &ScanFixture| {
        let names = fixture.scanner.state_dir.list("declarations").unwrap();
        let path = |name: &String| fixture.scanner.state_dir.path().join(name);
        let inode = |name: &String| std::os::unix::fs::MetadataExt::ino(&fs::metadata(path(name)).unwrap());
        names.iter().map(inode).collect::<Vec<_>>()
    };
    let before = inodes(&fixture);
    fixture.restart();
    fixture.scan_until_settled();
    assert_eq!(inodes(&fixture), before, "a restart writes nothing");
    fixture.write("a.yaml", &server("a", "w"));
    fixture.scan_until_settled();
    let after = inodes(&fixture);
    assert_eq!(before.iter().zip(&after).filter(|(one, other)| one != other).count(), 1);
    for name in fixture.scanner.state_dir.list("declarations").unwrap() {
        fixture.scanner.state_dir.write(&name, b"damaged").unwrap();
    }
    fixture.restart();
    assert_eq!(fixture.scan_until_settled(), ["a/1 w", "b/1 x"], "damaged records lose only identities");
}

#[test]
fn removal_of_the_last_files_is_held() {
    let assert_held = |fixture: &mut ScanFixture| {
        assert_eq!(fixture.scan_until_settled(), ["a/1 x"]);
        assert_eq!(fixture.scan_until_settled(), ["a/1 x"]);
        let faults = fixture.faults();
        assert!(faults.len() == 1 && faults[0].starts_with("RemovalHeld: "), "{faults:?}");
    };
    let start = || {
        let mut fixture = ScanFixture::new(&[("a.yaml", &server("a", "x"))]);
        fixture.scan_until_settled();
        fixture
    };

    let mut fixture = start();
    fixture.remove("a.yaml");
    assert_held(&mut fixture);
    fixture.restart();
    assert_held(&mut fixture);
    fixture.write("empty.yaml", "# nothing here\n");
    assert_eq!(fixture.scan_until_settled(), [""; 0], "a file without objects confirms the removal");
    assert_eq!(fixture.faults(), [""; 0]);

    let mut fixture = start();
    fixture.write("a.yaml", "");
    assert_eq!(fixture.scan_until_settled(), [""; 0], "an empty file confirms it too");

    let mut fixture = start();
    fixture.remove("a.yaml");
    assert_held(&mut fixture);
    fixture.write("a.yaml", &server("a", "x"));
    assert_eq!(fixture.scan_until_settled(), ["a/1 x"]);
    assert_eq!(fixture.faults(), [""; 0]);

    let mut fixture = start();
    fixture.remove("a.yaml");
    fixture.scanner = new_scanner(&fixture.folder, fixture.now, true);
    assert_eq!(fixture.scan_until_settled(), [""; 0], "--prune-empty");

    let commit = |fixture: &ScanFixture, digit: &str| fixture.write(".git/HEAD", &digit.repeat(40));
    let mut fixture = ScanFixture::new(&[("a.yaml", &server("a", "x"))]);
    commit(&fixture, "1");
    fixture.scan_until_settled();
    assert_eq!(*fixture.scanner.desired.source.revision, *"1".repeat(40));
    fixture.remove("a.yaml");
    assert_held(&mut fixture);
    commit(&fixture, "2");
    assert_eq!(fixture.scan_until_settled(), [""; 0], "a commit without the files");
}

#[test]
fn unreadable_root_changes_nothing() {
    let mut fixture = ScanFixture::new(&[("a.yaml", &server("a", "x"))]);
    let (root, moved_root) = (fixture.folder.path().join("root"), fixture.folder.path().join("aside"));
    fs::rename(&root, &moved_root).unwrap();
    assert_eq!(fixture.scan_until_settled(), ["not synced"]);
    assert!(fixture.faults()[0].contains("not found"), "{:?}", fixture.faults());
    fs::rename(&moved_root, &root).unwrap();
    assert_eq!(fixture.scan_until_settled(), ["a/1 x"]);
    fs::rename(&root, &moved_root).unwrap();
    assert_eq!(fixture.scan_until_settled(), ["a/1 x"]);
    assert!(fixture.faults()[0].starts_with("SourceUnavailable"), "{:?}", fixture.faults());
    fixture.restart();
    assert_eq!(fixture.scan_until_settled(), ["a/1 x"]);
    fs::write(&root, "a file").unwrap();
    assert_eq!(fixture.scan_until_settled(), ["a/1 x"]);
    assert!(fixture.faults()[0].contains("cannot be read"), "{:?}", fixture.faults());
}

#[test]
fn root_that_returns_in_pieces_holds_removals() {
    let names = ["a", "b", "c"];
    let files = names.map(|name| (format!("{name}.yaml"), server(name, "x")));
    let mut fixture = ScanFixture::new(&files.each_ref().map(|(name, text)| (name.as_str(), text.as_str())));
    let all = ["a/1 x", "b/1 x", "c/1 x"];
    assert_eq!(fixture.scan_until_settled(), all);
    let wait = |fixture: &mut ScanFixture, seconds: u64| {
        fixture.now += Duration::from_secs(seconds);
        fixture.scan_until_settled()
    };
    fs::remove_dir_all(fixture.path("")).unwrap();
    assert_eq!(fixture.scan_until_settled(), all);
    fs::create_dir(fixture.path("")).unwrap();
    assert_eq!(wait(&mut fixture, 60), all, "created again and empty");
    fixture.write("new.yaml", &server("new", "x"));
    assert_eq!(fixture.scan_until_settled(), ["a/1 x", "b/1 x", "c/1 x", "new/1 x"]);
    assert!(fixture.faults()[0].starts_with("RemovalHeld: "), "{:?}", fixture.faults());
    assert_eq!(wait(&mut fixture, 8).len(), 4);
    fixture.write("b.yaml", &files[1].1);
    assert_eq!(wait(&mut fixture, 3).len(), 4, "another file has returned");
    assert_eq!(wait(&mut fixture, 8).len(), 4);
    assert_eq!(wait(&mut fixture, 3), ["b/1 x", "new/1 x"], "no more files returned");
    assert_eq!(fixture.faults(), [""; 0]);
    fixture.remove("new.yaml");
    assert_eq!(fixture.scan_until_settled(), ["b/1 x"], "later removals are applied at once");

    // A person confirms the removal.
    let (root, moved_root) = (fixture.folder.path().join("root"), fixture.folder.path().join("aside"));
    fs::rename(&root, &moved_root).unwrap();
    fixture.scan_until_settled();
    fixture.write("new.yaml", &server("new", "x"));
    assert_eq!(fixture.scan_until_settled(), ["b/1 x", "new/1 x"]);
    fixture.scanner.confirm_removal();
    assert_eq!(fixture.scan_until_settled(), ["new/1 x"]);
}

#[test]
fn unrecognized_file_does_not_confirm_a_removal() {
    for (text, is_held) in [
        ("apiVersion: evenkeel.dev/v1beta1\nkind: McpServerList\nitems: []\n", true),
        ("hello\n", true),
        ("services: {}\n", true),
        ("]", true),
        ("# nothing\n", false),
        ("apiVersion: v1\nkind: ConfigMap\n", false),
        ("apiVersion: v1\nkind: List\nitems: []\n", false),
    ] {
        let mut fixture = ScanFixture::new(&[("a.yaml", &server("a", "x")), ("b.yaml", &server("b", "x"))]);
        assert_eq!(fixture.scan_until_settled(), ["a/1 x", "b/1 x"]);
        fixture.write("all.yaml", text);
        fixture.remove("a.yaml");
        fixture.remove("b.yaml");
        let expected: &[&str] = if is_held { &["a/1 x", "b/1 x"] } else { &[] };
        assert_eq!(fixture.scan_until_settled(), expected, "{text}");
        assert_eq!(
            fixture.faults().iter().any(|fault| fault.starts_with("RemovalHeld: ")),
            is_held,
            "{text}"
        );
        fixture.restart();
        assert_eq!(fixture.scan_until_settled(), expected, "{text}");
        fixture.write("empty.yaml", "# intended\n");
        assert_eq!(fixture.scan_until_settled(), [""; 0], "{text}");
    }
    // If an object is still in force, other removals are applied normally.
    let mut fixture = ScanFixture::new(&[("a.yaml", &server("a", "x")), ("b.yaml", &server("b", "x"))]);
    fixture.scan_until_settled();
    fixture.write("a.yaml", "hello\n");
    fixture.remove("b.yaml");
    assert_eq!(fixture.scan_until_settled(), ["a/1 x ParseError"]);
}
