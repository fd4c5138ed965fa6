//! Agents of the modern era (2026-07-28): no session, `_meta` in each request, `subscriptions/listen`.

use hyper::Method;
use serde_json::{Value, json};

use crate::fixture::GatewayFixture;
use crate::support::http::send;
use crate::support::{Agent, Era, eventually};

const META: &str = r#""_meta":{"io.modelcontextprotocol/protocolVersion":"2026-07-28","io.modelcontextprotocol/clientCapabilities":{}}"#;

async fn post(fixture: &GatewayFixture, headers: &[(&str, &str)], body: &str) -> (u16, Value) {
    let mut all =
        vec![("Content-Type", "application/json"), ("Accept", "application/json, text/event-stream")];
    all.extend(headers);
    let response = send(Method::POST, &fixture.url(), &all, body).await.unwrap();
    (response.status, serde_json::from_str(&response.text().await.unwrap()).unwrap_or_default())
}

#[tokio::test]
async fn discover_returns_versions_and_capabilities() {
    let fixture = GatewayFixture::start().await;
    let agent = fixture.agent(Era::Modern).await;
    let discovered: Value = serde_json::from_str(&agent.handshake_result).unwrap();
    let expected = json!({
        "resultType": "complete",
        "supportedVersions": ["2026-07-28", "2025-11-25", "2025-06-18", "2025-03-26", "2024-11-05"],
        "capabilities": {
                    "tools": { "listChanged": true },
                    "prompts": { "listChanged": true },
                    "resources": { "listChanged": true, "subscribe": true },
                    "completions": {},
                    "logging": {},
                    "extensions": { "io.modelcontextprotocol/skills": { "directoryRead": true } },
                },
        "ttlMs": 0,
        "cacheScope": "private",
        "_meta": {
            "io.modelcontextprotocol/serverInfo": { "name": "evenkeel", "version": env!("CARGO_PKG_VERSION") },
        },
    });
    assert_eq!(discovered, expected);
}

#[tokio::test]
async fn lists_carry_ttl_and_cache_scope() {
    let fixture = GatewayFixture::start().await;
    fixture.publish_tools("default", "a", &["t"]);
    let agent = fixture.agent(Era::Modern).await;
    eventually("the tool is published", async || (agent.tool_names().await == ["a_t"]).then_some(())).await;
    let list: Value = serde_json::from_str(&agent.request("tools/list", "{}").await.unwrap()).unwrap();
    let expected = json!({ "resultType": "complete", "ttlMs": 0, "cacheScope": "private", "tools": [{ "name": "a_t" }] });
    assert_eq!(list, expected);
}

#[tokio::test]
async fn mismatched_requests_get_the_specified_errors() {
    let fixture = GatewayFixture::start().await;
    let version = ("MCP-Protocol-Version", "2026-07-28");
    let list = ("Mcp-Method", "tools/list");
    let request = |method: &str, params: &str| {
        format!(r#"{{"jsonrpc":"2.0","id":7,"method":"{method}","params":{params}}}"#)
    };
    let full = format!("{{{META}}}");
    for (headers, body, expected) in [
        (&[version, list][..], request("tools/list", &full), (200, Value::Null)),
        (&[version, ("Mcp-Method", "tools/call")], request("tools/list", &full), (400, json!(-32020))),
        (&[version], request("tools/list", &full), (400, json!(-32020))),
        (&[list], request("tools/list", &full), (400, json!(-32020))),
        (&[version, list], request("tools/list", "{}"), (400, json!(-32602))),
        (&[version, ("Mcp-Method", "ping")], request("ping", &full), (404, json!(-32601))),
        (&[version, ("Mcp-Method", "no/such")], request("no/such", &full), (404, json!(-32601))),
        (&[version, ("Mcp-Method", "initialize")], request("initialize", &full), (404, json!(-32601))),
        (&[version], request("initialize", &full), (400, json!(-32020))),
    ] {
        let (status, response) = post(&fixture, headers, &body).await;
        assert_eq!((status, response["error"]["code"].clone()), expected, "{headers:?} {body}");
        assert_eq!(response["id"], 7);
    }
    let later = full.replace("2026-07-28", "2099-12-31");
    let headers = [("MCP-Protocol-Version", "2099-12-31"), list];
    let (status, response) = post(&fixture, &headers, &request("tools/list", &later)).await;
    assert_eq!((status, response["error"]["code"].as_i64()), (400, Some(-32022)));
    assert_eq!(response["error"]["data"]["requested"], "2099-12-31");
    assert!(response["error"]["data"]["supported"].as_array().unwrap().contains(&json!("2026-07-28")));
    let (status, _) = post(
        &fixture,
        &[version],
        r#"{"jsonrpc":"2.0","method":"notifications/cancelled","params":{"requestId":1}}"#,
    )
    .await;
    assert_eq!(status, 202);
}

#[tokio::test]
async fn listen_is_acknowledged_notified_and_ended_with_a_result() {
    let mut fixture = GatewayFixture::start().await;
    let agent = fixture.agent(Era::Modern).await;
    let mut subscription = agent
        .start_request(
            "subscriptions/listen",
            r#"{"notifications":{"toolsListChanged":true,"promptsListChanged":true}}"#,
        )
        .await
        .unwrap();
    let meta = json!({ "io.modelcontextprotocol/subscriptionId": subscription.id });
    let mut next = async || -> Value {
        serde_json::from_str(&subscription.next_message().await.unwrap().unwrap()).unwrap()
    };
    assert_eq!(
        next().await,
        json!({
            "jsonrpc": "2.0",
            "method": "notifications/subscriptions/acknowledged",
            "params": { "_meta": meta, "notifications": { "toolsListChanged": true, "promptsListChanged": true } },
        })
    );
    fixture.publish_tools("default", "a", &["t"]);
    assert_eq!(
        next().await,
        json!({ "jsonrpc": "2.0", "method": "notifications/tools/list_changed", "params": { "_meta": meta } })
    );
    fixture.wait_for_metric("agent_streams 1").await;
    fixture.request_stop();
    let end = next().await;
    assert_eq!(end["result"], json!({ "resultType": "complete", "_meta": meta }));
    fixture.stop().await;
    fixture.wait_for_metric("agent_streams 0").await;
}

#[tokio::test]
async fn unrequested_notifications_are_not_sent() {
    let fixture = GatewayFixture::start().await;
    let agent = fixture.agent(Era::Modern).await;
    let mut empty = agent.start_request("subscriptions/listen", r#"{"notifications":{}}"#).await.unwrap();
    assert!(empty.next_message().await.unwrap().unwrap().contains(r#""notifications":{}"#));
    let mut team = Agent::connect(Era::Modern, &fixture.namespace_url("team-a")).await.notifications().await;
    let mut all = agent.notifications().await;
    fixture.publish_tools("default", "a", &["t"]);
    all.wait_for_tools_changed().await;
    fixture.publish_tools("team-a", "b", &["t"]);
    team.wait_for_tools_changed().await;
    fixture.request_stop();
    let last = empty.next_message().await.unwrap().unwrap();
    assert!(last.contains("\"result\""), "{last}");
}

#[tokio::test]
async fn recent_list_change_is_notified_on_listen() {
    let fixture = GatewayFixture::start().await;
    fixture.publish_tools("default", "a", &["t"]);
    let agent = fixture.agent(Era::Modern).await;
    eventually("the tool is published", async || (agent.tool_names().await == ["a_t"]).then_some(())).await;
    agent.notifications().await.wait_for_tools_changed().await;
}
