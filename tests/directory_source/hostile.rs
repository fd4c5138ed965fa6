//! Conditions that must not affect other servers: special files, unreadable folders, a full state directory, and a
//! system without file events.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::process::{Command, Stdio};
use std::sync::Mutex;

use super::*;

#[tokio::test]
async fn special_files_neither_block_nor_affect_others() {
    let mut directory = TestDirectory::new(&two_servers());
    directory.start();
    directory.wait_for_servers(&["a/1 x", "b/1 x"]).await;
    let unrelated = directory.server("b");
    let _socket = UnixListener::bind(directory.path("socket.yaml")).unwrap();
    symlink("/dev/zero", directory.path("zero.yaml")).unwrap();
    symlink("round.yaml", directory.path("round.yaml")).unwrap();
    // A sparse file of 100 MB, which occupies no disk space.
    fs::File::create(directory.path("huge.yaml")).unwrap().set_len(100 << 20).unwrap();
    let deep = (0..40).fold(PathBuf::new(), |path, _| path.join("d"));
    directory.write(&deep.join("deep.yaml").display().to_string(), &server("deep", "x"));
    directory.write("bad\n\u{7f}name.yaml", &server("named", "x"));
    directory.write(
        "aliases.yaml",
        &format!(
            "apiVersion: evenkeel.dev/v1alpha1\na0: &a [x]\n{}",
            "b: [*a, *a, *a, *a, *a, *a, *a, *a]\n".repeat(10_000)
        ),
    );
    let desired =
        directory.wait_for(|desired| desired.servers.len() == 3 && desired.source.problems.len() >= 6).await;
    assert_eq!(describe_servers(&desired), ["a/1 x", "b/1 x", "named/1 x"]);
    let faults: Vec<_> = desired.source.problems.iter().map(|fault| fault.problem.message.clone()).collect();
    for expected in [
        "the file is not a regular file",
        "the file is a link to a target outside the directory; it is not followed",
        "the file is a link that cannot be followed",
        "the file is larger than 1 MiB",
        "is nested too deeply; it is not read",
    ] {
        assert!(faults.iter().any(|fault| fault.contains(expected)), "{expected}: {faults:?}");
    }
    assert!(faults.iter().all(|fault| !fault.contains(char::is_control)), "{faults:?}");
    assert!(Arc::ptr_eq(&unrelated, &directory.server("b")));
    directory.stop().await;
}

#[tokio::test]
async fn unreadable_files_keep_their_last_declaration() {
    if rustix::process::geteuid().is_root() {
        eprintln!("skipped: root may read everything");
        return;
    }
    let mut directory = TestDirectory::new(&two_servers());
    directory.start();
    directory.wait_for_servers(&["a/1 x", "b/1 x"]).await;
    let mode = |name: &str, mode: u32| {
        fs::set_permissions(directory.path(name), fs::Permissions::from_mode(mode)).unwrap();
    };
    mode("a.yaml", 0);
    mode("team", 0);
    let (file, folder) = ("a.yaml", "team");
    let rejected = directory.wait_for_servers(&["a/1 x ParseError", "b/1 x ParseError"]).await;
    assert!(rejected.source.problems.iter().all(|fault| fault.problem.message.contains("Permission denied")));
    for name in [file, folder] {
        fs::set_permissions(directory.path(name), fs::Permissions::from_mode(0o755)).unwrap();
    }
    directory.wait_for_servers(&["a/1 x", "b/1 x"]).await;
    directory.stop().await;
}

#[tokio::test]
async fn unwritable_state_directory_does_not_delay_changes() {
    let mut directory = TestDirectory::new(&two_servers());
    directory.start();
    directory.wait_for_servers(&["a/1 x", "b/1 x"]).await;
    let uid = directory.server("a").meta.uid.clone();
    // A file in place of the folder of records: every write fails, as on a full disk.
    let state = fs::read_dir(directory.folder.path().join("state")).unwrap().next().unwrap().unwrap().path();
    let records = state.join("declarations");
    let replaced = async {
        // Records are written after the declared objects are published, so the folder may or may not exist.
        while fs::write(&records, "").is_err() {
            let _ = fs::remove_dir_all(&records);
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(WAIT_TIMEOUT, replaced).await.unwrap();
    directory.write("a.yaml", &server("a", "w"));
    directory.write("c.yaml", &server("c", "x"));
    directory.wait_for_servers(&["a/2 w", "b/1 x", "c/1 x"]).await;
    // Space is available again: the next scan writes the records that could not be written.
    fs::remove_file(&records).unwrap();
    directory.write("c.yaml", &server("c", "w"));
    directory.wait_for_servers(&["a/2 w", "b/1 x", "c/2 w"]).await;
    directory.stop().await;
    directory.start();
    directory.wait_for_servers(&["a/2 w", "b/1 x", "c/2 w"]).await;
    assert_eq!(directory.server("a").meta.uid, uid);
    directory.stop().await;
}

/// Runs in a user namespace of its own, so that no other process loses its watches.
#[tokio::test]
async fn source_without_inotify_polls_and_reports_it() {
    let possible = ["-Ur", "sh", "-c", "echo 0 > /proc/sys/user/max_inotify_instances"];
    if !Command::new("unshare").args(possible).output().is_ok_and(|output| output.status.success()) {
        eprintln!("skipped: no user namespaces here");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().join("fleet");
    fs::create_dir(&root).unwrap();
    fs::write(root.join("a.yaml"), server("a", "there-is-no-such-program")).unwrap();
    let mut child = Command::new("unshare")
        .args(["-Ur", "sh", "-c", "echo 0 > /proc/sys/user/max_inotify_instances; exec \"$@\"", "sh"])
        .arg(env!("CARGO_BIN_EXE_evenkeel"))
        .arg("run")
        .arg(&root)
        .args(["--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0"])
        .env("XDG_STATE_HOME", folder.path())
        .env("XDG_CONFIG_HOME", folder.path())
        .stdin(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let log: Arc<Mutex<String>> = Arc::default();
    let lines = BufReader::new(child.stderr.take().unwrap());
    let reader = std::thread::spawn({
        let log = Arc::clone(&log);
        move || {
            for line in lines.lines().map_while(Result::ok) {
                let mut log = log.lock().unwrap();
                log.push_str(&line);
                log.push('\n');
            }
        }
    });
    let wait_for_log = async |text: &str| {
        let found = async {
            while !log.lock().unwrap().contains(text) {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        let was_logged = timeout(WAIT_TIMEOUT, found).await.is_ok();
        assert!(was_logged, "{text} was not logged: {}", log.lock().unwrap());
    };
    wait_for_log("for changes instead of using file events").await;
    wait_for_log("attach default/a").await;
    fs::write(root.join("b.yaml"), server("b", "there-is-no-such-program")).unwrap();
    wait_for_log("attach default/b").await;
    let address =
        log.lock().unwrap().split("status=\"http://").nth(1).unwrap().split('/').next().unwrap().to_owned();
    let get = |path: &str| {
        let mut stream = TcpStream::connect(&address).unwrap();
        write!(stream, "GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").unwrap();
        let mut response = String::new();
        stream.read_to_string(&mut response).unwrap();
        response
    };
    assert!(get("/metrics").contains("evenkeel_source_polling 1"));
    assert!(get("/apis/evenkeel.dev/v1alpha1/sources").contains("\"watching\":\"Polling\""));
    child.kill().unwrap();
    child.wait().unwrap();
    reader.join().unwrap();
}
