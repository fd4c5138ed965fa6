//! What must harm nobody: files that are none, folders that cannot be read, a state directory that is full, a
//! system without file events left.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::process::{Command, Stdio};
use std::sync::Mutex;

use super::*;

#[tokio::test]
async fn special_files_neither_block_nor_affect_others() {
    let mut rig = TestDirectory::new(&two_servers());
    rig.start();
    rig.wait_for_servers(&["a/1 x", "b/1 x"]).await;
    let peer = rig.server("b");
    let _socket = UnixListener::bind(rig.path("socket.yaml")).unwrap();
    symlink("/dev/zero", rig.path("zero.yaml")).unwrap();
    symlink("round.yaml", rig.path("round.yaml")).unwrap();
    // 100 MB that take no room on the disk.
    fs::File::create(rig.path("huge.yaml")).unwrap().set_len(100 << 20).unwrap();
    let deep = (0..40).fold(PathBuf::new(), |path, _| path.join("d"));
    rig.write(&deep.join("deep.yaml").display().to_string(), &server("deep", "x"));
    rig.write("bad\n\u{7f}name.yaml", &server("named", "x"));
    rig.write(
        "aliases.yaml",
        &format!("a0: &a [x]\n{}", "b: [*a, *a, *a, *a, *a, *a, *a, *a]\n".repeat(10_000)),
    );
    let found =
        rig.wait_for(|desired| desired.servers.len() == 3 && desired.source.problems.len() >= 6).await;
    assert_eq!(describe_servers(&found), ["a/1 x", "b/1 x", "named/1 x"]);
    let faults: Vec<_> = found.source.problems.iter().map(|fault| fault.problem.message.clone()).collect();
    for expected in [
        "the file is not a regular file",
        "the file is a link that leaves the directory, and is not followed",
        "the file is a link that cannot be followed",
        "the file is larger than 1 MiB",
        "is nested too deeply and is not read",
    ] {
        assert!(faults.iter().any(|fault| fault.contains(expected)), "{expected}: {faults:?}");
    }
    assert!(faults.iter().all(|fault| !fault.contains(char::is_control)), "{faults:?}");
    assert!(Arc::ptr_eq(&peer, &rig.server("b")));
    rig.stop().await;
}

#[tokio::test]
async fn unreadable_files_keep_their_last_declaration() {
    if rustix::process::geteuid().is_root() {
        eprintln!("skipped: root may read everything");
        return;
    }
    let mut rig = TestDirectory::new(&two_servers());
    rig.start();
    rig.wait_for_servers(&["a/1 x", "b/1 x"]).await;
    let mode = |name: &str, mode: u32| {
        fs::set_permissions(rig.path(name), fs::Permissions::from_mode(mode)).unwrap();
    };
    mode("a.yaml", 0);
    mode("team", 0);
    let (file, folder) = ("a.yaml", "team");
    let held = rig.wait_for_servers(&["a/1 x ParseError", "b/1 x ParseError"]).await;
    assert!(held.source.problems.iter().all(|fault| fault.problem.message.contains("Permission denied")));
    for name in [file, folder] {
        fs::set_permissions(rig.path(name), fs::Permissions::from_mode(0o755)).unwrap();
    }
    rig.wait_for_servers(&["a/1 x", "b/1 x"]).await;
    rig.stop().await;
}

#[tokio::test]
async fn unwritable_state_directory_does_not_delay_changes() {
    let mut rig = TestDirectory::new(&two_servers());
    rig.start();
    rig.wait_for_servers(&["a/1 x", "b/1 x"]).await;
    let uid = rig.server("a").meta.uid.clone();
    // A file where the folder of records was: every write fails, as on a full disk.
    let state = fs::read_dir(rig.folder.path().join("state")).unwrap().next().unwrap().unwrap().path();
    let records = state.join("declarations");
    let replaced = async {
        // Records are written after what is declared is given, so the folder may be there or not.
        while fs::write(&records, "").is_err() {
            let _ = fs::remove_dir_all(&records);
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(WAIT_TIMEOUT, replaced).await.unwrap();
    rig.write("a.yaml", &server("a", "w"));
    rig.write("c.yaml", &server("c", "x"));
    rig.wait_for_servers(&["a/2 w", "b/1 x", "c/1 x"]).await;
    // There is room again: what could not be written is, at the next look.
    fs::remove_file(&records).unwrap();
    rig.write("c.yaml", &server("c", "w"));
    rig.wait_for_servers(&["a/2 w", "b/1 x", "c/2 w"]).await;
    rig.stop().await;
    rig.start();
    rig.wait_for_servers(&["a/2 w", "b/1 x", "c/2 w"]).await;
    assert_eq!(rig.server("a").meta.uid, uid);
    rig.stop().await;
}

/// In a user namespace of its own, so that nobody else is left without watches.
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
    let said: Arc<Mutex<String>> = Arc::default();
    let lines = BufReader::new(child.stderr.take().unwrap());
    let reader = std::thread::spawn({
        let said = Arc::clone(&said);
        move || {
            for line in lines.lines().map_while(Result::ok) {
                let mut said = said.lock().unwrap();
                said.push_str(&line);
                said.push('\n');
            }
        }
    });
    let hear = async |what: &str| {
        let heard = async {
            while !said.lock().unwrap().contains(what) {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        let was_heard = timeout(WAIT_TIMEOUT, heard).await.is_ok();
        assert!(was_heard, "{what} was never said: {}", said.lock().unwrap());
    };
    hear("is looked at by the clock, because file events are not heard").await;
    hear("attach default/a").await;
    fs::write(root.join("b.yaml"), server("b", "there-is-no-such-program")).unwrap();
    hear("attach default/b").await;
    let address =
        said.lock().unwrap().split("status=\"http://").nth(1).unwrap().split('/').next().unwrap().to_owned();
    let ask = |path: &str| {
        let mut stream = TcpStream::connect(&address).unwrap();
        write!(stream, "GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    };
    assert!(ask("/metrics").contains("evenkeel_source_polling 1"));
    assert!(ask("/apis/evenkeel.dev/v1alpha1/sources").contains("\"watching\":\"Polling\""));
    child.kill().unwrap();
    child.wait().unwrap();
    reader.join().unwrap();
}
