//! Servers that speak HTTP+SSE of 2024-11-05, declared as agents' files declare them.

use serde_json::json;

use crate::fixture::EvenkeelFixture;
use crate::rig::{ControlCommand, FakeHttpServer, Script, ServerEra};
use crate::support::{Era, eventually};

#[tokio::test]
async fn sse_server_of_an_agents_file_is_attached_and_connected_again() {
    let mut script = Script::new("old", ServerEra::Legacy).tools(&["echo"]);
    (script.http.sse, script.http.sessions) = (true, false);
    let rig = FakeHttpServer::start(script).await;
    let fixture = EvenkeelFixture::start(&[]).await;
    let entry = json!({ "mcpServers": { "old": { "type": "sse", "url": rig.url() } } });
    fixture.declared.write(".mcp.json", &entry.to_string());
    fixture.evenkeel.wait_until_attached("old").await;
    let degraded = fixture.evenkeel.wait_for("old", "Degraded", "True", "NonCompliant").await;
    assert!(degraded.message.contains("HTTP+SSE, which MCP deprecated"), "{degraded:?}");
    assert_eq!(fixture.server("old").await["status"]["transport"], "sse");
    let agents = [fixture.agent(Era::Legacy).await, fixture.agent(Era::Modern).await];
    for agent in &agents {
        agent.call_text("old_echo", "{}").await;
    }
    rig.send_command(ControlCommand::CloseStreams);
    eventually("the server is connected again", async || (rig.counters().initializes() == 2).then_some(()))
        .await;
    fixture.evenkeel.wait_until_attached("old").await;
    for agent in &agents {
        agent.call_text("old_echo", "{}").await;
    }
    fixture.declared.write(".mcp.json", "{}");
    fixture.attach("other", &FakeHttpServer::start(Script::default()).await.spec()).await;
    eventually("the stream is closed", async || (rig.counters().streams == 0).then_some(())).await;
    assert_eq!(rig.counters().complaints, Vec::<String>::new());
}
