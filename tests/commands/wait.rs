//! `wait`.

use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

use crate::rig::{Script, Stdio};
use crate::stage::{Done, Stage};
use crate::support::{Declared, Evenkeel, within};

const MISSING: &str = "stdio: { command: no-such-program-anywhere }";

#[tokio::test]
async fn it_ends_when_the_condition_holds_and_says_why_it_does_not() {
    let server = Stdio::new(Script::default());
    let stage = Stage::start(&[("good", &server.spec("")), ("missing", MISSING)]).await;
    stage.ok(&["wait", "good"]).await;
    stage.ok(&["wait", "mcps/good", "--for", "condition=Ready"]).await;
    stage.ok(&["wait", "missing", "--for", "condition=stalled"]).await;
    stage.ok(&["wait", "missing", "good", "--for=condition=Accepted"]).await;
    stage.ok(&["wait", "missing", "--for=condition=Ready=False"]).await;
    stage.ok(&["wait", "good", "--for=condition=Stalled=False"]).await;

    let said = stage.fails(&["wait", "missing", "good", "--timeout", "100ms"]).await;
    assert!(said.contains("McpServer/missing is Ready=False (CommandNotFound): "), "{said}");
    assert!(said.ends_with("error: not within 100ms\n") && !said.contains("/good"), "{said}");
    let said = stage.fails(&["wait", "--all", "--timeout", "100ms"]).await;
    assert!(said.contains("McpServer/missing"), "{said}");
    let said = stage.fails(&["wait", "goood"]).await;
    assert!(said.contains("did you mean good?"), "{said}");
    for wrong in [&["wait"][..], &["wait", "good", "--for=Ready"], &["wait", "good", "--timeout", "soon"]] {
        assert_eq!(stage.run(wrong).await.code, 2, "{wrong:?}");
    }

    // What is not declared yet is waited for, and so is its end.
    let (soon, gone) = (stage.run(&["wait", "soon"]), stage.run(&["wait", "missing", "--for=delete"]));
    let change = async {
        stage.declared.server("soon", &server.spec(""));
        stage.declared.remove("missing.yaml");
    };
    let (soon, gone, ()) = tokio::join!(soon, gone, change);
    assert_eq!((soon.code, gone.code), (0, 0), "{soon:?} {gone:?}");
    stage.ok(&["wait", "--all"]).await;
}

#[tokio::test]
async fn a_script_waits_for_what_is_required_and_for_evenkeel_itself() {
    let server = Stdio::new(Script::default());
    let declared = Declared::new();
    declared.server("needed", &format!("{MISSING}\nrequired: true"));
    declared.server("other", &server.spec(""));
    let mut evenkeel = Evenkeel::run(declared.path()).await;
    evenkeel.wait_for("needed", "Ready", "False", "CommandNotFound").await;
    let wait = |evenkeel: &Evenkeel, limit: &str| {
        let mut command = evenkeel.command(&["wait", "--required", "--timeout", limit]);
        command.env("EVENKEEL_DIR", declared.path());
        tokio::process::Command::from(command).output()
    };
    let done = Done::of(&within("the wait ends", wait(&evenkeel, "200ms")).await.unwrap());
    assert_eq!(done.code, 1);
    assert!(done.err.contains("McpServer/default/needed: CommandNotFound: "), "{}", done.err);

    evenkeel.terminate().await;
    declared.server("needed", &format!("{}\nrequired: true", server.spec("")));
    // Started first, as scripts may.
    let waiting = tokio::spawn(wait(&evenkeel, "60s"));
    evenkeel.start_again().await;
    let done = Done::of(&within("the wait ends", waiting).await.unwrap().unwrap());
    assert_eq!(done.code, 0, "{done:?}");
}

#[tokio::test]
async fn nothing_counts_before_everything_was_read() {
    let declared = Declared::new();
    for name in ["s1", "s2", "s3", "s4", "s5"] {
        declared.server(name, MISSING);
    }
    let mut evenkeel = Evenkeel::run(declared.path()).await;
    let wait = |evenkeel: &Evenkeel, args: &[&str]| {
        let mut command = evenkeel.command(&[&["wait"], args].concat());
        command.env("EVENKEEL_DIR", declared.path());
        let ended = tokio::process::Command::from(command).output();
        async { Done::of(&within("the wait ends", ended).await.unwrap()) }
    };
    // Started before evenkeel, so that the first answers come from one that has just begun.
    evenkeel.terminate().await;
    let (all, gone) = (
        tokio::spawn(wait(&evenkeel, &["--all", "--timeout", "15s"])),
        tokio::spawn(wait(&evenkeel, &["s1", "--for=delete", "--timeout", "15s"])),
    );
    evenkeel.start_again().await;
    let (all, gone) = (all.await.unwrap(), gone.await.unwrap());
    assert_eq!((all.code, gone.code), (1, 1), "{all:?} {gone:?}");
    assert!(all.err.contains("McpServer/s5 is Ready=False (CommandNotFound): "), "{all:?}");
    assert!(gone.err.contains("McpServer/s1 is still declared"), "{gone:?}");

    // Of another namespace nothing is declared.
    assert_eq!(wait(&evenkeel, &["--all", "-n", "team"]).await.code, 0);
    let broken = "apiVersion: evenkeel.dev/v1alpha1\nkind: McpServer\nmetadata: {\n";
    declared.write("broken.yaml", broken);
    // Each ends when its time is over, which is long enough for a look on a machine that is slow.
    let both = async |args: [&[&str]; 2], says: &str| {
        let [one, other] = args.map(|args| wait(&evenkeel, &[args, &["--timeout", "10s"]].concat()));
        let (one, other) = tokio::join!(one, other);
        for (args, done) in args.iter().zip([one, other]) {
            assert!(done.code == 1 && done.err.contains(says), "{args:?}: {done:?}");
        }
    };
    both([&["--all", "-n", "team"], &["broken"]], "broken.yaml:").await;
    std::fs::remove_dir_all(declared.path()).unwrap();
    both([&["--all", "-n", "team"], &["s7", "--for=delete"]], "does not exist").await;
}

#[tokio::test]
async fn it_waits_for_what_the_files_say_now() {
    let server = Stdio::new(Script::default());
    let stage = Stage::start(&[("clock", &server.spec(""))]).await;
    stage.ok(&["wait", "clock"]).await;
    stage.declared.server("clock", MISSING);
    let done = stage.run(&["wait", "clock", "--timeout", "10s"]).await;
    assert!(done.code == 1 && done.err.contains("CommandNotFound"), "{done:?}");
    stage.declared.server("clock", &server.spec(""));
    stage.ok(&["wait", "clock"]).await;
    stage.declared.server("clock", MISSING);
    stage.ok(&["wait", "clock", "--for=condition=Ready=False"]).await;
    stage.declared.remove("clock.yaml");
    stage.declared.server("other", &server.spec(""));
    stage.ok(&["wait", "clock", "--for=delete"]).await;
    assert_eq!(stage.ok(&["get", "mcps", "-o", "name"]).await, "mcpserver.evenkeel.dev/other\n");
}

#[tokio::test]
async fn a_restart_of_evenkeel_does_not_end_it() {
    let server = Stdio::new(Script::default());
    let mut stage = Stage::start(&[("late", MISSING)]).await;
    stage.evenkeel.wait_for("late", "Ready", "False", "CommandNotFound").await;
    let mut command = stage.evenkeel.command(&["wait", "late", "--timeout", "60s"]);
    command.env("EVENKEEL_DIR", stage.path());
    let mut waiting = tokio::process::Command::from(command).kill_on_drop(true).spawn().unwrap();
    // A look at the files is done for it alone, and then it watches.
    stage.ok(&["wait", "late", "--for=condition=Ready=False"]).await;
    stage.evenkeel.terminate().await;
    stage.evenkeel.start_again().await;
    stage.evenkeel.wait_for("late", "Ready", "False", "CommandNotFound").await;
    assert!(waiting.try_wait().unwrap().is_none(), "it goes on");
    stage.declared.server("late", &server.spec(""));
    assert!(within("it ends", waiting.wait()).await.unwrap().success());
}

/// Whatever the command is doing when evenkeel ends.
#[tokio::test]
async fn a_restart_at_any_moment_does_not_end_it() {
    let mut stage = Stage::start(&[("late", MISSING)]).await;
    stage.evenkeel.wait_for("late", "Ready", "False", "CommandNotFound").await;
    let wait = |stage: &Stage| {
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
        stage.evenkeel.start_again().await;
    }
    let server = Stdio::new(Script::default());
    stage.declared.server("late", &server.spec(""));
    for mut command in waiting {
        assert!(within("it ends", command.wait()).await.unwrap().success());
    }
}

#[tokio::test]
async fn no_command_waits_for_ever_for_a_daemon_that_does_not_answer() {
    let stage = Stage::start(&[("a", MISSING)]).await;
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
    let told = futures_util::future::join_all(commands.map(|command| stage.fails(command))).await;
    kill_process(pid, Signal::CONT).unwrap();
    for (command, told) in commands.iter().zip(told) {
        assert!(told.contains(&silence), "{command:?}: {told}");
    }
    stage.ok(&["get", "mcps"]).await;
}
