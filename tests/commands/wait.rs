//! Tests `wait`.

use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

use crate::rig::{FakeStdioServer, Script};
use crate::support::{Evenkeel, TestDirectory, within};
use crate::test_instance::{CommandOutput, TestInstance};

const MISSING_COMMAND_SPEC: &str = "stdio: { command: no-such-program-anywhere }";

#[tokio::test]
async fn wait_ends_when_conditions_hold_or_reports_why_not() {
    let server = FakeStdioServer::new(Script::default());
    let instance =
        TestInstance::start(&[("good", &server.spec("")), ("missing", MISSING_COMMAND_SPEC)]).await;
    instance.run_ok(&["wait", "good"]).await;
    instance.run_ok(&["wait", "mcps/good", "--for", "condition=Ready"]).await;
    instance.run_ok(&["wait", "missing", "--for", "condition=stalled"]).await;
    instance.run_ok(&["wait", "missing", "good", "--for=condition=Accepted"]).await;
    instance.run_ok(&["wait", "missing", "--for=condition=Ready=False"]).await;
    instance.run_ok(&["wait", "good", "--for=condition=Stalled=False"]).await;

    let stderr = instance.run_failing(&["wait", "missing", "good", "--timeout", "100ms"]).await;
    assert!(stderr.contains("McpServer/missing is Ready=False (CommandNotFound): "), "{stderr}");
    assert!(stderr.ends_with("error: timed out after 100ms\n") && !stderr.contains("/good"), "{stderr}");
    let stderr = instance.run_failing(&["wait", "--all", "--timeout", "100ms"]).await;
    assert!(stderr.contains("McpServer/missing"), "{stderr}");
    let stderr = instance.run_failing(&["wait", "goood"]).await;
    assert!(stderr.contains("did you mean good?"), "{stderr}");
    for invalid in [&["wait"][..], &["wait", "good", "--for=Ready"], &["wait", "good", "--timeout", "soon"]] {
        assert_eq!(instance.run(invalid).await.code, 2, "{invalid:?}");
    }

    // Waits for an object that is not declared yet, and for a deletion.
    let (soon, deleted) =
        (instance.run(&["wait", "soon"]), instance.run(&["wait", "missing", "--for=delete"]));
    let change = async {
        instance.declared.write_server("soon", &server.spec(""));
        instance.declared.remove("missing.yaml");
    };
    let (soon, deleted, ()) = tokio::join!(soon, deleted, change);
    assert_eq!((soon.code, deleted.code), (0, 0), "{soon:?} {deleted:?}");
    instance.run_ok(&["wait", "--all"]).await;
}

#[tokio::test]
async fn wait_required_also_waits_for_the_instance() {
    let server = FakeStdioServer::new(Script::default());
    let declared = TestDirectory::new();
    declared.write_server("needed", &format!("{MISSING_COMMAND_SPEC}\nrequired: true"));
    declared.write_server("other", &server.spec(""));
    let mut evenkeel = Evenkeel::run(declared.path()).await;
    evenkeel.wait_for("needed", "Ready", "False", "CommandNotFound").await;
    let wait = |evenkeel: &Evenkeel, limit: &str| {
        let mut command = evenkeel.command(&["wait", "--required", "--timeout", limit]);
        command.env("EVENKEEL_DIR", declared.path());
        tokio::process::Command::from(command).output()
    };
    let output =
        CommandOutput::from_output(&within("the wait ends", wait(&evenkeel, "200ms")).await.unwrap());
    assert_eq!(output.code, 1);
    assert!(output.stderr.contains("McpServer/default/needed: CommandNotFound: "), "{}", output.stderr);

    evenkeel.terminate().await;
    declared.write_server("needed", &format!("{}\nrequired: true", server.spec("")));
    // The wait starts before evenkeel, as in scripts.
    let waiting = tokio::spawn(wait(&evenkeel, "60s"));
    evenkeel.restart().await;
    let output = CommandOutput::from_output(&within("the wait ends", waiting).await.unwrap().unwrap());
    assert_eq!(output.code, 0, "{output:?}");
}

#[tokio::test]
async fn wait_ignores_state_before_the_first_scan() {
    let declared = TestDirectory::new();
    for name in ["s1", "s2", "s3", "s4", "s5"] {
        declared.write_server(name, MISSING_COMMAND_SPEC);
    }
    let mut evenkeel = Evenkeel::run(declared.path()).await;
    let wait = |evenkeel: &Evenkeel, args: &[&str]| {
        let mut command = evenkeel.command(&[&["wait"], args].concat());
        command.env("EVENKEEL_DIR", declared.path());
        let ended = tokio::process::Command::from(command).output();
        async { CommandOutput::from_output(&within("the wait ends", ended).await.unwrap()) }
    };
    // Started before evenkeel, so that the first responses come from an instance that is still starting.
    evenkeel.terminate().await;
    let (all, deleted) = (
        tokio::spawn(wait(&evenkeel, &["--all", "--timeout", "15s"])),
        tokio::spawn(wait(&evenkeel, &["s1", "--for=delete", "--timeout", "15s"])),
    );
    evenkeel.restart().await;
    let (all, deleted) = (all.await.unwrap(), deleted.await.unwrap());
    assert_eq!((all.code, deleted.code), (1, 1), "{all:?} {deleted:?}");
    assert!(all.stderr.contains("McpServer/s5 is Ready=False (CommandNotFound): "), "{all:?}");
    assert!(deleted.stderr.contains("McpServer/s1 is still declared"), "{deleted:?}");

    // Nothing is declared in another namespace.
    assert_eq!(wait(&evenkeel, &["--all", "-n", "team"]).await.code, 0);
    let broken = "apiVersion: evenkeel.dev/v1alpha1\nkind: McpServer\nmetadata: {\n";
    declared.write("broken.yaml", broken);
    // Each ends at its timeout, which is long enough for a scan on a slow machine.
    let both = async |args: [&[&str]; 2], message: &str| {
        let [one, other] = args.map(|args| wait(&evenkeel, &[args, &["--timeout", "10s"]].concat()));
        let (one, other) = tokio::join!(one, other);
        for (args, output) in args.iter().zip([one, other]) {
            assert!(output.code == 1 && output.stderr.contains(message), "{args:?}: {output:?}");
        }
    };
    both([&["--all", "-n", "team"], &["broken"]], "broken.yaml:").await;
    std::fs::remove_dir_all(declared.path()).unwrap();
    both([&["--all", "-n", "team"], &["s7", "--for=delete"]], "not found; waiting for it to be created")
        .await;
}

#[tokio::test]
async fn entries_that_only_an_agent_can_use_are_not_waited_for() {
    let server = FakeStdioServer::new(Script::default());
    let instance = TestInstance::start(&[("clock", &server.spec(""))]).await;
    instance.declared.write(
        ".mcp.json",
        r#"{ "mcpServers": {
            "socket": { "type": "ws", "url": "ws://127.0.0.1:1" },
            "asks": { "command": "x", "args": ["${input:key}"] },
            "paused": { "command": "x", "disabled": "true" }
        } }"#,
    );
    let output = instance.run(&["wait", "--all", "--timeout", "60s"]).await;
    assert_eq!(output.code, 0, "{output:?}");
    for name in ["socket cannot be used (UnsupportedTransport)", "asks cannot be used (InvalidSpec)"] {
        assert!(output.stderr.contains(&format!("McpServer/{name}; it is not waited for")), "{output:?}");
    }
    instance.run_ok(&["wait", "source/directory"]).await;
    let output = instance.run(&["wait", "socket", "--timeout", "1s"]).await;
    assert!(output.code == 1 && output.stderr.contains("Ready=False (UnsupportedTransport)"), "{output:?}");
}

#[tokio::test]
async fn wait_uses_the_current_files() {
    let server = FakeStdioServer::new(Script::default());
    let instance = TestInstance::start(&[("clock", &server.spec(""))]).await;
    instance.run_ok(&["wait", "clock"]).await;
    instance.declared.write_server("clock", MISSING_COMMAND_SPEC);
    let output = instance.run(&["wait", "clock", "--timeout", "10s"]).await;
    assert!(output.code == 1 && output.stderr.contains("CommandNotFound"), "{output:?}");
    instance.declared.write_server("clock", &server.spec(""));
    instance.run_ok(&["wait", "clock"]).await;
    instance.declared.write_server("clock", MISSING_COMMAND_SPEC);
    instance.run_ok(&["wait", "clock", "--for=condition=Ready=False"]).await;
    instance.declared.remove("clock.yaml");
    instance.declared.write_server("other", &server.spec(""));
    instance.run_ok(&["wait", "clock", "--for=delete"]).await;
    assert_eq!(instance.run_ok(&["get", "mcps", "-o", "name"]).await, "mcpserver.evenkeel.dev/other\n");
}

#[tokio::test]
async fn wait_survives_a_restart() {
    let server = FakeStdioServer::new(Script::default());
    let mut instance = TestInstance::start(&[("late", MISSING_COMMAND_SPEC)]).await;
    instance.evenkeel.wait_for("late", "Ready", "False", "CommandNotFound").await;
    let mut command = instance.evenkeel.command(&["wait", "late", "--timeout", "60s"]);
    command.env("EVENKEEL_DIR", instance.path());
    let mut waiting = tokio::process::Command::from(command).kill_on_drop(true).spawn().unwrap();
    // This wait scans the files too; when it ends, the first one has scanned and watches.
    instance.run_ok(&["wait", "late", "--for=condition=Ready=False"]).await;
    instance.evenkeel.terminate().await;
    instance.evenkeel.restart().await;
    instance.evenkeel.wait_for("late", "Ready", "False", "CommandNotFound").await;
    assert!(waiting.try_wait().unwrap().is_none(), "the wait continues");
    instance.declared.write_server("late", &server.spec(""));
    assert!(within("the wait ends", waiting.wait()).await.unwrap().success());
}

/// Restarts the instance at any stage of the command.
#[tokio::test]
async fn wait_survives_restarts_at_any_moment() {
    let mut instance = TestInstance::start(&[("late", MISSING_COMMAND_SPEC)]).await;
    instance.evenkeel.wait_for("late", "Ready", "False", "CommandNotFound").await;
    let wait = |instance: &TestInstance| {
        let mut command = instance.evenkeel.command(&["wait", "late", "--timeout", "60s"]);
        command.env("EVENKEEL_DIR", instance.path());
        tokio::process::Command::from(command).kill_on_drop(true).spawn().unwrap()
    };
    let mut waiting = Vec::new();
    for _ in 0..5 {
        // A wait starts every few milliseconds before, during and after the shutdown.
        for _ in 0..4 {
            waiting.push(wait(&instance));
            tokio::time::sleep(Duration::from_millis(3)).await;
        }
        instance.evenkeel.terminate().await;
        waiting.push(wait(&instance));
        instance.evenkeel.restart().await;
    }
    let server = FakeStdioServer::new(Script::default());
    instance.declared.write_server("late", &server.spec(""));
    for mut command in waiting {
        assert!(within("the wait ends", command.wait()).await.unwrap().success());
    }
}

#[tokio::test]
async fn commands_time_out_on_an_unresponsive_instance() {
    let instance = TestInstance::start(&[("a", MISSING_COMMAND_SPEC)]).await;
    instance.evenkeel.wait_for("a", "Ready", "False", "CommandNotFound").await;
    let pid = i32::try_from(instance.evenkeel.pid()).ok().and_then(Pid::from_raw).unwrap();
    let expected = format!("evenkeel (pid {}) does not respond\n", instance.evenkeel.pid());
    kill_process(pid, Signal::STOP).unwrap();
    let commands = [
        &["wait", "a", "--timeout", "1s"][..],
        &["wait", "--all", "--timeout", "1s"],
        &["wait", "--required", "--timeout", "1s"],
        &["get", "mcps"],
        &["get", "mcps", "-w"],
        &["events"],
        &["logs", "a", "-f"],
        &["plan"],
        &["mcp", "reload"],
        &["skill", "reload"],
        &["mcp", "add", "b", "--", "no-such-program-anywhere"],
    ];
    let stderrs = futures_util::future::join_all(commands.map(|command| instance.run_failing(command))).await;
    kill_process(pid, Signal::CONT).unwrap();
    for (command, stderrs) in commands.iter().zip(stderrs) {
        assert!(stderrs.contains(&expected), "{command:?}: {stderrs}");
    }
    instance.run_ok(&["get", "mcps"]).await;
}
