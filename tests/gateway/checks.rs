//! What is checked of each request before anything else.

use hyper::Method;

use crate::stack::Stack;
use crate::support::http::{Answer, send};
use evenkeel::net::{AllowedHosts, Authorization};

const JSON: (&str, &str) = ("Content-Type", "application/json");
const ANY: (&str, &str) = ("Accept", "application/json, text/event-stream");
const INITIALIZE: &str = r#"{"jsonrpc":"2.0","id":1,"method":"initialize","params":{"protocolVersion":"2025-06-18","capabilities":{},"clientInfo":{"name":"t","version":"1"}}}"#;

async fn status(stack: &Stack, method: Method, path: &str, headers: &[(&str, &str)], body: &str) -> u16 {
    answer(stack, method, path, headers, body).await.status
}

async fn answer(stack: &Stack, method: Method, path: &str, headers: &[(&str, &str)], body: &str) -> Answer {
    send(method, &format!("http://{}{path}", stack.address), headers, body).await.unwrap()
}

#[tokio::test]
async fn strangers_are_turned_away() {
    let allowed = AllowedHosts { origins: vec!["https://app.example.com".into()], ..AllowedHosts::default() };
    let stack = Stack::with(|config| config.authorization = Authorization::new(allowed)).await;
    for (headers, expected) in [
        (&[JSON, ANY][..], 200),
        (&[JSON], 200),
        (&[JSON, ("Accept", "*/*")], 200),
        (&[JSON, ("Accept", "application/json")], 200),
        (&[JSON, ("Accept", "text/html")], 406),
        (&[ANY], 415),
        (&[("Content-Type", "text/plain"), ANY], 415),
        (&[JSON, ("Origin", "http://localhost:5173")], 200),
        (&[JSON, ("Origin", "https://app.example.com")], 200),
        (&[JSON, ("Origin", "https://evil.example.com")], 403),
        (&[JSON, ("Origin", "null")], 403),
    ] {
        assert_eq!(status(&stack, Method::POST, "/mcp", headers, INITIALIZE).await, expected, "{headers:?}");
    }
    // The helper sends the address as Host; another one is put in its place by name.
    let rebound =
        raw(&stack, "POST /mcp HTTP/1.1\r\nHost: evil.example.com\r\nContent-Length: 0\r\n\r\n").await;
    assert!(rebound.starts_with("HTTP/1.1 403"), "{rebound}");
}

#[tokio::test]
async fn only_the_two_paths_are_mcp() {
    let stack = Stack::start().await;
    for (path, expected) in
        [("/mcp", 200), ("/ns/team-a/mcp", 200), ("/", 404), ("/mcp/x", 404), ("/ns//mcp", 404)]
    {
        assert_eq!(status(&stack, Method::POST, path, &[JSON, ANY], INITIALIZE).await, expected, "{path}");
    }
    for method in [Method::PUT, Method::OPTIONS, Method::GET, Method::DELETE] {
        let answer = answer(&stack, method, "/mcp", &[ANY], "").await;
        assert_eq!((answer.status, answer.header("allow").is_some()), (405, true));
    }
}

#[tokio::test]
async fn a_body_is_bounded_and_must_be_a_message() {
    let stack = Stack::start().await;
    let long = format!(r#"{{"jsonrpc":"2.0","method":"x","params":{{"a":"{}"}}}}"#, "x".repeat(5 << 20));
    let deep = format!(r#"{{"jsonrpc":"2.0","id":1,"method":"x","params":{{"a":{}}}}}"#, "[".repeat(100_000));
    for (body, expected, code) in [
        (&*long, 413, ""),
        ("", 400, "-32700"),
        ("{", 400, "-32700"),
        (&*deep, 400, "-3"),
        ("[]", 400, "-32600"),
        (r#"[{"jsonrpc":"2.0","id":1,"method":"ping"}]"#, 400, "-32600"),
        (r#"{"jsonrpc":"2.0","id":null,"method":5}"#, 400, "-32600"),
        (r#"{"id":1,"method":"ping"}"#, 400, "-32600"),
    ] {
        let answer = answer(&stack, Method::POST, "/mcp", &[JSON, ANY], body).await;
        let head: String = body.chars().take(60).collect();
        assert_eq!(answer.status, expected, "{head}");
        let text = answer.text().await.unwrap();
        assert!(text.contains(code), "{head}: {text}");
    }
}

/// What comes back for these bytes, up to the end of the first read.
async fn raw(stack: &Stack, request: &str) -> String {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let mut stream = tokio::net::TcpStream::connect(stack.address).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut buffer = vec![0; 4_096];
    let read = stream.read(&mut buffer).await.unwrap();
    String::from_utf8_lossy(&buffer[..read]).into_owned()
}
