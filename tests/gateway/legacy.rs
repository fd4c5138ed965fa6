//! Agents of the legacy era: `initialize`, sessions, lists, the GET stream.

use evenkeel::resource::{Problem, Reason};
use hyper::Method;
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::fixture::GatewayFixture;
use crate::support::http::{HttpResponse, send};
use crate::support::{Agent, Era, eventually};

const TOOLS_LIST_CHANGED: &str = r#"{"jsonrpc":"2.0","method":"notifications/tools/list_changed"}"#;

async fn post(url: &str, headers: &[(&str, &str)], body: &str) -> HttpResponse {
    let mut all =
        vec![("Content-Type", "application/json"), ("Accept", "application/json, text/event-stream")];
    all.extend(headers);
    send(Method::POST, url, &all, body).await.unwrap()
}

async fn initialize(url: &str, version: &str) -> (Value, String) {
    let body = format!(
        r#"{{"jsonrpc":"2.0","id":"a","method":"initialize","params":{{"protocolVersion":"{version}","capabilities":{{}},"clientInfo":{{"name":"t","version":"1"}}}}}}"#
    );
    let response = post(url, &[], &body).await;
    let session = response.header("mcp-session-id").unwrap().to_owned();
    (serde_json::from_str(&response.text().await.unwrap()).unwrap(), session)
}

#[tokio::test]
async fn initialize_negotiates_the_version_and_returns_capabilities() {
    let fixture = GatewayFixture::start().await;
    for (requested, negotiated) in [
        ("2024-11-05", "2024-11-05"),
        ("2025-06-18", "2025-06-18"),
        ("2026-07-28", "2025-11-25"),
        ("x", "2025-11-25"),
    ] {
        let (opened, session) = initialize(&fixture.url(), requested).await;
        let expected = json!({
            "jsonrpc": "2.0",
            "id": "a",
            "result": {
                "protocolVersion": negotiated,
                "capabilities": {
                    "tools": { "listChanged": true },
                    "prompts": { "listChanged": true },
                    "resources": { "listChanged": true, "subscribe": true },
                    "completions": {},
                    "logging": {},
                    "extensions": { "io.modelcontextprotocol/skills": { "directoryRead": true } },
                },
                "serverInfo": { "name": "evenkeel", "version": env!("CARGO_PKG_VERSION") },
            },
        });
        assert_eq!(opened, expected);
        assert!(session.bytes().all(|byte| byte.is_ascii_graphic()));
    }
}

#[tokio::test]
async fn session_works_until_it_is_deleted() {
    let fixture = GatewayFixture::start().await;
    let agent = fixture.agent(Era::Legacy).await;
    assert_eq!(agent.request("ping", "{}").await.unwrap(), "{}");
    let unknown = agent.request("tasks/list", "{}").await.unwrap_err();
    assert!(unknown.contains("-32601"), "{unknown}");
    fixture.wait_for_metric("agent_sessions 1").await;

    let session = agent.session.clone().unwrap();
    let ping = r#"{"jsonrpc":"2.0","id":1,"method":"ping"}"#;
    for (headers, expected) in [
        (vec![], 400),
        (vec![("Mcp-Session-Id", "made-up")], 404),
        (vec![("Mcp-Session-Id", &*session)], 200),
        (vec![("Mcp-Session-Id", &*session), ("MCP-Protocol-Version", "2025-11-25")], 200),
        (vec![("Mcp-Session-Id", &*session), ("MCP-Protocol-Version", "1999-01-01")], 400),
    ] {
        assert_eq!(post(&fixture.url(), &headers, ping).await.status, expected, "{headers:?}");
    }
    let other_view = post(&fixture.namespace_url("default"), &[("Mcp-Session-Id", &session)], ping).await;
    assert_eq!(other_view.status, 404, "the session belongs to another view");
    let response = r#"{"jsonrpc":"2.0","id":1,"result":{}}"#;
    assert_eq!(post(&fixture.url(), &[("Mcp-Session-Id", &session)], response).await.status, 400);

    let mut notifications = agent.notifications().await;
    assert_eq!(agent.end_session().await, 204);
    notifications.wait_for_end().await;
    assert_eq!(agent.end_session().await, 404);
    assert!(agent.request("ping", "{}").await.unwrap_err().contains("Session not found"));
    fixture.wait_for_metric("agent_sessions 0").await;
    fixture.wait_for_metric("agent_streams 0").await;
}

#[tokio::test]
async fn lists_are_raw_sorted_and_limited_to_the_view() {
    let fixture = GatewayFixture::start().await;
    let raw = r#"{ "inputSchema":{"x": 1.0e+2}, "name" : "t", "later":[{}] }"#;
    fixture.publish_raw_tools("default", "odd", [raw.to_owned()].into_iter());
    fixture.publish_tools("default", "b", &["one", "two"]);
    fixture.publish_tools("team-a", "a", &["one"]);
    let agent = fixture.agent(Era::Legacy).await;
    eventually("all tools are published", async || (agent.tool_names().await.len() == 4).then_some(())).await;
    assert_eq!(agent.tool_names().await, ["b_one", "b_two", "odd_t", "team-a_a_one"]);
    assert_eq!(agent.list_tools().await[2].get(), raw.replace(r#""t""#, r#""odd_t""#));
    let result = agent.request("tools/list", "{}").await.unwrap();
    assert!(result.starts_with(r#"{"tools":["#), "{result}");
    assert!(agent.request("tools/list", r#"{"cursor":"?"}"#).await.unwrap_err().contains("-32602"));

    let team = Agent::connect(Era::Legacy, &fixture.namespace_url("team-a")).await;
    assert_eq!(team.tool_names().await, ["a_one"]);
    let none = Agent::connect(Era::Legacy, &fixture.namespace_url("none")).await;
    assert_eq!(none.tool_names().await, Vec::<String>::new());
}

#[tokio::test]
async fn long_list_is_paginated() {
    let fixture = GatewayFixture::start().await;
    let names: Vec<String> = (0..2_345).map(|number| format!("t{number:04}")).collect();
    let tools: Vec<&str> = names.iter().map(|name| &**name).collect();
    fixture.publish_tools("default", "s", &tools);
    let agent = fixture.agent(Era::Legacy).await;
    eventually("all tools are published", async || (agent.tool_names().await.len() == 2_345).then_some(()))
        .await;
}

#[tokio::test]
async fn stream_notifies_of_its_view_without_duplicates() {
    let fixture = GatewayFixture::start().await;
    let agent = fixture.agent(Era::Legacy).await;
    let team = Agent::connect(Era::Legacy, &fixture.namespace_url("team-a")).await;
    let mut notifications = agent.notifications().await;
    let mut team_notifications = team.notifications().await;
    fixture.wait_for_metric("agent_streams 2").await;

    fixture.publish_tools("default", "a", &["t"]);
    assert_eq!(notifications.next().await, TOOLS_LIST_CHANGED);
    assert_eq!(agent.tool_names().await, ["a_t"]);
    let started_at = Instant::now();
    // An equal section is no change, and a change that the agent has already listed is not notified.
    fixture.publish_tools("default", "a", &["t"]);
    for number in 0..50 {
        fixture.publish_tools("default", &format!("b{number}"), &["t"]);
    }
    eventually("all tools are published", async || (agent.tool_names().await.len() == 51).then_some(()))
        .await;
    fixture.publish_tools("team-a", "c", &["t"]);
    assert_eq!(team_notifications.next().await, TOOLS_LIST_CHANGED);
    eventually("the last tool is listed", async || (agent.tool_names().await.len() == 52).then_some(()))
        .await;
    // Changes within a coalescing window are published together; one more change ends the last window.
    fixture.withdraw("default", "a", Problem::new(Reason::Removed, "gone"));
    let count = {
        notifications.next().await;
        eventually("the removal is published", async || (agent.tool_names().await.len() == 51).then_some(()))
            .await;
        notifications.drain().len()
    };
    // At most one notification in each coalescing window. A slow machine needs more windows.
    let windows = usize::try_from(started_at.elapsed().as_millis() / 100).unwrap();
    assert!(count <= windows.max(3), "{count} notifications of one burst");
    assert_eq!(team_notifications.drain(), Vec::<String>::new());
}

#[tokio::test]
async fn earlier_change_is_notified_when_the_stream_opens() {
    let fixture = GatewayFixture::start().await;
    let agent = fixture.agent(Era::Legacy).await;
    fixture.publish_tools("default", "a", &["t"]);
    eventually("the tool is published", async || fixture.catalog.load().number().ne(&0).then_some(())).await;
    let mut notifications = agent.notifications().await;
    assert_eq!(notifications.next().await, TOOLS_LIST_CHANGED);

    // The change was notified, but the agent has not listed since: the next stream notifies it again.
    drop(notifications);
    let mut notifications = agent.notifications().await;
    assert_eq!(notifications.next().await, TOOLS_LIST_CHANGED);
    drop(notifications);
    assert_eq!(agent.tool_names().await, ["a_t"]);
    let mut notifications = agent.notifications().await;
    fixture.publish_tools("default", "b", &["t"]);
    assert_eq!(notifications.next().await, TOOLS_LIST_CHANGED);
    assert_eq!(notifications.drain(), Vec::<String>::new());
}

#[tokio::test]
async fn notification_goes_to_the_newest_stream_only() {
    let fixture = GatewayFixture::start().await;
    let agent = fixture.agent(Era::Legacy).await;
    let mut first = agent.notifications().await;
    let mut second = agent.notifications().await;
    fixture.publish_tools("default", "a", &["t"]);
    assert_eq!(second.next().await, TOOLS_LIST_CHANGED);
    assert_eq!(first.drain(), Vec::<String>::new());
}

#[tokio::test]
async fn session_survives_a_restart_and_gets_list_changed() {
    let mut fixture = GatewayFixture::start().await;
    fixture.publish_tools("default", "a", &["t"]);
    eventually("the tool is published", async || fixture.catalog.load().number().ne(&0).then_some(())).await;
    let agent = fixture.agent(Era::Legacy).await;
    assert_eq!(agent.tool_names().await, ["a_t"]);
    let mut notifications = agent.notifications().await;
    fixture.restart().await;
    notifications.wait_for_end().await;

    assert_eq!(agent.request("ping", "{}").await.unwrap(), "{}");
    let mut notifications = agent.notifications().await;
    assert_eq!(notifications.next().await, TOOLS_LIST_CHANGED);
    assert_eq!(agent.tool_names().await, ["a_t"]);

    // A session that is ended in the new process is rejected there.
    assert_eq!(agent.end_session().await, 204);
    assert!(agent.request("ping", "{}").await.is_err());
}

#[tokio::test]
async fn session_id_from_another_key_is_rejected() {
    let fixture = GatewayFixture::start().await;
    let mut agent = fixture.agent(Era::Legacy).await;
    let other = GatewayFixture::start_with(|config| {
        config.session_key = evenkeel::gateway::SessionKey::new(b"another key").unwrap();
    })
    .await;
    agent.url = other.url();
    assert!(agent.request("ping", "{}").await.unwrap_err().contains("Session not found"));
}
