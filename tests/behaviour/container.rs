//! evenkeel as PID 1 of a container, without an init process.

use std::process::{Child, Command, Stdio as Io};

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use crate::rig::{FakeStdioServer, Script};
use crate::support::{TestDirectory, eventually, free_port, http};

/// A program in its own user and PID namespaces; killed on drop.
struct Container(Child);

impl Drop for Container {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn unshare_command(program: &str) -> Command {
    let mut command = Command::new("unshare");
    command.args(["--map-root-user", "--pid", "--fork", "--mount-proc", "--kill-child", program]);
    command
}

/// Returns the descendants of a process: PID, true for a zombie, and the program.
fn descendants(ancestor: u32) -> Vec<(u32, bool, String)> {
    let output = Command::new("ps").args(["-A", "-o", "pid=,ppid=,stat=,comm="]).output().unwrap();
    let output = String::from_utf8_lossy(&output.stdout).into_owned();
    let all: Vec<_> = output
        .lines()
        .filter_map(|line| {
            let mut columns = line.split_whitespace();
            let (pid, parent) = (columns.next()?.parse::<u32>().ok()?, columns.next()?.parse::<u32>().ok()?);
            Some((pid, parent, columns.next()?.starts_with('Z'), columns.next()?.to_owned()))
        })
        .collect();
    let (mut family, mut found) = (vec![ancestor], Vec::new());
    while let Some(next) = family.pop() {
        for (pid, _, zombie, name) in all.iter().filter(|(_, parent, ..)| *parent == next) {
            family.push(*pid);
            found.push((*pid, *zombie, name.clone()));
        }
    }
    found
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn pid_1_reaps_children_and_shuts_down_cleanly() {
    let allowed = unshare_command("true").stderr(Io::null()).status().is_ok_and(|status| status.success());
    if !allowed {
        println!("SKIPPED: unshare is not permitted to create PID namespaces on this system");
        return;
    }
    let rig = FakeStdioServer::new(Script::default().tools(&["echo"]));
    let (program, script) = rig.command();
    let (declared, home) = (TestDirectory::new(), TempDir::with_prefix("home").unwrap());
    // Ten processes whose parent exits at once, and which exit shortly after.
    let start = r#"(for one in 1 2 3 4 5 6 7 8 9 10; do setsid sleep 0.3 & done); exec \"$0\" \"$1\""#;
    let args = format!(r#"["-c", "{start}", "{}", "{}"]"#, program.display(), script.display());
    declared.write_server("s", &format!("stdio: {{ command: sh, args: {args} }}"));
    let (listen, admin) = (format!("127.0.0.1:{}", free_port()), format!("127.0.0.1:{}", free_port()));
    let evenkeel = unshare_command(env!("CARGO_BIN_EXE_evenkeel"))
        .arg("run")
        .arg(declared.path())
        .args(["--listen", &listen, "--admin", &admin])
        .env("XDG_STATE_HOME", home.path().join("state"))
        .env("XDG_CONFIG_HOME", home.path().join("config"))
        .stdin(Io::null())
        .stderr(Io::null())
        .spawn()
        .unwrap();
    let mut evenkeel = Container(evenkeel);
    let server = format!("http://{admin}/apis/evenkeel.dev/v1alpha1/namespaces/default/mcpservers/s");
    eventually("the server is attached", async || {
        let object: serde_json::Value = serde_json::from_str(&http::get(&server).await.ok()?).unwrap();
        (object["status"]["tools"] == 1).then_some(())
    })
    .await;
    // unshare's child, evenkeel, its guard and the server.
    let family = eventually("all orphans are reaped", async || {
        let left = descendants(evenkeel.0.id());
        (left.len() == 4 && left.iter().all(|(_, zombie, _)| !zombie)).then_some(left)
    })
    .await;

    let first = i32::try_from(family[0].0).ok().and_then(Pid::from_raw).unwrap();
    kill_process(first, Signal::TERM).unwrap();
    let status = eventually("evenkeel exits after SIGTERM", async || evenkeel.0.try_wait().unwrap()).await;
    assert!(status.success(), "{status}");
    eventually("the server's process has exited", async || rig.live_processes().is_empty().then_some(()))
        .await;
}
