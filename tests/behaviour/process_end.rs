//! How the processes of a stdio server end, and what they inherit and leave behind.

use std::path::Path;

use tempfile::TempDir;

use crate::fixture::EvenkeelFixture;
use crate::rig::{FakeStdioServer, Script};
use crate::support::{Agent, Era, Evenkeel, TestDirectory, eventually};

/// Returns the spec of a server behind a shell that exits with the first SIGTERM, beside a process with this handler
/// for SIGTERM. The process ignores that stdin is closed.
fn spec_behind_shell(rig: &FakeStdioServer, on_term: &str, fields: &str) -> String {
    let (program, script) = rig.command();
    let (program, script) = (program.display(), script.display());
    let shell = format!(
        "exec 3<&0; (trap '{on_term}' TERM; while :; do sleep 0.1; done) & '{program}' '{script}' <&3 & wait"
    );
    format!("stdio: {{ command: sh, args: [-c, {}]{fields} }}", serde_json::json!(shell))
}

/// Returns the log of a server, as `evenkeel logs` prints it.
fn log_of(fixture: &EvenkeelFixture, name: &str) -> String {
    let mut command = fixture.evenkeel.command(&["logs", name, "--dir"]);
    let output = command.arg(fixture.declared.path()).output().unwrap();
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn create_marker_folder() -> (TempDir, String) {
    let folder = TempDir::with_prefix("marker").unwrap();
    let path = folder.path().join("done").display().to_string();
    (folder, path)
}

#[tokio::test]
async fn every_process_of_a_server_can_clean_up_after_its_shell_has_exited() {
    let rig = FakeStdioServer::new(Script::default());
    let (_folder, done) = create_marker_folder();
    let cleanup = format!("sleep 1; touch {done}; exit");
    let fixture = EvenkeelFixture::start(&[]).await;
    let spec = spec_behind_shell(&rig, &cleanup, "");
    fixture.attach("s", &spec).await;
    fixture.declared.write_server("s", &format!("{spec}\nsuspend: true"));
    eventually("the process has cleaned up", async || Path::new(&done).exists().then_some(())).await;
    eventually("all processes have exited", async || rig.existing_pids().is_empty().then_some(())).await;
}

#[tokio::test]
async fn processes_that_do_not_exit_in_time_are_killed_and_the_log_says_so() {
    let rig = FakeStdioServer::new(Script::default());
    let fixture = EvenkeelFixture::start(&[]).await;
    fixture.attach("s", &spec_behind_shell(&rig, "", ", stop: 10m")).await;
    let pids = rig.existing_pids();
    // The time is changed while the server runs, which replaces no process.
    let spec = spec_behind_shell(&rig, "", ", stop: 1s");
    fixture.declared.write_server("s", &spec);
    fixture.wait_for_generation("s", 2).await;
    assert_eq!(rig.existing_pids(), pids);
    fixture.declared.write_server("s", &format!("{spec}\nsuspend: true"));
    eventually("the log says that it was killed", async || {
        log_of(&fixture, "s")
            .contains("\"sh\" did not exit within 1s after SIGTERM and was killed")
            .then_some(())
    })
    .await;
}

#[tokio::test]
async fn exit_code_is_told_although_stdout_was_closed_before() {
    let fixture = EvenkeelFixture::start(&[]).await;
    let spec = "stdio: { command: sh, args: [-c, 'exec 1>&-; while read line; do :; done; exit 3'] }";
    fixture.declared.write_server("s", spec);
    eventually("the exit code is told", async || {
        let message = fixture.evenkeel.condition("s", "Ready").await?.message;
        message.contains("closed its stdout, and then exited with code 3").then_some(())
    })
    .await;
}

#[tokio::test]
async fn processes_inherit_what_is_harmless_and_what_the_operator_names() {
    let rig = FakeStdioServer::new(Script::default().tools(&["report"]));
    let variables = [
        ("HTTPS_PROXY", "http://name:proxy-password@127.0.0.1:9"),
        ("NODE_EXTRA_CA_CERTS", "/etc/ca.pem"),
        ("XDG_DATA_HOME", "/data"),
        ("PASSED_ONE", "passed-secret"),
        ("AWS_SECRET_ACCESS_KEY", "not-inherited"),
    ];
    let (program, script) = rig.command();
    let allowed = format!("{} {}", program.display(), script.display());
    for (flags, expected) in [
        (&["--pass-env", "PASSED_*"][..], "HTTPS_PROXY NODE_EXTRA_CA_CERTS PASSED_ONE XDG_DATA_HOME"),
        (&["--pass-env", "PASSED_*", "--allow-stdio", &allowed], "PASSED_ONE"),
        (&[], "HTTPS_PROXY NODE_EXTRA_CA_CERTS XDG_DATA_HOME"),
    ] {
        let declared = TestDirectory::new();
        declared.write_server("s", &rig.spec(""));
        let evenkeel = Evenkeel::run_with_env(declared.path(), flags, &variables).await;
        evenkeel.wait_until_attached("s").await;
        let report = Agent::connect(Era::Modern, &evenkeel.url()).await.call_text("s_report", "{}").await;
        let report: serde_json::Value = serde_json::from_str(&report).unwrap();
        let inherited = variables.iter().filter(|(name, value)| report["env"][name] == *value);
        let mut inherited: Vec<_> = inherited.map(|(name, _)| *name).collect();
        inherited.sort_unstable();
        assert_eq!(inherited.join(" "), expected, "{flags:?}");
    }
}
