//! Tests of responses that HTTP allows, though few servers send them.

use std::time::Duration;

use evenkeel::resource::{DigestKey, Endpoint, HttpEndpoint, HttpTransportKind, ProtocolMode, Transport};
use evenkeel::wire::{
    Connection, ConnectionContext, ConnectionEvent, ConnectionEvents, HealthRequest, ListKind, open,
};

use super::{PROBE_TIMEOUT, TestServer, TransportKind, call, connect, request};
use crate::rig::{Action, FakeHttpServer, Rule, Script, ServerEra};
use crate::support::reverse_proxy::{ProxyBehavior, ReverseProxy};
use crate::support::within;

#[tokio::test]
async fn media_types_are_read_as_http_spells_them() {
    const JSON: &str = r#"{"jsonrpc":"2.0","id":null,"error":{"code":-32603,"message":"fine"}}"#;
    let event = format!("event: message\ndata: {JSON}\n\n");
    for (content_type, body) in [
        (Some("Application/JSON; Charset=utf-8"), JSON),
        (Some("application/json;charset=UTF-8"), JSON),
        (Some("text/plain"), JSON),
        (None, JSON),
        (Some("TEXT/EVENT-STREAM;charset=utf-8"), &event),
        (Some("text/plain; charset=utf-8"), &event),
        (None, &event),
    ] {
        let headers = content_type.map(|value| ("Content-Type".to_owned(), value.to_owned()));
        let response =
            Action::Http { status: 200, headers: headers.into_iter().collect(), body: body.into() };
        let script =
            Script::new("odd", ServerEra::Legacy).tools(&["echo"]).on("tools/call", Rule::times(1, response));
        let server = TestServer::start(TransportKind::Http, script).await;
        let (connection, _events) = connect(&server).await.unwrap();
        let result = call(&connection, "echo", "{}").await;
        let error = result.unwrap_or_else(|error| panic!("{content_type:?}: {error}")).unwrap_err();
        assert!(error.contains("fine"), "{content_type:?}: {error}");
        connection.close().await;
    }
}

#[tokio::test]
async fn redirect_within_the_origin_is_followed_at_any_time() {
    for status in [307, 308] {
        let moved = || Rule::times(1, Action::status_with(status, "Location", "/moved?here=1"));
        let script = Script::new("moved", ServerEra::Legacy)
            .tools(&["echo"])
            .on("tools/call", moved())
            .on("GET", moved());
        let server = TestServer::start(TransportKind::Http, script).await;
        let (connection, mut events) = connect(&server).await.unwrap();
        events.subscribe().await.unwrap();
        let counters = server.counters().await;
        assert_eq!((counters.count("GET"), counters.streams), (2, 1), "{status}");
        call(&connection, "echo", "{}").await.unwrap().unwrap();
        connection.close().await;
    }
}

/// A site may send browsers to a page, as with `GET /mcp` to `/docs`.
#[tokio::test]
async fn redirect_of_the_stream_does_not_move_the_calls() {
    let moved = Action::status_with(308, "Location", "/docs");
    let script = Script::new("site", ServerEra::Legacy).tools(&["echo"]).on("GET", Rule::times(1, moved));
    let server = TestServer::start(TransportKind::Http, script).await;
    let (connection, mut events) = connect(&server).await.unwrap();
    events.subscribe().await.unwrap();
    call(&connection, "echo", "{}").await.unwrap().unwrap();
    let TestServer::Http(rig) = &server else { unreachable!() };
    let paths: Vec<_> = rig.counters().posted_paths.into_iter().collect();
    assert_eq!(paths, ["/mcp"], "only the GET went to the page");
    connection.close().await;
}

/// Connects to the fake server through a proxy.
async fn connect_through(proxy: &ReverseProxy, rig: &FakeHttpServer) -> (Connection, ConnectionEvents) {
    let url: url::Url = rig.url().parse().unwrap();
    let url = proxy.url(url.path()).parse().unwrap();
    let transport = Transport::Http(HttpEndpoint {
        kind: HttpTransportKind::StreamableHttp,
        url,
        headers: Vec::new(),
        ca: None,
        oauth: None,
    });
    let endpoint = Endpoint::new(transport, ProtocolMode::Auto, &DigestKey::new(b"test"));
    let context = ConnectionContext::default();
    let (connection, mut events) =
        within("the connection opens", open(&endpoint, None, PROBE_TIMEOUT, &context)).await.unwrap();
    events.subscribe().await.unwrap();
    (connection, events)
}

async fn start_proxy(rig: &FakeHttpServer, behavior: ProxyBehavior) -> ReverseProxy {
    let url: url::Url = rig.url().parse().unwrap();
    ReverseProxy::start(url.socket_addrs(|| None).unwrap()[0], behavior).await
}

/// Compressed responses, and 103 Early Hints before each response: calls, lists, checks and streams work.
#[tokio::test]
async fn server_behind_a_proxy_that_changes_responses() {
    for behavior in [ProxyBehavior::Compress, ProxyBehavior::EarlyHints] {
        for era in [ServerEra::Legacy, ServerEra::Modern] {
            let mut script = Script::new("changed", era).tools(&["echo", "big"]);
            script.http.priming = era == ServerEra::Legacy;
            let rig = FakeHttpServer::start(script).await;
            let proxy = start_proxy(&rig, behavior).await;
            let (connection, mut events) = connect_through(&proxy, &rig).await;
            let big = call(&connection, "big", r#"{"bytes":300000}"#).await.unwrap().unwrap();
            assert!(big.len() > 300_000, "{behavior:?} {era:?}");
            for _ in 0..2 {
                connection.check_health(HealthRequest::Ping).await.unwrap();
            }
            rig.edit_script(|script| script.tools = Script::new("changed", era).tools(&["late"]).tools);
            let change = async {
                while !matches!(events.next().await, ConnectionEvent::ListChanged(ListKind::Tools)) {}
            };
            within("a change is heard", change).await;
            connection.close().await;
        }
    }
}

/// The proxy ends the notification stream and the kept connections again and again.
#[tokio::test]
async fn server_behind_a_proxy_that_cuts_idle_connections() {
    let rig = FakeHttpServer::start(Script::new("cut", ServerEra::Legacy).tools(&["echo"])).await;
    let proxy = start_proxy(&rig, ProxyBehavior::CutIdle(Duration::from_millis(300))).await;
    let (connection, mut events) = connect_through(&proxy, &rig).await;
    let reading = tokio::spawn(async move {
        loop {
            if let ConnectionEvent::Lost(error) = events.next().await {
                return error;
            }
        }
    });
    for _ in 0..4 {
        call(&connection, "echo", "{}").await.unwrap().unwrap();
        tokio::time::sleep(Duration::from_millis(400)).await;
    }
    assert_eq!(rig.counters().initializes(), 1);
    assert!(!reading.is_finished(), "{:?}", reading.await);
    reading.abort();
    connection.close().await;
}

#[tokio::test]
async fn long_headers_are_read() {
    let long = "x".repeat(32 << 10);
    let body = r#"{"jsonrpc":"2.0","id":null,"error":{"code":-32603,"message":"fine"}}"#;
    let headers = [("Content-Type", "application/json"), ("X-Policy", &long)];
    let headers = headers.map(|(name, value)| (name.to_owned(), value.to_owned())).into();
    let response = Action::Http { status: 200, headers, body: body.into() };
    let script = Script::new("long", ServerEra::Legacy)
        .tools(&["echo"])
        .on("tools/call", Rule::times(1, response.clone()))
        .on("ping", Rule::times(1, response));
    let server = TestServer::start(TransportKind::Http, script).await;
    let (connection, _events) = connect(&server).await.unwrap();
    assert!(call(&connection, "echo", "{}").await.unwrap().unwrap_err().contains("fine"));
    connection.check_health(HealthRequest::Ping).await.unwrap();
    connection.close().await;
}

/// The server may have closed a kept connection just before the request arrives.
#[tokio::test]
async fn only_a_request_that_reads_is_repeated_when_a_kept_connection_breaks() {
    let script = Script::new("closing", ServerEra::Legacy)
        .tools(&["echo"])
        .on("tools/list", Rule::times(1, Action::Drop))
        .on("tools/call", Rule::times(1, Action::Drop));
    let server = TestServer::start(TransportKind::Http, script).await;
    let (connection, _events) = connect(&server).await.unwrap();
    request(&connection, "tools/list", "{}").await.unwrap().unwrap();
    let error = call(&connection, "echo", "{}").await.unwrap_err();
    assert!(error.dispatched && !error.ends_connection(), "{error}");
    let counters = server.counters().await;
    assert_eq!((counters.count("tools/list"), counters.count("tools/call")), (2, 1));
    call(&connection, "echo", "{}").await.unwrap().unwrap();
    connection.close().await;
}
