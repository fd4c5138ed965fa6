//! A `kind: List`, as printed by `kubectl` and `evenkeel`, in place of single files.

use std::process::Output;

use crate::fixture::EvenkeelFixture;
use crate::rig::{FakeHttpServer, FakeStdioServer, Script, ServerEra};
use crate::support::{Era, eventually};

fn run_cli(fixture: &EvenkeelFixture, args: &[&str]) -> Output {
    fixture.evenkeel.command(args).env("EVENKEEL_DIR", fixture.declared.path()).output().unwrap()
}

/// Returns a server's uid, generation and Ready reason.
async fn server_identity(fixture: &EvenkeelFixture, name: &str) -> (String, i64, String) {
    let server = fixture.server(name).await;
    let ready = fixture.evenkeel.condition(name, "Ready").await.unwrap();
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
    let mut fixture = EvenkeelFixture::start(&[("h", &http.spec()), ("s", &stdio.spec(""))]).await;
    for name in ["h", "s"] {
        fixture.evenkeel.wait_until_attached(name).await;
    }
    let before = [server_identity(&fixture, "h").await, server_identity(&fixture, "s").await];
    let agent = fixture.agent(Era::Legacy).await;
    let tools = agent.tool_names().await;

    let printed = run_cli(&fixture, &["get", "mcpservers", "-o", "yaml"]);
    let printed = String::from_utf8(printed.stdout).unwrap();
    assert!(printed.contains("kind: List"), "{printed}");
    fixture.declared.write("all.yaml", &printed);
    fixture.declared.remove("h.yaml");
    fixture.declared.remove("s.yaml");
    eventually("the list is applied", async || {
        let source = run_cli(&fixture, &["get", "sources", "-o", "yaml"]);
        let text = String::from_utf8(source.stdout).unwrap();
        // The duplicates of the list and the single files are no longer reported.
        (!text.contains("DuplicateName")).then_some(())
    })
    .await;
    // A later change, which is applied after the list.
    fixture.attach("marker", &http.spec()).await;
    assert_eq!([server_identity(&fixture, "h").await, server_identity(&fixture, "s").await], before);
    assert_eq!(
        (http.counters().initializes(), stdio.processes().len()),
        (2, 1),
        "only the marker opened a new connection"
    );
    assert!(tools.iter().all(|tool| tool.starts_with("h_") || tool.starts_with("s_")));
    agent.call_text("h_echo", "{}").await;
    agent.call_text("s_echo", "{}").await;

    // The same holds after a restart, and the list can be validated like any file.
    fixture.evenkeel.kill();
    fixture.evenkeel.restart().await;
    for name in ["h", "s"] {
        fixture.evenkeel.wait_until_attached(name).await;
    }
    assert_eq!([server_identity(&fixture, "h").await, server_identity(&fixture, "s").await], before);
    let directory = fixture.declared.path().to_str().unwrap();
    let valid = run_cli(&fixture, &["validate", directory]);
    assert!(valid.status.success(), "{}", String::from_utf8_lossy(&valid.stdout));
    let plan = run_cli(&fixture, &["plan", directory]);
    let plan = String::from_utf8(plan.stdout).unwrap();
    assert!(plan.contains("0 to add, 0 to change, 0 to remove, 3 unchanged"), "{plan}");

    // The commands that edit files do not change a list, and report the location of the server.
    let removed = run_cli(&fixture, &["mcp", "remove", "s"]);
    let message = String::from_utf8(removed.stderr).unwrap();
    assert!(!removed.status.success() && message.contains("as an item of a list, at "), "{message}");
    let added = run_cli(&fixture, &["mcp", "add", "h", "http://127.0.0.1:1/"]);
    assert!(!added.status.success(), "{added:?}");
    assert_eq!(std::fs::read_to_string(fixture.declared.path().join("all.yaml")).unwrap(), printed);
}

#[tokio::test]
async fn redacted_value_is_rejected() {
    let rig = FakeStdioServer::new(Script::default());
    let spec = rig.spec(", env: [{ name: TOKEN, value: hunter2 }]");
    let fixture = EvenkeelFixture::start(&[("s", &spec)]).await;
    fixture.evenkeel.wait_until_attached("s").await;
    let printed = run_cli(&fixture, &["get", "mcpserver/s", "-o", "yaml"]);
    let printed = String::from_utf8(printed.stdout).unwrap();
    fixture.declared.write("s.yaml", &printed);
    let refused = fixture.evenkeel.wait_for("s", "Accepted", "False", "InvalidSpec").await;
    let expected = "spec.stdio.env[0].value: the value of TOKEN is \"<redacted>\"";
    assert!(refused.message.contains(expected), "{refused:?}");
    fixture.evenkeel.wait_for("s", "Attached", "True", "ServingPreviousGeneration").await;
    assert_eq!(rig.processes().len(), 1, "the applied generation stays");
    fixture.declared.write("new.yaml", &printed.replace("name: s\n", "name: new\n"));
    fixture.evenkeel.wait_for("new", "Accepted", "False", "InvalidSpec").await;
    assert_eq!(rig.processes().len(), 1);
}

#[tokio::test]
async fn unparsable_file_keeps_its_server() {
    let rig = FakeHttpServer::start(Script::new("h", ServerEra::Dual)).await;
    let fixture = EvenkeelFixture::start(&[("h", &rig.spec())]).await;
    fixture.evenkeel.wait_until_attached("h").await;
    let attempts = rig.counters().count("server/discover");
    for (text, why) in [
        ("hello\n", "it is not a Kubernetes object"),
        ("kind: McpServer\nmetadata: { name: h }\n", "apiVersion is missing"),
        ("apiVersion: evenkeel.dev/v1beta1\nkind: McpServerList\nitems: []\n", "unknown apiVersion"),
    ] {
        fixture.declared.write("h.yaml", text);
        let accepted = eventually("the error is reported", async || {
            let accepted = fixture.evenkeel.condition("h", "Accepted").await?;
            accepted.message.contains(why).then_some(accepted)
        })
        .await;
        assert_eq!(accepted.reason, "ParseError", "{accepted:?}");
        let source = run_cli(&fixture, &["get", "sources", "-o", "yaml"]);
        assert!(String::from_utf8(source.stdout).unwrap().contains(why));
        let checked = run_cli(&fixture, &["validate", fixture.declared.path().to_str().unwrap()]);
        let output = [checked.stdout, checked.stderr].map(|bytes| String::from_utf8(bytes).unwrap());
        // A file without any of evenkeel's kinds may belong to another program, so `validate` does not report it.
        assert!(output.concat().contains(why) || !text.contains("McpServer"), "{output:?}");
        fixture.agent(Era::Modern).await.call_text("h_echo", "{}").await;
    }
    assert_eq!(rig.counters().count("server/discover"), attempts, "the connection is the same");
}
