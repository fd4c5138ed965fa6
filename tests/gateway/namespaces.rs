//! The namespaces in the paths of views.

use evenkeel::resource::{Problem, Reason};
use hyper::Method;
use serde_json::Value;

use crate::fixture::GatewayFixture;
use crate::support::http::send;
use crate::support::{Agent, Era, eventually};

const HEADERS: [(&str, &str); 2] =
    [("Content-Type", "application/json"), ("Accept", "application/json, text/event-stream")];

/// Sends a request without a session, and returns the status and the body.
async fn request_without_session(fixture: &GatewayFixture, path: &str, method: &str) -> (u16, String) {
    let body = format!(
        r#"{{"jsonrpc":"2.0","id":7,"method":"{method}","params":{{"protocolVersion":"2025-11-25","capabilities":{{}},"clientInfo":{{"name":"t","version":"1"}}}}}}"#
    );
    let url = format!("http://{}{path}", fixture.address);
    let response = send(Method::POST, &url, &HEADERS, &body).await.unwrap();
    (response.status, response.text().await.unwrap())
}

#[tokio::test]
async fn unknown_namespace_is_an_error_that_names_the_known_ones() {
    let fixture = GatewayFixture::start().await;
    fixture.publish_tools("team-a", "s", &["t"]);
    fixture.mark_synced();
    eventually("the tool is published", async || fixture.catalog.load().number().ne(&0).then_some(())).await;
    for path in ["/mcp", "/mcp/", "/ns/default/mcp", "/ns/team-a/mcp", "/ns/team-a/mcp/"] {
        let (status, text) = request_without_session(&fixture, path, "initialize").await;
        assert_eq!(status, 200, "{path}: {text}");
    }
    for (path, method) in [("/ns/typo/mcp", "initialize"), ("/ns/typo/mcp/", "ping")] {
        let (status, text) = request_without_session(&fixture, path, method).await;
        let error: Value = serde_json::from_str(&text).unwrap();
        assert_eq!((status, &error["id"], &error["error"]["code"]), (404, &7.into(), &(-32600).into()));
        let message = error["error"]["message"].as_str().unwrap();
        assert!(message.contains("\"typo\"") && message.contains("default"), "{message}");
    }
    let error = Agent::try_connect(Era::Modern, &fixture.namespace_url("typo")).await.err().unwrap();
    assert!(error.contains("\"typo\\\""), "{error}");
    for method in [Method::GET, Method::DELETE, Method::PUT] {
        let response = send(method, &fixture.namespace_url("typo"), &[], "").await.unwrap();
        assert_eq!(response.status, 404);
        assert!(response.text().await.unwrap().contains("default"));
    }
}

#[tokio::test]
async fn every_namespace_is_known_until_the_declarations_have_been_read() {
    let fixture = GatewayFixture::start().await;
    for era in Era::ALL {
        let agent = Agent::connect(era, &fixture.namespace_url("soon")).await;
        assert_eq!(agent.tool_names().await, Vec::<String>::new());
    }
}

#[tokio::test]
async fn session_continues_when_its_namespace_becomes_empty() {
    let fixture = GatewayFixture::start().await;
    // Opened before anything is known about this namespace, and before anything is declared in it.
    let early = Agent::connect(Era::Legacy, &fixture.namespace_url("soon")).await;
    let mut notifications = early.notifications().await;
    fixture.mark_synced();
    assert_eq!(early.request("ping", "{}").await.unwrap(), "{}");
    assert!(Agent::try_connect(Era::Legacy, &fixture.namespace_url("soon")).await.is_err());

    fixture.publish_tools("soon", "s", &["t"]);
    notifications.wait_for_tools_changed().await;
    assert_eq!(early.tool_names().await, ["s_t"]);
    let [legacy, modern] = Era::ALL;
    let agents = [
        early,
        Agent::connect(legacy, &fixture.namespace_url("soon")).await,
        Agent::connect(modern, &fixture.namespace_url("soon")).await,
    ];
    fixture.withdraw("soon", "s", Problem::new(Reason::Removed, "s.yaml was deleted"));
    for agent in agents {
        eventually("the tool is removed", async || agent.tool_names().await.is_empty().then_some(())).await;
        let result = agent.call("s_t", "{}").await.unwrap();
        assert!(result.contains("s.yaml was deleted"), "{result}");
    }
}
