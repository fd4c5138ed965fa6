//! A `kind: List`, as `kubectl` and `evenkeel` print it, in the place of single files.

use std::process::Output;

use crate::rig::{Era as RigEra, Http, Script, Stdio};
use crate::stage::Stage;
use crate::support::{Era, eventually};

fn run(stage: &Stage, args: &[&str]) -> Output {
    stage.evenkeel.command(args).env("EVENKEEL_DIR", stage.declared.path()).output().unwrap()
}

/// A server's uid, generation and reason.
async fn is(stage: &Stage, name: &str) -> (String, i64, String) {
    let server = stage.server(name).await;
    let ready = stage.evenkeel.condition(name, "Ready").await.unwrap();
    let metadata = &server["metadata"];
    let uid = metadata["uid"].as_str().unwrap().to_owned();
    (uid, metadata["generation"].as_i64().unwrap(), ready.reason)
}

#[tokio::test]
async fn what_get_prints_is_the_same_fleet_in_one_file() {
    let (http, stdio) = (Http::start(Script::new("h", RigEra::Legacy)).await, Stdio::new(Script::default()));
    let mut stage = Stage::start(&[("h", &http.spec()), ("s", &stdio.spec(""))]).await;
    for name in ["h", "s"] {
        stage.evenkeel.attached(name).await;
    }
    let before = [is(&stage, "h").await, is(&stage, "s").await];
    let agent = stage.agent(Era::Legacy).await;
    let tools = agent.tools().await;

    let printed = run(&stage, &["get", "mcpservers", "-o", "yaml"]);
    let printed = String::from_utf8(printed.stdout).unwrap();
    assert!(printed.contains("kind: List"), "{printed}");
    stage.declared.write("all.yaml", &printed);
    stage.declared.remove("h.yaml");
    stage.declared.remove("s.yaml");
    eventually("the list is in force", async || {
        let source = run(&stage, &["get", "sources", "-o", "yaml"]);
        let text = String::from_utf8(source.stdout).unwrap();
        // What stood in two files is told of no more.
        (!text.contains("DuplicateName")).then_some(())
    })
    .await;
    // Another change, which comes after it.
    stage.attach("marker", &http.spec()).await;
    assert_eq!([is(&stage, "h").await, is(&stage, "s").await], before);
    assert_eq!(
        (http.counters().initializes(), stdio.processes().len()),
        (2, 1),
        "of the marker, and no other"
    );
    assert!(tools.iter().all(|tool| tool.starts_with("h_") || tool.starts_with("s_")));
    agent.text("h_echo", "{}").await;
    agent.text("s_echo", "{}").await;

    // So it is after a restart, and the list can be checked as any file.
    stage.evenkeel.kill();
    stage.evenkeel.start_again().await;
    for name in ["h", "s"] {
        stage.evenkeel.attached(name).await;
    }
    assert_eq!([is(&stage, "h").await, is(&stage, "s").await], before);
    let directory = stage.declared.path().to_str().unwrap();
    let valid = run(&stage, &["validate", directory]);
    assert!(valid.status.success(), "{}", String::from_utf8_lossy(&valid.stdout));
    let plan = run(&stage, &["plan", directory]);
    let plan = String::from_utf8(plan.stdout).unwrap();
    assert!(plan.contains("0 to add, 0 to change, 0 to remove, 3 unchanged"), "{plan}");

    // The commands that edit files leave a list as it is, and say where the server is.
    let removed = run(&stage, &["mcp", "remove", "s"]);
    let why = String::from_utf8(removed.stderr).unwrap();
    assert!(!removed.status.success() && why.contains("as an item of a list, at "), "{why}");
    let added = run(&stage, &["mcp", "add", "h", "http://127.0.0.1:1/"]);
    assert!(!added.status.success(), "{added:?}");
    assert_eq!(std::fs::read_to_string(stage.declared.path().join("all.yaml")).unwrap(), printed);
}

#[tokio::test]
async fn a_value_that_was_redacted_reaches_no_server() {
    let rig = Stdio::new(Script::default());
    let spec = rig.spec(", env: [{ name: TOKEN, value: hunter2 }]");
    let stage = Stage::start(&[("s", &spec)]).await;
    stage.evenkeel.attached("s").await;
    let printed = run(&stage, &["get", "mcpserver/s", "-o", "yaml"]);
    let printed = String::from_utf8(printed.stdout).unwrap();
    stage.declared.write("s.yaml", &printed);
    let refused = stage.evenkeel.wait_for("s", "Accepted", "False", "InvalidSpec").await;
    let expected = "spec.stdio.env[0].value: the value of TOKEN is \"<redacted>\"";
    assert!(refused.message.contains(expected), "{refused:?}");
    stage.evenkeel.wait_for("s", "Attached", "True", "ServingPreviousGeneration").await;
    assert_eq!(rig.processes().len(), 1, "what is in force stays");
    stage.declared.write("new.yaml", &printed.replace("name: s\n", "name: new\n"));
    stage.evenkeel.wait_for("new", "Accepted", "False", "InvalidSpec").await;
    assert_eq!(rig.processes().len(), 1);
}

#[tokio::test]
async fn a_file_that_is_not_understood_any_more_takes_no_server_away() {
    let rig = Http::start(Script::new("h", RigEra::Dual)).await;
    let stage = Stage::start(&[("h", &rig.spec())]).await;
    stage.evenkeel.attached("h").await;
    let attempts = rig.counters().of("server/discover");
    for (text, why) in [
        ("hello\n", "it is no object of Kubernetes"),
        ("kind: McpServer\nmetadata: { name: h }\n", "it has no apiVersion"),
        ("apiVersion: evenkeel.dev/v1beta1\nkind: McpServerList\nitems: []\n", "is not known"),
    ] {
        stage.declared.write("h.yaml", text);
        let accepted = eventually("it is told", async || {
            let accepted = stage.evenkeel.condition("h", "Accepted").await?;
            accepted.message.contains(why).then_some(accepted)
        })
        .await;
        assert_eq!(accepted.reason, "ParseError", "{accepted:?}");
        let source = run(&stage, &["get", "sources", "-o", "yaml"]);
        assert!(String::from_utf8(source.stdout).unwrap().contains(why));
        let checked = run(&stage, &["validate", stage.declared.path().to_str().unwrap()]);
        let told = [checked.stdout, checked.stderr].map(|bytes| String::from_utf8(bytes).unwrap());
        // A file without a word of ours may be anybody's, for all that a check can know.
        assert!(told.concat().contains(why) || !text.contains("McpServer"), "{told:?}");
        stage.agent(Era::Modern).await.text("h_echo", "{}").await;
    }
    assert_eq!(rig.counters().of("server/discover"), attempts, "the connection is the same");
}
