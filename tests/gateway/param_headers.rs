//! The `Mcp-Param-…` headers of modern agents, which repeat arguments of a call (SEP-2243).

use hyper::Method;
use rmcp::model::CallToolRequestParams;
use serde_json::{Value, json};

use crate::fixture::GatewayFixture;
use crate::rig::{FakeHttpServer, Script, ServerEra};
use crate::support::http::send;
use crate::support::{Agent, Era, eventually};

const META: &str = r#""_meta":{"io.modelcontextprotocol/protocolVersion":"2026-07-28","io.modelcontextprotocol/clientCapabilities":{}}"#;

/// Calls a tool as a modern agent with these headers. Returns the HTTP status, and the code of the error or null.
async fn call(
    fixture: &GatewayFixture,
    tool: &str,
    headers: &[(&str, &str)],
    arguments: &str,
) -> (u16, Value) {
    let mut all = vec![
        ("Content-Type", "application/json"),
        ("Accept", "application/json"),
        ("MCP-Protocol-Version", "2026-07-28"),
        ("Mcp-Method", "tools/call"),
        ("Mcp-Name", tool),
    ];
    all.extend(headers);
    let body = format!(
        r#"{{"jsonrpc":"2.0","id":7,"method":"tools/call","params":{{"name":"{tool}","arguments":{arguments},{META}}}}}"#
    );
    let response = send(Method::POST, &fixture.url(), &all, &body).await.unwrap();
    let status = response.status;
    let message: Value = serde_json::from_str(&response.text().await.unwrap()).unwrap();
    assert_eq!(message["id"], 7);
    (status, message["error"]["code"].clone())
}

#[tokio::test]
async fn headers_of_modern_agents_must_repeat_the_arguments() {
    for era in [ServerEra::Legacy, ServerEra::Modern] {
        let server = FakeHttpServer::start(Script::new("rig", era).tools(&["mirror", "echo"])).await;
        let fixture = GatewayFixture::start().await;
        fixture.attach_server("r", &server, json!({})).await;
        let (accepted, rejected) = ((200, Value::Null), (400, json!(-32020)));
        for (headers, arguments, expected) in [
            (&[][..], "{}", &accepted),
            (&[("Mcp-Param-Region", "eu")], r#"{"region":"eu"}"#, &accepted),
            (&[("mcp-param-region", "=?base64?w6k=?=")], r#"{"region":"é"}"#, &accepted),
            (&[], r#"{"region":"eu"}"#, &rejected),
            (&[("Mcp-Param-Region", "us")], r#"{"region":"eu"}"#, &rejected),
            (&[("Mcp-Param-Region", "=?base64?SGVsbG8?=")], r#"{"region":"Hello"}"#, &rejected),
            (&[("Mcp-Param-Region", "eu")], "{}", &rejected),
        ] {
            let found = call(&fixture, "r_mirror", headers, arguments).await;
            assert_eq!(found, *expected, "{era:?} {headers:?} {arguments}");
        }
        // A tool without annotations, and an agent of the legacy era.
        let unrelated = [("Mcp-Param-Region", "us")];
        assert_eq!(call(&fixture, "r_echo", &unrelated, r#"{"region":"eu"}"#).await, accepted);
        let agent = fixture.agent(Era::Legacy).await;
        assert!(agent.call("r_mirror", r#"{"region":"eu"}"#).await.is_ok());
        assert_eq!(server.counters().complaints, Vec::<String>::new());
        assert_eq!(server.counters().calls(), 5, "a rejected call is not sent");
    }
}

#[tokio::test]
async fn tool_with_an_invalid_annotation_needs_no_headers() {
    let fixture = GatewayFixture::start().await;
    let tool = r#"{"name":"t","inputSchema":{"type":"object","properties":{"a":{"type":"array","x-mcp-header":"A"}}}}"#;
    fixture.publish_raw_tools("default", "s", [tool.to_owned()].into_iter());
    let agent = Agent::connect(Era::Modern, &fixture.url()).await;
    eventually("the tool is published", async || (agent.tool_names().await == ["s_t"]).then_some(())).await;
    assert_eq!(call(&fixture, "s_t", &[], r#"{"a":[1]}"#).await, (200, Value::Null));
}

#[tokio::test]
async fn rmcp_client_sends_the_headers_that_are_checked() {
    let server = FakeHttpServer::start(Script::new("rig", ServerEra::Legacy).tools(&["mirror"])).await;
    let fixture = GatewayFixture::start().await;
    fixture.attach_server("r", &server, json!({})).await;
    let client = crate::rmcp_client::connect_modern(&fixture).await;
    client.list_all_tools().await.unwrap();
    for region in ["eu-1", " padded ", "日本語", "=?base64?x?="] {
        let arguments = serde_json::from_value(json!({ "region": region })).unwrap();
        let call = CallToolRequestParams::new("r_mirror").with_arguments(arguments);
        let result = client.call_tool(call).await.unwrap();
        assert!(result.content[0].as_text().unwrap().text.contains("region"), "{region}");
    }
    client.cancel().await.unwrap();
}
