//! Connections: slow readers, limits, and shutdown.

use std::sync::Arc;
use std::time::Duration;

use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};

use crate::fixture::GatewayFixture;
use crate::rig::{FakeHttpServer, Script, ServerEra};
use crate::support::{Agent, Era, eventually, within};

/// Returns the raw `tools/list` request for the view of a namespace.
fn list_request(fixture: &GatewayFixture, namespace: &str, agent: &Agent) -> String {
    let body = r#"{"jsonrpc":"2.0","id":1,"method":"tools/list"}"#;
    let session = agent.session.as_deref().unwrap();
    format!(
        "POST /ns/{namespace}/mcp HTTP/1.1\r\nHost: {}\r\nContent-Type: application/json\r\nMcp-Session-Id: {session}\r\nContent-Length: {}\r\n\r\n{body}",
        fixture.address,
        body.len()
    )
}

#[tokio::test]
async fn stalled_reader_is_evicted_without_affecting_others() {
    let fixture =
        GatewayFixture::start_with(|config| config.limits.write_stall_timeout = Duration::from_millis(300))
            .await;
    let big = format!(r#"{{"name":"t","x":"{}"}}"#, "x".repeat(900_000));
    fixture.publish_raw_tools("large", "s", [big].into_iter());
    // The list of the other agent fits into the socket buffers, so that a pause of the machine does not make it a slow
    // reader.
    fixture.publish_tools("small", "s", &["t"]);
    let agent = Agent::connect(Era::Legacy, &fixture.namespace_url("small")).await;
    eventually("the tool is published", async || (agent.tool_names().await == ["s_t"]).then_some(())).await;

    let stalled = Agent::connect(Era::Legacy, &fixture.namespace_url("large")).await;
    fixture.wait_for_metric("agent_connections 0").await;
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(4_096).unwrap();
    let mut stream = socket.connect(fixture.address).await.unwrap();
    fixture.wait_for_metric("agent_connections 1").await;
    // More responses than the socket buffers hold, and none of them is read.
    let requests = list_request(&fixture, "large", &stalled).repeat(32);
    let _ =
        within("the requests are sent or the connection is closed", stream.write_all(requests.as_bytes()))
            .await;
    assert_eq!(agent.tool_names().await, ["s_t"]);
    fixture.wait_for_metric("agent_evictions_total 1").await;
    fixture.wait_for_metric("agent_connections 0").await;
    assert_eq!(agent.tool_names().await, ["s_t"]);
}

#[tokio::test]
async fn connections_beyond_the_limit_wait() {
    let fixture = GatewayFixture::start_with(|config| config.limits.max_connections = 1).await;
    let first = TcpStream::connect(fixture.address).await.unwrap();
    fixture.wait_for_metric("agent_connections 1").await;
    let url = fixture.url();
    let second = tokio::spawn(async move { Agent::connect(Era::Modern, &url).await });
    tokio::task::yield_now().await;
    fixture.wait_for_metric("agent_connections 1").await;
    assert!(!second.is_finished());
    drop(first);
    within("the second connection is served", second).await.unwrap();
}

#[tokio::test]
async fn idle_connection_is_closed() {
    let fixture =
        GatewayFixture::start_with(|config| config.limits.idle_timeout = Duration::from_millis(200)).await;
    let mut slow = TcpStream::connect(fixture.address).await.unwrap();
    slow.write_all(b"POST /mcp HT").await.unwrap();
    let mut response = Vec::new();
    within("the connection is closed", slow.read_to_end(&mut response)).await.unwrap();
    fixture.wait_for_metric("agent_connections 0").await;

    // A quiet notification stream is a request in flight and is not closed. (Opening it is retried, because a slow
    // machine may exceed the idle timeout.)
    let open = async || {
        let agent = Agent::try_connect(Era::Legacy, &fixture.url()).await.ok()?;
        agent.try_notifications().await.ok()
    };
    let mut notifications = eventually("a stream is open", open).await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    fixture.publish_tools("default", "a", &["t"]);
    notifications.wait_for_tools_changed().await;
}

#[tokio::test]
async fn shutdown_closes_streams_and_finishes_calls() {
    let server = FakeHttpServer::start(Script::new("rig", ServerEra::Legacy).tools(&["sleep"])).await;
    let mut fixture = GatewayFixture::start().await;
    fixture.attach_server("r", &server, json!({})).await;
    let agent = Arc::new(fixture.agent(Era::Legacy).await);
    let mut notifications = agent.notifications().await;
    let caller = agent.clone();
    let call = tokio::spawn(async move { caller.call("r_sleep", r#"{"ms":3000}"#).await });
    eventually("the call is in flight", async || (server.counters().in_flight == 1).then_some(())).await;
    fixture.request_stop();
    notifications.wait_for_end().await;
    assert!(call.await.unwrap().unwrap().contains("slept"));
    fixture.stop().await;
    assert!(TcpStream::connect(fixture.address).await.is_err());
}

#[tokio::test]
async fn shutdown_abandons_calls_after_the_drain_timeout() {
    let server = FakeHttpServer::start(Script::new("rig", ServerEra::Legacy).tools(&["sleep"])).await;
    let mut fixture =
        GatewayFixture::start_with(|config| config.limits.drain_timeout = Duration::from_millis(300)).await;
    fixture.attach_server("r", &server, json!({})).await;
    let agent = fixture.agent(Era::Legacy).await;
    let call = tokio::spawn(async move { agent.call("r_sleep", r#"{"ms":600000}"#).await });
    eventually("the call is in flight", async || (server.counters().in_flight == 1).then_some(())).await;
    fixture.stop().await;
    assert!(call.await.unwrap().is_err());
}
