mod links_git_and_secrets;
mod random_edits;
mod skills;

use std::fs;
use std::os::unix::fs::symlink;
use std::time::Duration;

use jiff::SignedDuration;
use tempfile::TempDir;

use super::*;
use crate::resource::DigestKey;
use crate::source::directory::options::Args;
use crate::source::{Environment, SourceMetrics, StdioPolicy};

/// A tree, and looks at it by a clock of its own.
struct ScanFixture {
    folder: TempDir,
    scanner: Scanner,
    now: Instant,
    wall_clock: Timestamp,
}

fn new_scanner(folder: &TempDir, now: Instant, prune_empty: bool) -> Scanner {
    let args = Args {
        root: folder.path().join("root"),
        secrets_dir: folder.path().join("secrets"),
        environment: Environment::default(),
        prune_empty,
        poll_interval: Some(Duration::from_secs(1)),
        policy: StdioPolicy::allow_all(),
    };
    let options = Options { args, digest_key: DigestKey::new(b"k"), metrics: SourceMetrics::default() };
    let state = StateDir::open(&folder.path().join("state"), &options.args.root).unwrap();
    Scanner::new(options, Arc::new(state), Arc::default(), now)
}

fn server(name: &str, command: &str) -> String {
    format!(
        "---\napiVersion: evenkeel.dev/v1alpha1\nkind: McpServer\nmetadata: {{ name: {name} }}\nspec: {{ stdio: {{ command: {command} }} }}\n"
    )
}

impl ScanFixture {
    fn new(files: &[(&str, &str)]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("root")).unwrap();
        let now = Instant::now();
        let desk =
            Self { scanner: new_scanner(&folder, now, false), folder, now, wall_clock: Timestamp::now() };
        for (name, text) in files {
            desk.write(name, text);
        }
        desk
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

    fn scan(&mut self, landed: &[&str], settled: bool) -> Vec<String> {
        self.now += Duration::from_millis(250);
        self.wall_clock += SignedDuration::from_millis(250);
        let root = self.path("").canonicalize().unwrap_or_default();
        let landed = landed.iter().map(|name| root.join(name)).collect();
        self.scanner.scan(&landed, (self.now, self.wall_clock), settled);
        self.scanner.save_records();
        self.describe_servers()
    }

    /// Looks when a first event has come, and when it has been quiet.
    fn scan_until_settled(&mut self) -> Vec<String> {
        self.scan(&[], false);
        self.scan(&[], true)
    }

    fn restart(&mut self) {
        self.scanner = new_scanner(&self.folder, self.now, false);
    }

    /// `name/generation command`, with what is refused.
    fn describe_servers(&self) -> Vec<String> {
        let desired = &self.scanner.desired;
        if !desired.source.synced {
            return vec!["not synced".to_owned()];
        }
        let told = desired.servers.values().map(|server| {
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
        told.collect()
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
    let mut desk = ScanFixture::new(&[
        ("a.yaml", &server("a", "x")),
        ("team/b.yml", &server("b", "x")),
        (".hidden.yaml", &server("c", "x")),
        (".git/d.yaml", &server("d", "x")),
        ("notes.txt", &server("e", "x")),
        ("f.yaml", "apiVersion: v1\nkind: Secret\n"),
    ]);
    assert_eq!(desk.scan(&[], false), ["a/1 x", "b/1 x"]);
    assert_eq!(desk.scanner.desired.source.foreign_documents, 1);
    assert_eq!(desk.faults(), [""; 0]);
}

#[test]
fn new_files_apply_at_once_and_changes_after_two_equal_scans() {
    let mut desk = ScanFixture::new(&[("a.yaml", &server("a", "x"))]);
    desk.scan_until_settled();

    desk.write("b.yaml", &server("b", "x"));
    desk.write("c.yaml", &server("c", "x"));
    desk.write("a.yaml", &(server("a", "w") + &server("d", "x")));
    assert_eq!(desk.scan(&["b.yaml", "a.yaml"], false), ["a/1 x", "b/1 x", "d/1 x"], "c may not be complete");
    desk.write("c.yaml", &server("c", "w"));
    assert_eq!(desk.scan(&[], true), ["a/2 w", "b/1 x", "d/1 x"], "c has changed since");
    assert_eq!(desk.scan(&[], false), ["a/2 w", "b/1 x", "d/1 x"], "not quiet");
    assert_eq!(desk.scan(&[], true), ["a/2 w", "b/1 x", "c/1 w", "d/1 x"]);

    desk.remove("b.yaml");
    assert_eq!(desk.scan(&[], true).len(), 4, "one look is not enough");
    desk.write("b.yaml", &server("b", "x"));
    let before = desk.uid("b");
    assert_eq!(desk.scan(&[], true).len(), 4);
    assert_eq!(desk.uid("b"), before, "it was only being replaced");
    desk.remove("b.yaml");
    assert_eq!(desk.scan_until_settled(), ["a/2 w", "c/1 w", "d/1 x"]);
}

#[test]
fn objects_that_applied_at_once_are_removed_normally() {
    let mut desk = ScanFixture::new(&[("a.yaml", &server("a", "x"))]);
    desk.scan_until_settled();
    desk.write("b.yaml", &server("b", "x"));
    desk.write("a.yaml", &(server("a", "x") + &server("c", "x")));
    assert_eq!(desk.scan(&["a.yaml", "b.yaml"], false), ["a/1 x", "b/1 x", "c/1 x"]);
    desk.remove("b.yaml");
    desk.write("a.yaml", &server("a", "x"));
    assert_eq!(desk.scan_until_settled(), ["a/1 x"]);
    assert_eq!(desk.scan(&[], false), ["a/1 x"]);
}

#[test]
fn unchanged_tree_keeps_desired_and_is_not_read() {
    let files: Vec<_> = (0..300).map(|n| (format!("f{n}.yaml"), server(&format!("s{n}"), "x"))).collect();
    let files: Vec<_> = files.iter().map(|(name, text)| (name.as_str(), text.as_str())).collect();
    let mut desk = ScanFixture::new(&files);
    desk.scan_until_settled();
    desk.wall_clock += SignedDuration::from_secs(10);
    desk.scan_until_settled();
    let before = Arc::clone(&desk.scanner.desired);
    let bytes_read = || {
        let text = fs::read_to_string("/proc/thread-self/io").unwrap_or_default();
        let line = text.lines().find_map(|line| line.strip_prefix("rchar: "));
        line.map_or(0, |number| number.parse::<u64>().unwrap())
    };
    let start = bytes_read();
    desk.scan_until_settled();
    let nothing = bytes_read() - start;
    assert!(Arc::ptr_eq(&before, &desk.scanner.desired));
    assert!(nothing < 4_096, "{nothing} bytes were read, in which this count is");

    // Another time, another inode: the content decides.
    desk.remove("f0.yaml");
    desk.write("f0.yaml", &server("s0", "x"));
    desk.scan_until_settled();
    assert!(Arc::ptr_eq(&before, &desk.scanner.desired));

    desk.write("f0.yaml", &server("s0", "w"));
    desk.scan_until_settled();
    let after = &desk.scanner.desired;
    let same =
        before.servers.iter().filter(|(key, server)| Arc::ptr_eq(server, &after.servers[*key])).count();
    assert_eq!(same, 299);
}

#[test]
fn last_good_declaration_survives_errors_and_restarts() {
    let mut desk = ScanFixture::new(&[("a.yaml", &server("a", "x")), ("b.yaml", &server("b", "x"))]);
    desk.scan_until_settled();
    let uid = desk.uid("a");
    desk.write("a.yaml", &server("a", "w"));
    assert_eq!(desk.scan_until_settled(), ["a/2 w", "b/1 x"]);

    desk.write("a.yaml", "apiVersion: [");
    assert_eq!(desk.scan_until_settled(), ["a/2 w ParseError", "b/1 x"]);
    assert_eq!(desk.faults().len(), 1);
    desk.restart();
    assert_eq!(desk.scan(&[], false), ["a/2 w ParseError", "b/1 x"], "known as it is");
    desk.write("b.yaml", &server("b", "z"));
    desk.restart();
    assert_eq!(desk.scan(&[], false), ["not synced"], "the old b must not be started");
    assert_eq!(desk.scan(&[], true), ["a/2 w ParseError", "b/2 z"]);
    desk.write("a.yaml", &server("a", "z"));
    desk.remove("b.yaml");
    desk.restart();
    assert_eq!(desk.scan_until_settled(), ["a/3 z"]);
    assert_eq!(desk.uid("a"), uid);
    desk.write("b.yaml", &server("b", "z"));
    assert_eq!(desk.scan_until_settled(), ["a/3 z", "b/1 z"], "what was gone comes again as another");
    let records = desk.scanner.state_dir.list("declarations").unwrap();
    assert_eq!(records.len(), 2);
}

#[test]
fn only_changed_records_are_written() {
    let mut desk = ScanFixture::new(&[("a.yaml", &server("a", "x")), ("b.yaml", &server("b", "x"))]);
    desk.scan_until_settled();
    let written = |desk: &ScanFixture| {
        let names = desk.scanner.state_dir.list("declarations").unwrap();
        let path = |name: &String| desk.scanner.state_dir.path().join(name);
        let inode = |name: &String| std::os::unix::fs::MetadataExt::ino(&fs::metadata(path(name)).unwrap());
        names.iter().map(inode).collect::<Vec<_>>()
    };
    let before = written(&desk);
    desk.restart();
    desk.scan_until_settled();
    assert_eq!(written(&desk), before, "a restart writes nothing");
    desk.write("a.yaml", &server("a", "w"));
    desk.scan_until_settled();
    let after = written(&desk);
    assert_eq!(before.iter().zip(&after).filter(|(one, other)| one != other).count(), 1);
    for name in desk.scanner.state_dir.list("declarations").unwrap() {
        desk.scanner.state_dir.write(&name, b"damaged").unwrap();
    }
    desk.restart();
    assert_eq!(
        desk.scan_until_settled(),
        ["a/1 w", "b/1 x"],
        "damaged records cost identities and nothing else"
    );
}

#[test]
fn removal_of_the_last_files_is_held() {
    let held = |desk: &mut ScanFixture| {
        assert_eq!(desk.scan_until_settled(), ["a/1 x"]);
        assert_eq!(desk.scan_until_settled(), ["a/1 x"]);
        let faults = desk.faults();
        assert!(faults.len() == 1 && faults[0].starts_with("RemovalHeld: "), "{faults:?}");
    };
    let start = || {
        let mut desk = ScanFixture::new(&[("a.yaml", &server("a", "x"))]);
        desk.scan_until_settled();
        desk
    };

    let mut desk = start();
    desk.remove("a.yaml");
    held(&mut desk);
    desk.restart();
    held(&mut desk);
    desk.write("empty.yaml", "# nothing here\n");
    assert_eq!(desk.scan_until_settled(), [""; 0], "a file without objects says that it is meant");
    assert_eq!(desk.faults(), [""; 0]);

    let mut desk = start();
    desk.write("a.yaml", "");
    assert_eq!(desk.scan_until_settled(), [""; 0], "so does an empty one");

    let mut desk = start();
    desk.remove("a.yaml");
    held(&mut desk);
    desk.write("a.yaml", &server("a", "x"));
    assert_eq!(desk.scan_until_settled(), ["a/1 x"]);
    assert_eq!(desk.faults(), [""; 0]);

    let mut desk = start();
    desk.remove("a.yaml");
    desk.scanner = new_scanner(&desk.folder, desk.now, true);
    assert_eq!(desk.scan_until_settled(), [""; 0], "--prune-empty");

    let commit = |desk: &ScanFixture, digit: &str| desk.write(".git/HEAD", &digit.repeat(40));
    let mut desk = ScanFixture::new(&[("a.yaml", &server("a", "x"))]);
    commit(&desk, "1");
    desk.scan_until_settled();
    assert_eq!(*desk.scanner.desired.source.revision, *"1".repeat(40));
    desk.remove("a.yaml");
    held(&mut desk);
    commit(&desk, "2");
    assert_eq!(desk.scan_until_settled(), [""; 0], "a commit without the files");
}

#[test]
fn unreadable_root_changes_nothing() {
    let mut desk = ScanFixture::new(&[("a.yaml", &server("a", "x"))]);
    let (root, aside) = (desk.folder.path().join("root"), desk.folder.path().join("aside"));
    fs::rename(&root, &aside).unwrap();
    assert_eq!(desk.scan_until_settled(), ["not synced"]);
    assert!(desk.faults()[0].contains("does not exist"), "{:?}", desk.faults());
    fs::rename(&aside, &root).unwrap();
    assert_eq!(desk.scan_until_settled(), ["a/1 x"]);
    fs::rename(&root, &aside).unwrap();
    assert_eq!(desk.scan_until_settled(), ["a/1 x"]);
    assert!(desk.faults()[0].starts_with("SourceUnavailable"), "{:?}", desk.faults());
    desk.restart();
    assert_eq!(desk.scan_until_settled(), ["a/1 x"]);
    fs::write(&root, "a file").unwrap();
    assert_eq!(desk.scan_until_settled(), ["a/1 x"]);
    assert!(desk.faults()[0].contains("cannot be read"), "{:?}", desk.faults());
}

#[test]
fn root_that_returns_in_pieces_holds_removals() {
    let names = ["a", "b", "c"];
    let files = names.map(|name| (format!("{name}.yaml"), server(name, "x")));
    let mut desk = ScanFixture::new(&files.each_ref().map(|(name, text)| (name.as_str(), text.as_str())));
    let all = ["a/1 x", "b/1 x", "c/1 x"];
    assert_eq!(desk.scan_until_settled(), all);
    let rest = |desk: &mut ScanFixture, seconds: u64| {
        desk.now += Duration::from_secs(seconds);
        desk.scan_until_settled()
    };
    fs::remove_dir_all(desk.path("")).unwrap();
    assert_eq!(desk.scan_until_settled(), all);
    fs::create_dir(desk.path("")).unwrap();
    assert_eq!(rest(&mut desk, 60), all, "made anew, and empty");
    desk.write("new.yaml", &server("new", "x"));
    assert_eq!(desk.scan_until_settled(), ["a/1 x", "b/1 x", "c/1 x", "new/1 x"]);
    assert!(desk.faults()[0].starts_with("RemovalHeld: "), "{:?}", desk.faults());
    assert_eq!(rest(&mut desk, 8).len(), 4);
    desk.write("b.yaml", &files[1].1);
    assert_eq!(rest(&mut desk, 3).len(), 4, "another piece has come");
    assert_eq!(rest(&mut desk, 8).len(), 4);
    assert_eq!(rest(&mut desk, 3), ["b/1 x", "new/1 x"], "no more came");
    assert_eq!(desk.faults(), [""; 0]);
    desk.remove("new.yaml");
    assert_eq!(desk.scan_until_settled(), ["b/1 x"], "and what goes later goes at once");

    // Somebody says that it is meant.
    let (root, aside) = (desk.folder.path().join("root"), desk.folder.path().join("aside"));
    fs::rename(&root, &aside).unwrap();
    desk.scan_until_settled();
    desk.write("new.yaml", &server("new", "x"));
    assert_eq!(desk.scan_until_settled(), ["b/1 x", "new/1 x"]);
    desk.scanner.confirm_removal();
    assert_eq!(desk.scan_until_settled(), ["new/1 x"]);
}

#[test]
fn unrecognized_file_does_not_confirm_a_removal() {
    for (text, held) in [
        ("apiVersion: evenkeel.dev/v1beta1\nkind: McpServerList\nitems: []\n", true),
        ("hello\n", true),
        ("services: {}\n", true),
        ("]", true),
        ("# nothing\n", false),
        ("apiVersion: v1\nkind: ConfigMap\n", false),
        ("apiVersion: v1\nkind: List\nitems: []\n", false),
    ] {
        let mut desk = ScanFixture::new(&[("a.yaml", &server("a", "x")), ("b.yaml", &server("b", "x"))]);
        assert_eq!(desk.scan_until_settled(), ["a/1 x", "b/1 x"]);
        desk.write("all.yaml", text);
        desk.remove("a.yaml");
        desk.remove("b.yaml");
        let expected: &[&str] = if held { &["a/1 x", "b/1 x"] } else { &[] };
        assert_eq!(desk.scan_until_settled(), expected, "{text}");
        assert_eq!(desk.faults().iter().any(|fault| fault.starts_with("RemovalHeld: ")), held, "{text}");
        desk.restart();
        assert_eq!(desk.scan_until_settled(), expected, "{text}");
        desk.write("empty.yaml", "# it is meant\n");
        assert_eq!(desk.scan_until_settled(), [""; 0], "{text}");
    }
    // Where something is still in force, another removal is as good as any.
    let mut desk = ScanFixture::new(&[("a.yaml", &server("a", "x")), ("b.yaml", &server("b", "x"))]);
    desk.scan_until_settled();
    desk.write("a.yaml", "hello\n");
    desk.remove("b.yaml");
    assert_eq!(desk.scan_until_settled(), ["a/1 x ParseError"]);
}
