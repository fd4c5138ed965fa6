//! A `kind: List`, as `kubectl` and `evenkeel` print it, in the place of single files.

use std::process::Output;

use crate::fixture::EvenkeelFixture;
use crate::rig::{FakeHttpServer, FakeStdioServer, Script, ServerEra};
use crate::support::{Era, eventually};

fn run_cli(stage: &EvenkeelFixture, args: &[&str]) -> Output {
    stage.evenkeel.command(args).env("EVENKEEL_DIR", stage.declared.path()).output().unwrap()
}

/// A server's uid, generation and reason.
async fn server_identity(stage: &EvenkeelFixture, name: &str) -> (String, i64, String) {
    let server = stage.server(name).await;
    let ready = stage.evenkeel.condition(name, "Ready").await.unwrap();
    let metadata = &server["metadata"];
    let uid = metadata["uid"].as_str().unwrap().to_owned();
    (uid, metadata["generation"].as_i64().unwrap(), ready.reason)
}

#[tokio::test]
async fn list_printed_by_get_replaces_single_files() {
    let (http, stdio) = (
        FakeHttpServer::start(Script::new("h", ServerEra::Legacy)).await,
        FakeStdioServer::new(Script::default()),
    );
    let mut stage = EvenkeelFixture::start(&[("h", &http.spec()), ("s", &stdio.spec(""))]).await;
    for name in ["h", "s"] {
        stage.evenkeel.wait_until_attached(name).await;
    }
    let before = [server_identity(&stage, "h").await, server_identity(&stage, "s").await];
    let agent = stage.agent(Era::Legacy).await;
    let tools = agent.tool_names().await;

    let printed = run_cli(&stage, &["get", "mcpservers", "-o", "yaml"]);
    let printed = String::from_utf8(printed.stdout).unwrap();
    assert!(printed.contains("kind: List"), "{printed}");
    stage.declared.write("all.yaml", &printed);
    stage.declared.remove("h.yaml");
    stage.declared.remove("s.yaml");
    eventually("the list is in force", async || {
        let source = run_cli(&stage, &["get", "sources", "-o", "yaml"]);
        let text = String::from_utf8(source.stdout).unwrap();
        // What stood in two files is told of no more.
        (!text.contains("DuplicateName")).then_some(())
    })
    .await;
    // Another change, which comes after it.
    stage.attach("marker", &http.spec()).await;
    assert_eq!([server_identity(&stage, "h").await, server_identity(&stage, "s").await], before);
    assert_eq!(
        (http.counters().initializes(), stdio.processes().len()),
        (2, 1),
        "of the marker, and no other"
    );
    assert!(tools.iter().all(|tool| tool.starts_with("h_") || tool.starts_with("s_")));
    agent.call_text("h_echo", "{}").await;
    agent.call_text("s_echo", "{}").await;

    // So it is after a restart, and the list can be checked as any file.
    stage.evenkeel.kill();
    stage.evenkeel.restart().await;
    for name in ["h", "s"] {
        stage.evenkeel.wait_until_attached(name).await;
    }
    assert_eq!([server_identity(&stage, "h").await, server_identity(&stage, "s").await], before);
    let directory = stage.declared.path().to_str().unwrap();
    let valid = run_cli(&stage, &["validate", directory]);
    assert!(valid.status.success(), "{}", String::from_utf8_lossy(&valid.stdout));
    let plan = run_cli(&stage, &["plan", directory]);
    let plan = String::from_utf8(plan.stdout).unwrap();
    assert!(plan.contains("0 to add, 0 to change, 0 to remove, 3 unchanged"), "{plan}");

    // The commands that edit files leave a list as it is, and say where the server is.
    let removed = run_cli(&stage, &["mcp", "remove", "s"]);
    let why = String::from_utf8(removed.stderr).unwrap();
    assert!(!removed.status.success() && why.contains("as an item of a list, at "), "{why}");
    let added = run_cli(&stage, &["mcp", "add", "h", "http://127.0.0.1:1/"]);
    assert!(!added.status.success(), "{added:?}");
    assert_eq!(std::fs::read_to_string(stage.declared.path().join("all.yaml")).unwrap(), printed);
}

#[tokio::test]
async fn redacted_value_is_rejected() {
    let rig = FakeStdioServer::new(Script::default());
    let spec = rig.spec(", env: [{ name: TOKEN, value: hunter2 }]");
    let stage = EvenkeelFixture::start(&[("s", &spec)]).await;
    stage.evenkeel.wait_until_attached("s").await;
    let printed = run_cli(&stage, &["get", "mcpserver/s", "-o", "yaml"]);
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
async fn unparsable_file_keeps_its_server() {
    let rig = FakeHttpServer::start(Script::new("h", ServerEra::Dual)).await;
    let stage = EvenkeelFixture::start(&[("h", &rig.spec())]).await;
    stage.evenkeel.wait_until_attached("h").await;
    let attempts = rig.counters().count("server/discover");
    for (text, why) in [
        ("hello\n", "it is not a Kubernetes object"),
        ("kind: McpServer\nmetadata: { name: h }\n", "it has no apiVersion"),
        ("apiVersion: evenkeel.dev/v1beta1\nkind: McpServerList\nitems: []\n", "unknown apiVersion"),
    ] {
        stage.declared.write("h.yaml", text);
        let accepted = eventually("it is told", async || {
            let accepted = stage.evenkeel.condition("h", "Accepted").await?;
            accepted.message.contains(why).then_some(accepted)
        })
        .await;
        assert_eq!(accepted.reason, "ParseError", "{accepted:?}");
        let source = run_cli(&stage, &["get", "sources", "-o", "yaml"]);
        assert!(String::from_utf8(source.stdout).unwrap().contains(why));
        let checked = run_cli(&stage, &["validate", stage.declared.path().to_str().unwrap()]);
        let told = [checked.stdout, checked.stderr].map(|bytes| String::from_utf8(bytes).unwrap());
        // A file without a word of ours may be anybody's, for all that a check can know.
        assert!(told.concat().contains(why) || !text.contains("McpServer"), "{told:?}");
        stage.agent(Era::Modern).await.call_text("h_echo", "{}").await;
    }
    assert_eq!(rig.counters().count("server/discover"), attempts, "the connection is the same");
}
