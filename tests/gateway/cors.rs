//! Web pages of other origins: preflight requests, and the headers that permit a page to read responses.

use evenkeel::net::{AllowedHosts, Authorization};
use hyper::Method;

use crate::fixture::GatewayFixture;
use crate::support::http::HttpResponse;

const PAGE: &str = "https://app.example.com";
const INITIALIZE: &str = r#"{"jsonrpc":"2.0","id":1,"method":"initialize","params":{"protocolVersion":"2025-11-25","capabilities":{},"clientInfo":{"name":"t","version":"1"}}}"#;
const LISTEN: &str = r#"{"jsonrpc":"2.0","id":1,"method":"subscriptions/listen","params":{"notifications":{},"_meta":{"io.modelcontextprotocol/protocolVersion":"2026-07-28","io.modelcontextprotocol/clientCapabilities":{}}}}"#;

async fn start_with_origins(origins: &[&str]) -> GatewayFixture {
    let origins = origins.iter().map(|origin| (*origin).to_owned()).collect();
    let allowed = AllowedHosts { origins, ..AllowedHosts::default() };
    GatewayFixture::start_with(|config| config.authorization = Authorization::new(allowed)).await
}

fn allowed_origin(response: &HttpResponse) -> Option<&str> {
    response.header("access-control-allow-origin")
}

#[tokio::test]
async fn page_of_a_named_origin_reads_every_response() {
    let fixture = start_with_origins(&[PAGE]).await;
    let origin = ("Origin", PAGE);
    let json = ("Content-Type", "application/json");
    let preflight = [origin, ("Access-Control-Request-Method", "POST")];
    let response = fixture.send(Method::OPTIONS, "/mcp", &preflight, "").await;
    assert_eq!((response.status, allowed_origin(&response)), (204, Some(PAGE)));
    let allowed = response.header("access-control-allow-headers").unwrap();
    assert!(allowed.contains("Mcp-Session-Id") && allowed.contains("Authorization"), "{allowed}");
    assert!(response.header("access-control-max-age").is_some());
    assert!(response.header("access-control-allow-credentials").is_none());

    let opened = fixture.send(Method::POST, "/mcp", &[origin, json], INITIALIZE).await;
    assert_eq!((opened.status, opened.header("vary")), (200, Some("origin")));
    assert!(opened.header("access-control-expose-headers").unwrap().contains("Mcp-Session-Id"));
    let session = opened.header("mcp-session-id").unwrap();
    let session = ("Mcp-Session-Id", session);
    let ping = r#"{"jsonrpc":"2.0","id":2,"method":"ping"}"#;
    let initialized = r#"{"jsonrpc":"2.0","method":"notifications/initialized"}"#;
    let modern =
        [origin, json, ("MCP-Protocol-Version", "2026-07-28"), ("Mcp-Method", "subscriptions/listen")];
    for (method, path, headers, body, status) in [
        (Method::POST, "/mcp", &[origin, json, session][..], ping, 200),
        (Method::POST, "/mcp", &[origin, json, session], initialized, 202),
        (Method::GET, "/mcp", &[origin, session], "", 200),
        (Method::POST, "/mcp", &modern, LISTEN, 200),
        (Method::POST, "/mcp", &[origin, json], ping, 400),
        (Method::POST, "/mcp", &[origin, json, ("Mcp-Session-Id", "x")], ping, 404),
        (Method::POST, "/mcp", &[origin, session], ping, 415),
        (Method::POST, "/mcp", &[origin, json, session, ("Accept", "text/html")], ping, 406),
        (Method::POST, "/other", &[origin, json], ping, 404),
        (Method::PUT, "/mcp", &[origin], "", 405),
        (Method::OPTIONS, "/mcp", &[origin], "", 405),
        (Method::DELETE, "/mcp", &[origin, session], "", 204),
    ] {
        let response = fixture.send(method.clone(), path, headers, body).await;
        let found = (response.status, allowed_origin(&response));
        assert_eq!(found, (status, Some(PAGE)), "{method} {path} {body}");
    }
}

#[tokio::test]
async fn page_of_any_other_origin_reads_nothing() {
    let ask = ("Access-Control-Request-Method", "POST");
    let json = ("Content-Type", "application/json");
    for (named, origin, statuses) in [
        // A loopback origin is served, but its pages cannot read responses unless it is named.
        (&[][..], "http://localhost:5173", [405, 200]),
        (&[PAGE], "http://localhost:5173", [405, 200]),
        (&[PAGE], "https://evil.example.com", [403, 403]),
        (&[], PAGE, [403, 403]),
    ] {
        let fixture = start_with_origins(named).await;
        let origin = ("Origin", origin);
        let preflight = fixture.send(Method::OPTIONS, "/mcp", &[origin, ask], "").await;
        let opened = fixture.send(Method::POST, "/mcp", &[origin, json], INITIALIZE).await;
        assert_eq!([preflight.status, opened.status], statuses, "{named:?} {origin:?}");
        for response in [&preflight, &opened] {
            assert_eq!(allowed_origin(response), None, "{named:?} {origin:?}");
            let has_vary = response.header("vary").is_some();
            assert_eq!(has_vary, !named.is_empty(), "{named:?} {origin:?}");
        }
    }
    let fixture = start_with_origins(&["http://localhost:5173"]).await;
    let origin = ("Origin", "http://localhost:5173");
    let opened = fixture.send(Method::POST, "/mcp", &[origin, json], INITIALIZE).await;
    assert_eq!(allowed_origin(&opened), Some("http://localhost:5173"));
}
