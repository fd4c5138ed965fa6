//! Evenkeel as the first process of a container, without an init before it.

use std::process::{Child, Command, Stdio as Io};

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use crate::rig::{FakeStdioServer, Script};
use crate::support::{TestDirectory, eventually, free_port, http};

/// A program and what it started in namespaces of its own; killed when dropped.
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

/// The processes below one: id, whether it is dead and not taken note of, and the program.
fn descendants(ancestor: u32) -> Vec<(u32, bool, String)> {
    let said = Command::new("ps").args(["-A", "-o", "pid=,ppid=,stat=,comm="]).output().unwrap();
    let said = String::from_utf8_lossy(&said.stdout).into_owned();
    let all: Vec<_> = said
        .lines()
        .filter_map(|line| {
            let mut words = line.split_whitespace();
            let (pid, parent) = (words.next()?.parse::<u32>().ok()?, words.next()?.parse::<u32>().ok()?);
            Some((pid, parent, words.next()?.starts_with('Z'), words.next()?.to_owned()))
        })
        .collect();
    let (mut family, mut found) = (vec![ancestor], Vec::new());
    while let Some(next) = family.pop() {
        for (pid, _, dead, name) in all.iter().filter(|(_, parent, ..)| *parent == next) {
            family.push(*pid);
            found.push((*pid, *dead, name.clone()));
        }
    }
    found
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn pid_1_reaps_children_and_shuts_down_cleanly() {
    let allowed = unshare_command("true").stderr(Io::null()).status().is_ok_and(|status| status.success());
    if !allowed {
        println!("SKIPPED: this system lets nobody make process namespaces with unshare");
        return;
    }
    let rig = FakeStdioServer::new(Script::default().tools(&["echo"]));
    let (program, script) = rig.command();
    let (declared, home) = (TestDirectory::new(), TempDir::with_prefix("home").unwrap());
    // Ten processes that lose their parent at once, and end soon after.
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
        let told: serde_json::Value = serde_json::from_str(&http::get(&server).await.ok()?).unwrap();
        (told["status"]["tools"] == 1).then_some(())
    })
    .await;
    // The first process, evenkeel, its guard and the server.
    let family = eventually("nothing is left of those that ended", async || {
        let left = descendants(evenkeel.0.id());
        (left.len() == 4 && left.iter().all(|(_, dead, _)| !dead)).then_some(left)
    })
    .await;

    let first = i32::try_from(family[0].0).ok().and_then(Pid::from_raw).unwrap();
    kill_process(first, Signal::TERM).unwrap();
    let status = eventually("it ends after SIGTERM", async || evenkeel.0.try_wait().unwrap()).await;
    assert!(status.success(), "{status}");
    eventually("its server is gone", async || rig.live_processes().is_empty().then_some(())).await;
}
