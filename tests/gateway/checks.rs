//! Checks of each HTTP request before it is dispatched.

use hyper::Method;

use crate::fixture::GatewayFixture;
use evenkeel::net::{AllowedHosts, Authorization};

const CONTENT_TYPE_JSON: (&str, &str) = ("Content-Type", "application/json");
const ACCEPT_BOTH: (&str, &str) = ("Accept", "application/json, text/event-stream");
const INITIALIZE: &str = r#"{"jsonrpc":"2.0","id":1,"method":"initialize","params":{"protocolVersion":"2025-06-18","capabilities":{},"clientInfo":{"name":"t","version":"1"}}}"#;

async fn status(
    fixture: &GatewayFixture,
    method: Method,
    path: &str,
    headers: &[(&str, &str)],
    body: &str,
) -> u16 {
    fixture.send(method, path, headers, body).await.status
}

#[tokio::test]
async fn unexpected_hosts_origins_and_media_types_are_rejected() {
    let allowed = AllowedHosts { origins: vec!["https://app.example.com".into()], ..AllowedHosts::default() };
    let fixture =
        GatewayFixture::start_with(|config| config.authorization = Authorization::new(allowed)).await;
    for (headers, expected) in [
        (&[CONTENT_TYPE_JSON, ACCEPT_BOTH][..], 200),
        (&[CONTENT_TYPE_JSON], 200),
        (&[CONTENT_TYPE_JSON, ("Accept", "*/*")], 200),
        (&[CONTENT_TYPE_JSON, ("Accept", "application/json")], 200),
        (&[CONTENT_TYPE_JSON, ("Accept", "text/html")], 406),
        (&[ACCEPT_BOTH], 415),
        (&[("Content-Type", "text/plain"), ACCEPT_BOTH], 415),
        (&[CONTENT_TYPE_JSON, ("Origin", "http://localhost:5173")], 200),
        (&[CONTENT_TYPE_JSON, ("Origin", "https://app.example.com")], 200),
        (&[CONTENT_TYPE_JSON, ("Origin", "https://evil.example.com")], 403),
        (&[CONTENT_TYPE_JSON, ("Origin", "null")], 403),
    ] {
        let response = fixture.send(Method::POST, "/mcp", headers, INITIALIZE).await;
        assert_eq!(response.status, expected, "{headers:?}");
        if matches!(expected, 406 | 415) {
            let error: serde_json::Value = serde_json::from_str(&response.text().await.unwrap()).unwrap();
            assert!(error["error"]["code"] == -32600 && error["id"] == 1, "{error}");
        }
    }
    // The helper sends the address as Host, so this request with another Host is written by hand.
    let rebound =
        send_raw(&fixture, "POST /mcp HTTP/1.1\r\nHost: evil.example.com\r\nContent-Length: 0\r\n\r\n").await;
    assert!(rebound.starts_with("HTTP/1.1 403"), "{rebound}");
}

#[tokio::test]
async fn mcp_is_served_only_at_its_two_paths() {
    let fixture = GatewayFixture::start().await;
    for (path, expected) in
        [("/mcp", 200), ("/ns/team-a/mcp", 200), ("/", 404), ("/mcp/x", 404), ("/ns//mcp", 404)]
    {
        assert_eq!(
            status(&fixture, Method::POST, path, &[CONTENT_TYPE_JSON, ACCEPT_BOTH], INITIALIZE).await,
            expected,
            "{path}"
        );
    }
    for method in [Method::PUT, Method::OPTIONS, Method::GET, Method::DELETE] {
        let response = fixture.send(method, "/mcp", &[ACCEPT_BOTH], "").await;
        assert_eq!((response.status, response.header("allow").is_some()), (405, true));
    }
}

#[tokio::test]
async fn body_must_be_a_bounded_json_rpc_message() {
    let fixture = GatewayFixture::start().await;
    let long =
        format!(r#"{{"method":"x","params":{{"a":"{}"}},"jsonrpc":"2.0","id":"e-1"}}"#, "x".repeat(5 << 20));
    let deep = format!(r#"{{"jsonrpc":"2.0","id":1,"method":"x","params":{{"a":{}}}}}"#, "[".repeat(100_000));
    for (body, expected, code) in [
        (&*long, 413, r#""id":"e-1""#),
        ("", 400, "-32700"),
        ("{", 400, "-32700"),
        (&*deep, 400, "-3"),
        ("[]", 400, "-32600"),
        (r#"[{"jsonrpc":"2.0","id":1,"method":"ping"}]"#, 400, "-32600"),
        (r#"{"jsonrpc":"2.0","id":null,"method":5}"#, 400, "-32600"),
        (r#"{"jsonrpc":"2.0","id":null,"method":"ping"}"#, 400, "-32600"),
        (r#"{"jsonrpc":"2.0","id":null,"method":"initialize","params":{}}"#, 400, r#""id":null"#),
        (r#"{"id":1,"method":"ping"}"#, 400, "-32600"),
    ] {
        let response = fixture.send(Method::POST, "/mcp", &[CONTENT_TYPE_JSON, ACCEPT_BOTH], body).await;
        let head: String = body.chars().take(60).collect();
        assert_eq!(response.status, expected, "{head}");
        let text = response.text().await.unwrap();
        assert!(text.contains(code), "{head}: {text}");
    }
}

/// Sends these bytes and returns the result of the first read.
async fn send_raw(fixture: &GatewayFixture, request: &str) -> String {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let mut stream = tokio::net::TcpStream::connect(fixture.address).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut buffer = vec![0; 4_096];
    let read = stream.read(&mut buffer).await.unwrap();
    String::from_utf8_lossy(&buffer[..read]).into_owned()
}
