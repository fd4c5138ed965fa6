//! Limits on agents: what is refused, with which error, and which metric counts it.

use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::fixture::GatewayFixture;
use crate::rig::{FakeHttpServer, Script, ServerEra};
use crate::support::{Agent, Era, eventually, within};

/// Sends these bytes and returns the result of the first read.
async fn send_raw(fixture: &GatewayFixture, request: &str) -> String {
    let mut stream = TcpStream::connect(fixture.address).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut response = vec![0; 4_096];
    let read = within("a response", stream.read(&mut response)).await.unwrap();
    String::from_utf8_lossy(&response[..read]).into_owned()
}

fn head(fixture: &GatewayFixture, more: &str, length: usize) -> String {
    let address = fixture.address;
    format!(
        "POST /mcp HTTP/1.1\r\nHost: {address}\r\nContent-Type: application/json\r\n{more}Content-Length: {length}\r\n\r\n"
    )
}

fn tool_error_text(result: &str) -> String {
    let result: Value = serde_json::from_str(result).unwrap();
    assert_eq!(result["isError"], true, "{result}");
    result["content"][0]["text"].as_str().unwrap().to_owned()
}

fn sleep_call(agent: &Arc<Agent>) -> tokio::task::JoinHandle<Result<String, String>> {
    let agent = agent.clone();
    tokio::spawn(async move { agent.call("r_sleep", r#"{"ms":600000}"#).await })
}

async fn wait_for_calls(server: &FakeHttpServer, count: u64) {
    let in_flight = async || (server.counters().in_flight == count).then_some(());
    eventually("the calls are in flight", in_flight).await;
}

#[tokio::test]
async fn request_body_is_limited_in_size_and_time() {
    let fixture = GatewayFixture::start_with(|config| {
        config.limits.max_body_bytes = 64 << 10;
        config.limits.body_timeout = Duration::from_millis(300);
    })
    .await;
    let params = json!({ "a": "x".repeat(70_000) });
    let body = json!({ "jsonrpc": "2.0", "id": 7, "method": "ping", "params": params }).to_string();
    let response = send_raw(&fixture, &(head(&fixture, "", body.len()) + &body)).await;
    assert!(response.starts_with("HTTP/1.1 413"), "{response}");
    assert!(response.contains(r#""id":7"#) && response.contains("larger than 64 KiB"), "{response}");
    fixture.wait_for_metric(r#"agent_refusals_total{limit="body_size"} 1"#).await;

    let slow = head(&fixture, "", 100) + r#"{"jsonrpc":"2.0","#;
    let response = send_raw(&fixture, &slow).await;
    assert!(response.starts_with("HTTP/1.1 408") && response.contains("-32600"), "{response}");
    fixture.wait_for_metric(r#"agent_refusals_total{limit="body_time"} 1"#).await;
}

#[tokio::test]
async fn request_head_is_limited() {
    let fixture = GatewayFixture::start().await;
    // Not complete, so that the gateway has read everything when it refuses it.
    let long = format!("POST /mcp HTTP/1.1\r\nX-Long: {}", "x".repeat(66_000));
    let many = (0..120).map(|number| format!("X-{number}: x\r\n")).collect::<Vec<_>>().concat();
    for request in [long, head(&fixture, &many, 0)] {
        let response = send_raw(&fixture, &request).await;
        assert!(response.starts_with("HTTP/1.1 431"), "{response}");
    }
}

#[tokio::test]
async fn calls_of_a_session_are_limited() {
    let script = Script::new("rig", ServerEra::Legacy).tools(&["echo", "sleep"]);
    let server = FakeHttpServer::start(script.prompts_and_resources(&["p"], &[], &[])).await;
    let fixture = GatewayFixture::start_with(|config| config.limits.max_session_calls = 2).await;
    fixture.attach_server("r", &server, json!({})).await;
    let agent = Arc::new(fixture.agent(Era::Legacy).await);
    let calls = [sleep_call(&agent), sleep_call(&agent)];
    wait_for_calls(&server, 2).await;

    let text = tool_error_text(&agent.call("r_echo", "{}").await.unwrap());
    assert!(text.contains("2 requests in flight") && text.contains("try again"), "{text}");
    let error = agent.request("prompts/get", r#"{"name":"r_p"}"#).await.unwrap_err();
    assert!(error.contains("-32603") && error.contains("2 requests in flight"), "{error}");
    fixture.wait_for_metric(r#"agent_refusals_total{limit="session_calls"} 2"#).await;
    assert_eq!(server.counters().calls(), 2, "a refused call is not sent");
    // Requests that evenkeel answers itself do not count, nor do those of other agents.
    assert_eq!(agent.tool_names().await, ["r_echo", "r_sleep"]);
    for era in Era::ALL {
        fixture.agent(era).await.call_text("r_echo", "{}").await;
    }
    agent.notify("notifications/cancelled", r#"{"requestId":2}"#).await.unwrap();
    wait_for_calls(&server, 1).await;
    agent.call_text("r_echo", "{}").await;
    calls.iter().for_each(tokio::task::JoinHandle::abort);
}

#[tokio::test]
async fn calls_of_a_server_are_limited_for_all_agents_together() {
    let rig = || Script::new("rig", ServerEra::Legacy).tools(&["echo", "sleep"]);
    let (server, other) = (FakeHttpServer::start(rig()).await, FakeHttpServer::start(rig()).await);
    let fixture = GatewayFixture::start_with(|config| config.limits.max_server_calls = 2).await;
    fixture.attach_server("r", &server, json!({})).await;
    fixture.attach_server("o", &other, json!({})).await;
    let [legacy, modern] = Era::ALL;
    let agents = [Arc::new(fixture.agent(legacy).await), Arc::new(fixture.agent(modern).await)];
    let calls = [sleep_call(&agents[0]), sleep_call(&agents[1])];
    wait_for_calls(&server, 2).await;
    for agent in &agents {
        let text = tool_error_text(&agent.call("r_echo", "{}").await.unwrap());
        assert!(text.contains("default/r has 2 calls in flight") && text.contains("again"), "{text}");
        agent.call_text("o_echo", "{}").await;
    }
    fixture.wait_for_metric(r#"agent_refusals_total{limit="server_calls"} 2"#).await;
    fixture.wait_for_metric(r#"calls_total{namespace="default",server="r",outcome="refused"} 2"#).await;
    assert_eq!(server.counters().calls(), 2, "a refused call is not sent");
    // The disconnect of a modern agent cancels its call.
    calls[1].abort();
    wait_for_calls(&server, 1).await;
    eventually("the server accepts calls again", async || {
        agents[0].call("r_echo", "{}").await.unwrap().contains("arguments").then_some(())
    })
    .await;
    calls[0].abort();
}

#[tokio::test]
async fn result_of_a_server_is_limited() {
    let server = FakeHttpServer::start(Script::new("rig", ServerEra::Legacy).tools(&["big"])).await;
    let fixture = GatewayFixture::start().await;
    fixture.attach_server("r", &server, json!({})).await;
    let agent = fixture.agent(Era::Legacy).await;
    let arguments = format!(r#"{{"bytes":{}}}"#, 17 << 20);
    let text = tool_error_text(&agent.call("r_big", &arguments).await.unwrap());
    assert!(text.contains("16 MiB"), "{text}");
    fixture.wait_for_metric(r#"calls_total{namespace="default",server="r",outcome="failed"} 1"#).await;
}

#[tokio::test]
async fn watched_resources_are_limited() {
    let script = Script::new("rig", ServerEra::Legacy).prompts_and_resources(&[], &["x:0"], &["x:{n}"]);
    let server = FakeHttpServer::start(script).await;
    let fixture = GatewayFixture::start().await;
    fixture.attach_server("r", &server, json!({})).await;
    let agent = fixture.agent(Era::Legacy).await;
    let subscribe =
        async |number: u32| agent.request("resources/subscribe", &format!(r#"{{"uri":"x:{number}"}}"#)).await;
    for number in 0..1_000 {
        subscribe(number).await.unwrap();
    }
    let error = subscribe(1_000).await.unwrap_err();
    assert!(error.contains("-32600") && error.contains("unsubscribe"), "{error}");
    assert!(subscribe(7).await.is_ok(), "one that is watched already");
    agent.request("resources/unsubscribe", r#"{"uri":"x:7"}"#).await.unwrap();
    subscribe(1_000).await.unwrap();
    fixture.wait_for_metric(r#"agent_refusals_total{limit="subscriptions"} 1"#).await;

    let uris: Vec<_> = (0..1_003).map(|number| format!("x:{number}")).collect();
    let filter = json!({ "notifications": { "resourceSubscriptions": uris } }).to_string();
    let modern = fixture.agent(Era::Modern).await;
    let mut stream = modern.start_request("subscriptions/listen", &filter).await.unwrap();
    let first: Value = serde_json::from_str(&stream.next_message().await.unwrap().unwrap()).unwrap();
    let accepted = first["params"]["notifications"]["resourceSubscriptions"].as_array().unwrap();
    assert_eq!(accepted.len(), 1_000);
    fixture.wait_for_metric(r#"agent_refusals_total{limit="subscriptions"} 4"#).await;
}
