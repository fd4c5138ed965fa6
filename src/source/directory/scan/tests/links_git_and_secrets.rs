//! Links, folders that cannot be read, secrets, git: what is around the files.

use super::checkout::GIT_LOCK_TIMEOUT;
use super::*;

#[test]
fn nothing_is_applied_while_git_holds_its_lock() {
    let mut desk = ScanFixture::new(&[("a.yaml", &server("a", "x"))]);
    desk.scan_until_settled();
    desk.write(".git/index.lock", "");
    desk.write("a.yaml", &server("a", "w"));
    desk.write("b.yaml", &server("b", "x"));
    assert_eq!(desk.scan(&["b.yaml"], false), ["a/1 x"]);
    assert_eq!(desk.scan_until_settled(), ["a/1 x"]);
    desk.now += GIT_LOCK_TIMEOUT;
    assert_eq!(desk.scan_until_settled(), ["a/2 w", "b/1 x"], "the lock was left behind");
    desk.remove(".git/index.lock");
    desk.write("a.yaml", &server("a", "z"));
    assert_eq!(desk.scan_until_settled(), ["a/3 z", "b/1 x"]);
}

#[test]
fn links_inside_the_root_are_followed_once() {
    let mut desk = ScanFixture::new(&[
        ("..v1/a.yaml", &server("a", "x")),
        ("..v1/sub/b.yaml", &server("b", "x")),
        ("real/c.yaml", &server("c", "x")),
        ("real/d.txt", &server("d", "x")),
    ]);
    fs::write(desk.folder.path().join("outside.yaml"), server("o", "x")).unwrap();
    fs::create_dir(desk.folder.path().join("outer")).unwrap();
    fs::write(desk.folder.path().join("outer/o.yaml"), server("p", "x")).unwrap();
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
        symlink(target, desk.path(name)).unwrap();
    }
    assert_eq!(desk.scan_until_settled(), ["a/1 x", "b/1 x", "c/1 x", "d/1 x"]);
    let faults = desk.faults();
    assert_eq!(faults.len(), 4, "{faults:#?}");
    for (name, why) in [
        ("outer", "is a link that leaves the directory"),
        ("the file", "is a link that leaves the directory"),
        ("the file", "is a link to something that does not exist"),
        ("the file", "is a link that cannot be followed"),
    ] {
        assert!(faults.iter().any(|fault| fault.contains(&format!("{name} {why}"))), "{why}: {faults:#?}");
    }

    // The way Kubernetes publishes another version of a volume.
    desk.write("..v2/a.yaml", &server("a", "w"));
    symlink("..v2", desk.path("..data_tmp")).unwrap();
    fs::rename(desk.path("..data_tmp"), desk.path("..data")).unwrap();
    fs::remove_file(desk.path("sub")).unwrap();
    fs::remove_dir_all(desk.path("..v1")).unwrap();
    assert_eq!(desk.scan_until_settled(), ["a/2 w", "c/1 x", "d/1 x"]);
}

#[test]
fn special_files_are_reported_and_do_not_block() {
    let mut desk = ScanFixture::new(&[("a.yaml", &server("a", "x")), ("b.yaml", &server("b", "x"))]);
    desk.scan_until_settled();
    desk.remove("a.yaml");
    let fifo = rustix::fs::mknodat(
        rustix::fs::CWD,
        desk.path("a.yaml"),
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::RUSR,
        0,
    );
    fifo.unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(desk.path("s.yaml")).unwrap();
    desk.write("b.yaml", &"# 16 bytes here\n".repeat(1 << 17));
    fs::create_dir(desk.path("c.yaml")).unwrap();
    desk.write("c.yaml/d.yaml", &server("d", "x"));
    assert_eq!(desk.scan_until_settled(), ["a/1 x ParseError", "b/1 x ParseError", "d/1 x"]);
    let faults = desk.faults();
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
    let mut desk = ScanFixture::new(&[("a.yaml", &text), ("b.yaml", &server("b", "x"))]);
    desk.scan_until_settled();
    let endpoint = |desk: &ScanFixture| {
        let server = desk.scanner.desired.servers.values().next().unwrap();
        match server.endpoint.as_ref().unwrap() {
            Ok(endpoint) => endpoint.digest().to_string(),
            Err(problem) => problem.to_string(),
        }
    };
    assert!(endpoint(&desk).starts_with("SecretNotFound: variable T: secret \"s\" with key \"k\""));
    let secrets = desk.folder.path().join("secrets/s");
    fs::create_dir_all(&secrets).unwrap();
    fs::write(secrets.join("k"), "one").unwrap();
    desk.scan_until_settled();
    let one = endpoint(&desk);
    let before = Arc::clone(&desk.scanner.desired);
    fs::write(secrets.join("k"), "two").unwrap();
    desk.scan_until_settled();
    assert!(one.starts_with("sha256:") && endpoint(&desk) != one);
    let b = |desired: &Desired| Arc::clone(desired.servers.values().nth(1).unwrap());
    assert!(Arc::ptr_eq(&b(&before), &b(&desk.scanner.desired)));
    fs::remove_file(secrets.join("k")).unwrap();
    desk.scan_until_settled();
    assert!(endpoint(&desk).starts_with("SecretNotFound"));
    assert_eq!(desk.describe_servers(), ["a/1 x", "b/1 x"], "the declaration is the same");
}

#[test]
fn unreadable_folder_keeps_the_objects_below_it() {
    let mut desk = ScanFixture::new(&[("a.yaml", &server("a", "x")), ("team/b.yaml", &server("b", "x"))]);
    desk.scan_until_settled();
    fs::remove_dir_all(desk.path("team")).unwrap();
    let blind = [(PathBuf::from("team"), "cannot be read: Permission denied".to_owned())];
    for _ in 0..2 {
        desk.now += Duration::from_secs(1);
        let landed = HashSet::new();
        let moment = ScanContext {
            now: desk.now,
            wall_clock: desk.wall_clock,
            is_first: false,
            settled: true,
            completed: &landed,
        };
        desk.scanner.files.begin_scan();
        desk.scanner.files.end_scan(&blind, &moment);
        desk.scanner.files.apply(&mut desk.scanner.objects, &moment, true);
        desk.scanner.apply(&"r".into(), &moment);
    }
    desk.scanner.publish(SourceState { synced: true, ..SourceState::default() });
    assert_eq!(desk.describe_servers(), ["a/1 x", "b/1 x ParseError"]);
    let b = desk.scanner.desired.servers.values().nth(1).unwrap().rejected.clone().unwrap();
    assert_eq!(
        b.message,
        "team/b.yaml:1: the file is unknown: its folder team cannot be read: Permission denied; the last good \
         declaration stays in force"
    );
}
