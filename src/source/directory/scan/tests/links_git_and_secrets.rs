//! Links, unreadable folders, secrets and git: the conditions around the files.

use super::checkout::GIT_LOCK_TIMEOUT;
use super::*;
use crate::source::directory::tree::IgnoreRules;

#[test]
fn nothing_is_applied_while_git_holds_its_lock() {
    let mut fixture = ScanFixture::new(&[("a.yaml", &server("a", "x"))]);
    fixture.scan_until_settled();
    fixture.write(".git/index.lock", "");
    fixture.write("a.yaml", &server("a", "w"));
    fixture.write("b.yaml", &server("b", "x"));
    assert_eq!(fixture.scan(&["b.yaml"], false), ["a/1 x"]);
    assert_eq!(fixture.scan_until_settled(), ["a/1 x"]);
    fixture.now += GIT_LOCK_TIMEOUT;
    assert_eq!(fixture.scan_until_settled(), ["a/2 w", "b/1 x"], "the lock was left behind");
    fixture.remove(".git/index.lock");
    fixture.write("a.yaml", &server("a", "z"));
    assert_eq!(fixture.scan_until_settled(), ["a/3 z", "b/1 x"]);
}

#[test]
fn links_inside_the_root_are_followed_once() {
    let mut fixture = ScanFixture::new(&[
        ("..v1/a.yaml", &server("a", "x")),
        ("..v1/sub/b.yaml", &server("b", "x")),
        ("real/c.yaml", &server("c", "x")),
        ("real/d.txt", &server("d", "x")),
    ]);
    fs::write(fixture.folder.path().join("outside.yaml"), server("o", "x")).unwrap();
    fs::create_dir(fixture.folder.path().join("outer")).unwrap();
    fs::write(fixture.folder.path().join("outer/o.yaml"), server("p", "x")).unwrap();
    for (target, name) in [
        ("..v1", "..data"),
        ("..data/a.yaml", "a.yaml"),
        ("..data/sub", "sub"),
        ("real/c.yaml", "again.yaml"),
        ("real", "more"),
        ("real/d.txt", "d.yaml"),
        ("../outside.yaml", "out.yaml"),
        ("../outer", "outer"),
        ("nothing", "dangling.yaml"),
        ("loop.yaml", "loop.yaml"),
        ("..", "..v1/sub/up"),
        (".", "self"),
    ] {
        symlink(target, fixture.path(name)).unwrap();
    }
    assert_eq!(fixture.scan_until_settled(), ["a/1 x", "b/1 x", "c/1 x", "d/1 x"]);
    let faults = fixture.faults();
    assert_eq!(faults.len(), 4, "{faults:#?}");
    for (name, reason) in [
        ("outer", "is a link to a target outside the directory"),
        ("the file", "is a link to a target outside the directory"),
        ("the file", "is a link whose target does not exist"),
        ("the file", "is a link that cannot be followed"),
    ] {
        assert!(
            faults.iter().any(|fault| fault.contains(&format!("{name} {reason}"))),
            "{reason}: {faults:#?}"
        );
    }

    // As Kubernetes publishes another version of a volume.
    fixture.write("..v2/a.yaml", &server("a", "w"));
    symlink("..v2", fixture.path("..data_tmp")).unwrap();
    fs::rename(fixture.path("..data_tmp"), fixture.path("..data")).unwrap();
    fs::remove_file(fixture.path("sub")).unwrap();
    fs::remove_dir_all(fixture.path("..v1")).unwrap();
    assert_eq!(fixture.scan_until_settled(), ["a/2 w", "c/1 x", "d/1 x"]);
}

#[test]
fn special_files_are_reported_and_do_not_block() {
    let mut fixture = ScanFixture::new(&[("a.yaml", &server("a", "x")), ("b.yaml", &server("b", "x"))]);
    fixture.scan_until_settled();
    fixture.remove("a.yaml");
    let fifo = rustix::fs::mknodat(
        rustix::fs::CWD,
        fixture.path("a.yaml"),
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::RUSR,
        0,
    );
    fifo.unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(fixture.path("s.yaml")).unwrap();
    fixture.write("b.yaml", &"# 16 bytes here\n".repeat(1 << 17));
    fs::create_dir(fixture.path("c.yaml")).unwrap();
    fixture.write("c.yaml/d.yaml", &server("d", "x"));
    assert_eq!(fixture.scan_until_settled(), ["a/1 x ParseError", "b/1 x ParseError", "d/1 x"]);
    let faults = fixture.faults();
    assert_eq!(
        faults,
        [
            "ParseError: the file is not a regular file",
            "ParseError: the file is larger than 1 MiB",
            "ParseError: the file is not a regular file",
        ]
    );
}

#[test]
fn changed_secret_file_is_read_again() {
    let spec = "{ command: x, env: [{ name: T, valueFrom: { secretKeyRef: { name: s, key: k } } }] }";
    let text = server("a", "x").replace("{ command: x }", spec);
    let mut fixture = ScanFixture::new(&[("a.yaml", &text), ("b.yaml", &server("b", "x"))]);
    fixture.scan_until_settled();
    let endpoint = |fixture: &ScanFixture| {
        let server = fixture.scanner.desired.servers.values().next().unwrap();
        match server.endpoint.as_ref().unwrap() {
            Ok(endpoint) => endpoint.digest().to_string(),
            Err(problem) => problem.to_string(),
        }
    };
    assert!(endpoint(&fixture).starts_with("SecretNotFound: variable T: secret \"s\" with key \"k\""));
    let secrets = fixture.folder.path().join("secrets/s");
    fs::create_dir_all(&secrets).unwrap();
    fs::write(secrets.join("k"), "one").unwrap();
    fixture.scan_until_settled();
    let one = endpoint(&fixture);
    let before = Arc::clone(&fixture.scanner.desired);
    fs::write(secrets.join("k"), "two").unwrap();
    fixture.scan_until_settled();
    assert!(one.starts_with("sha256:") && endpoint(&fixture) != one);
    let b = |desired: &Desired| Arc::clone(desired.servers.values().nth(1).unwrap());
    assert!(Arc::ptr_eq(&b(&before), &b(&fixture.scanner.desired)));
    fs::remove_file(secrets.join("k")).unwrap();
    fixture.scan_until_settled();
    assert!(endpoint(&fixture).starts_with("SecretNotFound"));
    assert_eq!(fixture.describe_servers(), ["a/1 x", "b/1 x"], "the declaration is the same");
}

#[test]
fn unreadable_folder_keeps_the_objects_below_it() {
    let mut fixture = ScanFixture::new(&[("a.yaml", &server("a", "x")), ("team/b.yaml", &server("b", "x"))]);
    fixture.scan_until_settled();
    fs::remove_dir_all(fixture.path("team")).unwrap();
    let unreadable_folders = [(PathBuf::from("team"), "cannot be read: Permission denied".to_owned())];
    for _ in 0..2 {
        fixture.now += Duration::from_secs(1);
        let completed = HashSet::new();
        let context = ScanContext {
            now: fixture.now,
            wall_clock: fixture.wall_clock,
            is_first: false,
            settled: true,
            completed: &completed,
        };
        fixture.scanner.files.begin_scan(&IgnoreRules::default());
        fixture.scanner.files.end_scan(&unreadable_folders, &context);
        fixture.scanner.files.apply(&mut fixture.scanner.objects, &context, true);
        fixture.scanner.apply(&"r".into(), &context);
    }
    fixture.scanner.publish(SourceState { synced: true, ..SourceState::default() });
    assert_eq!(fixture.describe_servers(), ["a/1 x", "b/1 x ParseError"]);
    let b = fixture.scanner.desired.servers.values().nth(1).unwrap().rejected.clone().unwrap();
    assert_eq!(
        b.message,
        "team/b.yaml:1: the file could not be checked: its folder team cannot be read: Permission denied; the last \
         good declaration stays in force"
    );
}
