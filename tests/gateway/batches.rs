//! JSON-RPC batches, which only sessions of 2025-03-26 have.

use hyper::Method;
use serde_json::{Value, json};

use crate::fixture::GatewayFixture;
use crate::rig::{FakeHttpServer, Script, ServerEra};
use crate::support::http::{HttpResponse, send};
use crate::support::{eventually, within};

const BOTH: &str = "application/json, text/event-stream";

async fn post(url: &str, session: Option<&str>, accept: &str, body: &str) -> HttpResponse {
    let mut headers = vec![("Content-Type", "application/json"), ("Accept", accept)];
    headers.extend(session.map(|session| ("Mcp-Session-Id", session)));
    within("a response", send(Method::POST, url, &headers, body)).await.unwrap()
}

/// Opens a session of a protocol version and returns its id.
async fn open_session(url: &str, version: &str) -> String {
    let params = json!({ "protocolVersion": version, "capabilities": {}, "clientInfo": { "name": "t", "version": "1" } });
    let body = json!({ "jsonrpc": "2.0", "id": 1, "method": "initialize", "params": params });
    let response = post(url, None, BOTH, &body.to_string()).await;
    response.header("mcp-session-id").unwrap().to_owned()
}

/// A gateway with a server, and a session of 2025-03-26.
struct BatchFixture {
    gateway: GatewayFixture,
    server: FakeHttpServer,
    session: String,
}

impl BatchFixture {
    async fn start() -> Self {
        let server =
            FakeHttpServer::start(Script::new("rig", ServerEra::Legacy).tools(&["echo", "sleep"])).await;
        let gateway = GatewayFixture::start().await;
        gateway.attach_server("r", &server, json!({})).await;
        let session = open_session(&gateway.url(), "2025-03-26").await;
        Self { gateway, server, session }
    }

    async fn post(&self, accept: &str, batch: &Value) -> HttpResponse {
        post(&self.gateway.url(), Some(&self.session), accept, &batch.to_string()).await
    }

    async fn wait_for_calls(&self, count: u64) {
        let in_flight = async || (self.server.counters().in_flight == count).then_some(());
        eventually("the calls are in flight", in_flight).await;
    }

    async fn cancel(&self, id: &Value) {
        let params = json!({ "requestId": id });
        let body = json!({ "jsonrpc": "2.0", "method": "notifications/cancelled", "params": params });
        assert_eq!(self.post(BOTH, &body).await.status, 202);
    }
}

fn request(id: impl Into<Value>, method: &str, params: &Value) -> Value {
    json!({ "jsonrpc": "2.0", "id": id.into(), "method": method, "params": params })
}

fn call(id: impl Into<Value>, tool: &str, arguments: &Value) -> Value {
    let meta = json!({ "progressToken": 1 });
    request(id, "tools/call", &json!({ "name": tool, "arguments": arguments, "_meta": meta }))
}

fn ids(messages: &[Value]) -> Vec<Value> {
    messages.iter().map(|message| message["id"].clone()).collect()
}

/// Returns the messages of an event stream.
async fn events(mut response: HttpResponse) -> Vec<Value> {
    assert!(response.is_stream());
    let mut messages = Vec::new();
    while let Some(event) = within("an event", response.next_event()).await.unwrap() {
        messages.push(serde_json::from_str(&event).unwrap());
    }
    messages
}

#[tokio::test]
async fn batch_is_answered_with_an_array() {
    let fixture = BatchFixture::start().await;
    let batch = json!([
        request("a", "ping", &json!({})),
        json!({ "jsonrpc": "2.0", "method": "notifications/initialized" }),
        call(7, "r_echo", &json!({ "who": "me" })),
        request(8, "tools/list", &json!({})),
        request(9, "no/such", &json!({})),
        json!(5),
        json!({ "jsonrpc": "2.0", "id": null, "method": "ping" }),
    ]);
    for accept in [BOTH, "application/json"] {
        let response = fixture.post(accept, &batch).await;
        assert_eq!((response.status, response.header("content-type")), (200, Some("application/json")));
        let messages: Vec<Value> = serde_json::from_str(&response.text().await.unwrap()).unwrap();
        let expected = [json!("a"), json!(7), json!(8), json!(9), Value::Null, Value::Null];
        assert_eq!(ids(&messages), expected);
        assert!(messages[1]["result"]["content"][0]["text"].as_str().unwrap().contains(r#""who":"me""#));
        assert_eq!(messages[2]["result"]["tools"][0]["name"], "r_echo");
        let codes = [3, 4, 5].map(|place: usize| messages[place]["error"]["code"].clone());
        assert_eq!(codes, [json!(-32601), json!(-32600), json!(-32600)]);
    }
    let notification = json!({ "jsonrpc": "2.0", "method": "notifications/initialized" });
    let response = fixture.post(BOTH, &json!([notification, notification])).await;
    assert_eq!((response.status, response.text().await.unwrap().as_str()), (202, ""));
}

#[tokio::test]
async fn requests_of_a_batch_run_at_the_same_time_and_stream_their_progress() {
    let fixture = BatchFixture::start().await;
    let batch = json!([
        call("slow", "r_sleep", &json!({ "ms": 600_000 })),
        call("steps", "r_sleep", &json!({ "ms": 50, "steps": 2 })),
        call("fast", "r_echo", &json!({})),
    ]);
    let response = async { events(fixture.post(BOTH, &batch).await).await };
    let cancel = async {
        eventually("only the slow call is left", async || {
            let counters = fixture.server.counters();
            (counters.calls() == 3 && counters.in_flight == 1).then_some(())
        })
        .await;
        fixture.cancel(&json!("slow")).await;
    };
    let (messages, ()) = tokio::join!(response, cancel);
    let progress = messages.iter().filter(|message| message["method"] == "notifications/progress").count();
    assert_eq!(progress, 2, "{messages:?}");
    let mut responses = ids(&messages);
    responses.retain(|id| !id.is_null());
    responses.sort_by_key(ToString::to_string);
    assert_eq!(responses, ["fast", "steps"], "the cancelled request has no response");
    fixture.wait_for_calls(0).await;
}

#[tokio::test]
async fn agent_that_accepts_only_json_gets_an_array_without_cancelled_requests() {
    let fixture = BatchFixture::start().await;
    let batch = json!([
        call(1, "r_sleep", &json!({ "ms": 600_000 })),
        call(2, "r_sleep", &json!({ "ms": 50, "steps": 2 }))
    ]);
    let cancel = async {
        fixture.wait_for_calls(2).await;
        fixture.cancel(&json!(1)).await;
    };
    let (response, ()) = tokio::join!(fixture.post("application/json", &batch), cancel);
    let messages: Vec<Value> = serde_json::from_str(&response.text().await.unwrap()).unwrap();
    assert_eq!(ids(&messages), [json!(2)]);
}

#[tokio::test]
async fn calls_of_a_batch_continue_after_a_disconnect() {
    let fixture = BatchFixture::start().await;
    let sleep = |id: u64| call(id, "r_sleep", &json!({ "ms": 600_000 }));
    let batch = json!([sleep(1), sleep(2)]);
    tokio::select! {
        _ = fixture.post(BOTH, &batch) => panic!("the calls must not end"),
        () = fixture.wait_for_calls(2) => {}
    }
    let response = fixture.post(BOTH, &json!([call(3, "r_echo", &json!({}))])).await;
    assert_eq!(response.status, 200);
    assert_eq!(fixture.server.counters().in_flight, 2);
    fixture.cancel(&json!(1)).await;
    fixture.wait_for_calls(1).await;
    fixture.cancel(&json!(2)).await;
    fixture.wait_for_calls(0).await;
}

#[tokio::test]
async fn batch_that_is_not_permitted_is_refused_as_a_whole() {
    let fixture = BatchFixture::start().await;
    let url = fixture.gateway.url();
    let echo = call(1, "r_echo", &json!({}));
    let many: Vec<_> = (0..65_u64).map(|id| call(id, "r_echo", &json!({}))).collect();
    for batch in [
        json!([]),
        json!([echo, echo]),
        json!([echo, request(2, "initialize", &json!({ "protocolVersion": "2025-03-26" }))]),
        json!(many),
    ] {
        let response = fixture.post(BOTH, &batch).await;
        let error: Value = serde_json::from_str(&response.text().await.unwrap()).unwrap();
        assert_eq!((&error["error"]["code"], &error["id"]), (&json!(-32600), &Value::Null), "{error}");
    }
    let batch = json!([echo]).to_string();
    for version in ["2024-11-05", "2025-06-18", "2025-11-25"] {
        let session = open_session(&url, version).await;
        let response = post(&url, Some(&session), BOTH, &batch).await;
        let status = response.status;
        let text = response.text().await.unwrap();
        assert!(status == 400 && text.contains("-32600") && text.contains(version), "{text}");
    }
    for (session, expected) in [(None, 400), (Some("made-up"), 404)] {
        assert_eq!(post(&url, session, BOTH, &batch).await.status, expected);
    }
    let modern = [
        ("Content-Type", "application/json"),
        ("MCP-Protocol-Version", "2026-07-28"),
        ("Mcp-Session-Id", &*fixture.session),
    ];
    assert_eq!(send(Method::POST, &url, &modern, &batch).await.unwrap().status, 400);
    assert_eq!(fixture.server.counters().calls(), 0);
}
