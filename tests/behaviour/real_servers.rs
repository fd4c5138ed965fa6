//! Real servers from their registries, attached, listed and called through evenkeel by agents of both eras.

use serde_json::Value;

use crate::fixture::EvenkeelFixture;
use crate::support::{Agent, Era, RealServer, everything_server, time_server};

/// Attaches a real server and returns its tools, which must be the same for an agent of each era.
async fn attach_and_list(peer: &RealServer, protocol: &str) -> (EvenkeelFixture, Vec<String>) {
    let fixture = EvenkeelFixture::start(&[("real", &peer.spec())]).await;
    fixture.evenkeel.wait_until_attached("real").await;
    assert_eq!(fixture.server("real").await["status"]["protocolVersion"], protocol);
    let listed = fixture.agent(Era::Legacy).await.tool_names().await;
    assert_eq!(fixture.agent(Era::Modern).await.tool_names().await, listed);
    assert_eq!(fixture.server("real").await["status"]["tools"], listed.len());
    assert!(fixture.evenkeel.condition("real", "Degraded").await.is_none());
    (fixture, listed)
}

#[tokio::test]
#[cfg_attr(without_node, ignore = "needs Node")]
async fn official_everything_server_works_in_the_legacy_era() {
    let peer = everything_server();
    let (fixture, listed) = attach_and_list(&peer, "2025-11-25").await;
    // The last three need a client that takes requests for input.
    assert_eq!(listed.len(), 16, "{listed:?}");
    let url = fixture.evenkeel.url();
    let asked = Agent::connect_with_capabilities(Era::Legacy, &url, r#"{"elicitation":{}}"#).await.unwrap();
    let params = r#"{"name":"real_trigger-elicitation-request","arguments":{}}"#;
    let mut call = asked.start_request("tools/call", params).await.unwrap();
    let request: Value = serde_json::from_str(&call.next_message().await.unwrap().unwrap()).unwrap();
    assert_eq!(request["method"], "elicitation/create");
    assert_eq!(asked.respond(&request["id"].to_string(), r#"{"action":"decline"}"#).await, 202);
    let answer = call.result().await.unwrap();
    assert!(answer.contains("declined"), "{answer}");
    for era in Era::ALL {
        let agent = fixture.agent(era).await;
        assert_eq!(agent.call_text("real_echo", r#"{"message":"héllo"}"#).await, "Echo: héllo");
        let sum = agent.call_text("real_get-sum", r#"{"a":2,"b":40}"#).await;
        assert!(sum.contains("42"), "{sum}");
        let wrong = agent.call("real_get-sum", r#"{"a":"two"}"#).await;
        assert!(
            wrong.as_ref().map_or_else(|error| error.contains("-32602"), |result| result.contains("isError"))
        );
        let params = r#"{"name":"real_trigger-long-running-operation","arguments":{"duration":1,"steps":2},"_meta":{"progressToken":"p"}}"#;
        let mut call = agent.start_request("tools/call", params).await.unwrap();
        let first = call.next_message().await.unwrap().unwrap();
        assert!(
            first.contains("notifications/progress") && first.contains(r#""progressToken":"p""#),
            "{first}"
        );
        let answer = call.result().await.unwrap();
        assert!(answer.contains("completed"), "{answer}");

        let read = async |uri: &str| agent.request("resources/read", &format!(r#"{{"uri":"{uri}"}}"#)).await;
        assert!(read("demo://resource/static/document/features.md").await.unwrap().contains("Features"));
        assert!(read("demo://resource/dynamic/text/3").await.unwrap().contains("Resource 3"));
        let prompt = r#"{"name":"real_args-prompt","arguments":{"city":"Bern"}}"#;
        assert!(agent.request("prompts/get", prompt).await.unwrap().contains("weather in Bern"));
        let complete = r#"{"ref":{"type":"ref/prompt","name":"real_completable-prompt"},"argument":{"name":"department","value":"E"}}"#;
        assert!(agent.request("completion/complete", complete).await.unwrap().contains("Engineering"));
        let uri = "demo://resource/static/document/features.md";
        let mut notifications = agent.notifications_with_resources(&[uri]).await;
        agent.call_text("real_toggle-subscriber-updates", "{}").await;
        notifications.wait_for("resources/updated").await;
        agent.call_text("real_toggle-subscriber-updates", "{}").await;
    }
    let status = fixture.server("real").await["status"].clone();
    assert_eq!((&status["prompts"], &status["resources"]), (&Value::from(4), &Value::from(7)));
}

#[tokio::test]
#[cfg_attr(without_python, ignore = "needs Python")]
async fn official_time_server_works_in_the_modern_era() {
    let peer = time_server();
    let (fixture, listed) = attach_and_list(&peer, "2026-07-28").await;
    assert_eq!(listed, ["real_convert_time", "real_get_current_time"]);
    for era in Era::ALL {
        let agent = fixture.agent(era).await;
        let now = agent.call_text("real_get_current_time", r#"{"timezone":"Europe/Berlin"}"#).await;
        let now: Value = serde_json::from_str(&now).unwrap();
        assert_eq!(now["timezone"], "Europe/Berlin", "{now}");
    }
}
