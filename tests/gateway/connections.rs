//! Connections: slow readers, bounds, and the end.

use std::sync::Arc;
use std::time::Duration;

use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};

use crate::rig::{Era as RigEra, Http as Rig, Script};
use crate::stack::Stack;
use crate::support::{Agent, Era, eventually, within};

/// A request for the list of a namespace.
fn request(stack: &Stack, namespace: &str, agent: &Agent) -> String {
    let body = r#"{"jsonrpc":"2.0","id":1,"method":"tools/list"}"#;
    let session = agent.session.as_deref().unwrap();
    format!(
        "POST /ns/{namespace}/mcp HTTP/1.1\r\nHost: {}\r\nContent-Type: application/json\r\nMcp-Session-Id: {session}\r\nContent-Length: {}\r\n\r\n{body}",
        stack.address,
        body.len()
    )
}

#[tokio::test]
async fn a_reader_that_stops_is_evicted_and_nobody_else_notices() {
    let stack = Stack::with(|config| config.limits.write_stall = Duration::from_millis(300)).await;
    let big = format!(r#"{{"name":"t","x":"{}"}}"#, "x".repeat(900_000));
    stack.offer_raw("large", "s", [big].into_iter());
    // What others list fits into the buffers of the system, so that no pause of the machine makes them slow readers.
    stack.offer("small", "s", &["t"]);
    let agent = Agent::open(Era::Legacy, &stack.namespace_url("small")).await;
    eventually("it is published", async || (agent.tools().await == ["s_t"]).then_some(())).await;

    let lazy = Agent::open(Era::Legacy, &stack.namespace_url("large")).await;
    stack.counts("agent_connections 0").await;
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(4_096).unwrap();
    let mut stream = socket.connect(stack.address).await.unwrap();
    stack.counts("agent_connections 1").await;
    // More than the buffers of the system hold, and none of it is read.
    let requests = request(&stack, "large", &lazy).repeat(32);
    let _ = within("the requests are sent, or refused", stream.write_all(requests.as_bytes())).await;
    assert_eq!(agent.tools().await, ["s_t"]);
    stack.counts("agent_evictions_total 1").await;
    stack.counts("agent_connections 0").await;
    assert_eq!(agent.tools().await, ["s_t"]);
}

#[tokio::test]
async fn connections_are_bounded_and_wait_for_their_turn() {
    let stack = Stack::with(|config| config.limits.connections = 1).await;
    let first = TcpStream::connect(stack.address).await.unwrap();
    stack.counts("agent_connections 1").await;
    let url = stack.url();
    let second = tokio::spawn(async move { Agent::open(Era::Modern, &url).await });
    tokio::task::yield_now().await;
    stack.counts("agent_connections 1").await;
    assert!(!second.is_finished());
    drop(first);
    within("the second is served", second).await.unwrap();
}

#[tokio::test]
async fn a_connection_without_a_request_is_closed() {
    let stack = Stack::with(|config| config.limits.idle = Duration::from_millis(200)).await;
    let mut slow = TcpStream::connect(stack.address).await.unwrap();
    slow.write_all(b"POST /mcp HT").await.unwrap();
    let mut answer = Vec::new();
    within("the connection is closed", slow.read_to_end(&mut answer)).await.unwrap();
    stack.counts("agent_connections 0").await;

    // A stream is a request that goes on, however quiet. (One that is slow to ask for it is closed as well.)
    let open = async || {
        let agent = Agent::try_open(Era::Legacy, &stack.url()).await.ok()?;
        agent.try_notices().await.ok()
    };
    let mut notices = eventually("a stream is open", open).await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    stack.offer("default", "a", &["t"]);
    notices.tools_changed().await;
}

#[tokio::test]
async fn at_the_end_streams_close_and_calls_finish() {
    let rig = Rig::start(Script::new("rig", RigEra::Legacy).tools(&["sleep"])).await;
    let mut stack = Stack::start().await;
    stack.attach("r", &rig, json!({})).await;
    let agent = Arc::new(stack.agent(Era::Legacy).await);
    let mut notices = agent.notices().await;
    let calling = agent.clone();
    let call = tokio::spawn(async move { calling.call("r_sleep", r#"{"ms":3000}"#).await });
    eventually("the call is at work", async || (rig.counters().in_flight == 1).then_some(())).await;
    stack.ask_to_stop();
    notices.ended().await;
    assert!(call.await.unwrap().unwrap().contains("slept"));
    stack.stop().await;
    assert!(TcpStream::connect(stack.address).await.is_err());
}

#[tokio::test]
async fn at_the_end_a_call_that_goes_on_is_left_after_its_bound() {
    let rig = Rig::start(Script::new("rig", RigEra::Legacy).tools(&["sleep"])).await;
    let mut stack = Stack::with(|config| config.limits.drain = Duration::from_millis(300)).await;
    stack.attach("r", &rig, json!({})).await;
    let agent = stack.agent(Era::Legacy).await;
    let call = tokio::spawn(async move { agent.call("r_sleep", r#"{"ms":600000}"#).await });
    eventually("the call is at work", async || (rig.counters().in_flight == 1).then_some(())).await;
    stack.stop().await;
    assert!(call.await.unwrap().is_err());
}
