//! `wait`.

use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

use crate::rig::{FakeStdioServer, Script};
use crate::support::{Evenkeel, TestDirectory, within};
use crate::test_instance::{CommandOutput, TestInstance};

const MISSING_COMMAND_SPEC: &str = "stdio: { command: no-such-program-anywhere }";

#[tokio::test]
async fn wait_ends_when_conditions_hold_or_reports_why_not() {
    let server = FakeStdioServer::new(Script::default());
    let stage = TestInstance::start(&[("good", &server.spec("")), ("missing", MISSING_COMMAND_SPEC)]).await;
    stage.run_ok(&["wait", "good"]).await;
    stage.run_ok(&["wait", "mcps/good", "--for", "condition=Ready"]).await;
    stage.run_ok(&["wait", "missing", "--for", "condition=stalled"]).await;
    stage.run_ok(&["wait", "missing", "good", "--for=condition=Accepted"]).await;
    stage.run_ok(&["wait", "missing", "--for=condition=Ready=False"]).await;
    stage.run_ok(&["wait", "good", "--for=condition=Stalled=False"]).await;

    let said = stage.run_failing(&["wait", "missing", "good", "--timeout", "100ms"]).await;
    assert!(said.contains("McpServer/missing is Ready=False (CommandNotFound): "), "{said}");
    assert!(said.ends_with("error: not within 100ms\n") && !said.contains("/good"), "{said}");
    let said = stage.run_failing(&["wait", "--all", "--timeout", "100ms"]).await;
    assert!(said.contains("McpServer/missing"), "{said}");
    let said = stage.run_failing(&["wait", "goood"]).await;
    assert!(said.contains("did you mean good?"), "{said}");
    for wrong in [&["wait"][..], &["wait", "good", "--for=Ready"], &["wait", "good", "--timeout", "soon"]] {
        assert_eq!(stage.run(wrong).await.code, 2, "{wrong:?}");
    }

    // What is not declared yet is waited for, and so is its end.
    let (soon, gone) = (stage.run(&["wait", "soon"]), stage.run(&["wait", "missing", "--for=delete"]));
    let change = async {
        stage.declared.write_server("soon", &server.spec(""));
        stage.declared.remove("missing.yaml");
    };
    let (soon, gone, ()) = tokio::join!(soon, gone, change);
    assert_eq!((soon.code, gone.code), (0, 0), "{soon:?} {gone:?}");
    stage.run_ok(&["wait", "--all"]).await;
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
    let done = CommandOutput::from_output(&within("the wait ends", wait(&evenkeel, "200ms")).await.unwrap());
    assert_eq!(done.code, 1);
    assert!(done.stderr.contains("McpServer/default/needed: CommandNotFound: "), "{}", done.stderr);

    evenkeel.terminate().await;
    declared.write_server("needed", &format!("{}\nrequired: true", server.spec("")));
    // Started first, as scripts may.
    let waiting = tokio::spawn(wait(&evenkeel, "60s"));
    evenkeel.restart().await;
    let done = CommandOutput::from_output(&within("the wait ends", waiting).await.unwrap().unwrap());
    assert_eq!(done.code, 0, "{done:?}");
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
    // Started before evenkeel, so that the first answers come from one that has just begun.
    evenkeel.terminate().await;
    let (all, gone) = (
        tokio::spawn(wait(&evenkeel, &["--all", "--timeout", "15s"])),
        tokio::spawn(wait(&evenkeel, &["s1", "--for=delete", "--timeout", "15s"])),
    );
    evenkeel.restart().await;
    let (all, gone) = (all.await.unwrap(), gone.await.unwrap());
    assert_eq!((all.code, gone.code), (1, 1), "{all:?} {gone:?}");
    assert!(all.stderr.contains("McpServer/s5 is Ready=False (CommandNotFound): "), "{all:?}");
    assert!(gone.stderr.contains("McpServer/s1 is still declared"), "{gone:?}");

    // Of another namespace nothing is declared.
    assert_eq!(wait(&evenkeel, &["--all", "-n", "team"]).await.code, 0);
    let broken = "apiVersion: evenkeel.dev/v1alpha1\nkind: McpServer\nmetadata: {\n";
    declared.write("broken.yaml", broken);
    // Each ends when its time is over, which is long enough for a look on a machine that is slow.
    let both = async |args: [&[&str]; 2], says: &str| {
        let [one, other] = args.map(|args| wait(&evenkeel, &[args, &["--timeout", "10s"]].concat()));
        let (one, other) = tokio::join!(one, other);
        for (args, done) in args.iter().zip([one, other]) {
            assert!(done.code == 1 && done.stderr.contains(says), "{args:?}: {done:?}");
        }
    };
    both([&["--all", "-n", "team"], &["broken"]], "broken.yaml:").await;
    std::fs::remove_dir_all(declared.path()).unwrap();
    both([&["--all", "-n", "team"], &["s7", "--for=delete"]], "does not exist").await;
}

#[tokio::test]
async fn wait_uses_the_current_files() {
    let server = FakeStdioServer::new(Script::default());
    let stage = TestInstance::start(&[("clock", &server.spec(""))]).await;
    stage.run_ok(&["wait", "clock"]).await;
    stage.declared.write_server("clock", MISSING_COMMAND_SPEC);
    let done = stage.run(&["wait", "clock", "--timeout", "10s"]).await;
    assert!(done.code == 1 && done.stderr.contains("CommandNotFound"), "{done:?}");
    stage.declared.write_server("clock", &server.spec(""));
    stage.run_ok(&["wait", "clock"]).await;
    stage.declared.write_server("clock", MISSING_COMMAND_SPEC);
    stage.run_ok(&["wait", "clock", "--for=condition=Ready=False"]).await;
    stage.declared.remove("clock.yaml");
    stage.declared.write_server("other", &server.spec(""));
    stage.run_ok(&["wait", "clock", "--for=delete"]).await;
    assert_eq!(stage.run_ok(&["get", "mcps", "-o", "name"]).await, "mcpserver.evenkeel.dev/other\n");
}

#[tokio::test]
async fn wait_survives_a_restart() {
    let server = FakeStdioServer::new(Script::default());
    let mut stage = TestInstance::start(&[("late", MISSING_COMMAND_SPEC)]).await;
    stage.evenkeel.wait_for("late", "Ready", "False", "CommandNotFound").await;
    let mut command = stage.evenkeel.command(&["wait", "late", "--timeout", "60s"]);
    command.env("EVENKEEL_DIR", stage.path());
    let mut waiting = tokio::process::Command::from(command).kill_on_drop(true).spawn().unwrap();
    // A look at the files is done for it alone, and then it watches.
    stage.run_ok(&["wait", "late", "--for=condition=Ready=False"]).await;
    stage.evenkeel.terminate().await;
    stage.evenkeel.restart().await;
    stage.evenkeel.wait_for("late", "Ready", "False", "CommandNotFound").await;
    assert!(waiting.try_wait().unwrap().is_none(), "it goes on");
    stage.declared.write_server("late", &server.spec(""));
    assert!(within("it ends", waiting.wait()).await.unwrap().success());
}

/// Whatever the command is doing when evenkeel ends.
#[tokio::test]
async fn wait_survives_restarts_at_any_moment() {
    let mut stage = TestInstance::start(&[("late", MISSING_COMMAND_SPEC)]).await;
    stage.evenkeel.wait_for("late", "Ready", "False", "CommandNotFound").await;
    let wait = |stage: &TestInstance| {
        let mut command = stage.evenkeel.command(&["wait", "late", "--timeout", "60s"]);
        command.env("EVENKEEL_DIR", stage.path());
        tokio::process::Command::from(command).kill_on_drop(true).spawn().unwrap()
    };
    let mut waiting = Vec::new();
    for _ in 0..5 {
        // One begins to wait every few milliseconds, before, while and after evenkeel ends.
        for _ in 0..4 {
            waiting.push(wait(&stage));
            tokio::time::sleep(Duration::from_millis(3)).await;
        }
        stage.evenkeel.terminate().await;
        waiting.push(wait(&stage));
        stage.evenkeel.restart().await;
    }
    let server = FakeStdioServer::new(Script::default());
    stage.declared.write_server("late", &server.spec(""));
    for mut command in waiting {
        assert!(within("it ends", command.wait()).await.unwrap().success());
    }
}

#[tokio::test]
async fn commands_time_out_on_an_unresponsive_instance() {
    let stage = TestInstance::start(&[("a", MISSING_COMMAND_SPEC)]).await;
    stage.evenkeel.wait_for("a", "Ready", "False", "CommandNotFound").await;
    let pid = i32::try_from(stage.evenkeel.pid()).ok().and_then(Pid::from_raw).unwrap();
    let silence = format!("evenkeel (process {}) does not answer\n", stage.evenkeel.pid());
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
    let told = futures_util::future::join_all(commands.map(|command| stage.run_failing(command))).await;
    kill_process(pid, Signal::CONT).unwrap();
    for (command, told) in commands.iter().zip(told) {
        assert!(told.contains(&silence), "{command:?}: {told}");
    }
    stage.run_ok(&["get", "mcps"]).await;
}
