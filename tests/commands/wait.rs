//! `wait`.

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
