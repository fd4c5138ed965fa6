//! The bytes on the wire, and the requests that a strict modern server rejects.

use hyper::Method;

use crate::rig::{FakeHttpServer, ODD_RESULT, ODD_TOOL, Script, ServerEra};
use crate::support::{Agent, Era, http};

#[tokio::test]
async fn params_and_results_are_kept_byte_for_byte() {
    for era in Era::ALL {
        let rig =
            FakeHttpServer::start(Script::new("raw", ServerEra::Dual).tools(&["echo", "odd", "reply"])).await;
        let agent = Agent::connect(era, &rig.url()).await;
        let listed = agent.list_tools().await;
        assert_eq!(listed[1].get(), ODD_TOOL);
        assert_eq!(agent.call("odd", "{}").await.unwrap(), ODD_RESULT);
        let odd = r#"{"x": [1.0e+2, "\u00e9\/"],"a":1,"a":2}"#;
        assert_eq!(agent.call("reply", &format!(r#"{{"result":{odd}}}"#)).await.unwrap(), odd);
        let params = format!(r#"{{"name":"echo","arguments":{odd},"x-new": -0.0,"_meta":{{"k": 1E2}}}}"#);
        let echoed = agent.request("tools/call", &params).await.unwrap();
        let echoed: serde_json::Value = serde_json::from_str(&echoed).unwrap();
        let echoed = echoed["content"][0]["text"].as_str().unwrap();
        assert!(echoed.contains(&format!(r#""arguments":{odd},"x-new": -0.0,"_meta":{{"#)), "{echoed}");
        assert!(echoed.contains(r#""k": 1E2}"#), "{echoed}");
        assert_eq!(rig.counters().complaints, Vec::<String>::new());
    }
}

/// The members of a message, its headers, and the expected status and error code.
type HeaderCase<'a> = (&'a str, Vec<(&'a str, &'a str)>, u16, i64);

#[tokio::test]
async fn modern_requests_with_mismatched_headers_are_rejected() {
    const META_MEMBER: &str = r#"{"io.modelcontextprotocol/protocolVersion":"2026-07-28","io.modelcontextprotocol/clientCapabilities":{}}"#;
    let rig = FakeHttpServer::start(Script::new("strict", ServerEra::Modern).tools(&["mirror"])).await;
    let call = |arguments: &str| {
        format!(
            r#""method":"tools/call","params":{{"name":"mirror","arguments":{arguments},"_meta":{META_MEMBER}}}"#
        )
    };
    let list = format!(r#""method":"tools/list","params":{{"_meta":{META_MEMBER}}}"#);
    let version = ("MCP-Protocol-Version", "2026-07-28");
    let list_method = ("Mcp-Method", "tools/list");
    let call_method = ("Mcp-Method", "tools/call");
    let tool_name_header = ("Mcp-Name", "mirror");
    let cases: [HeaderCase<'_>; 14] = [
        (&list, vec![version, list_method], 200, 0),
        (&list, vec![list_method], 400, -32020),
        (&list, vec![version], 400, -32020),
        (&list, vec![version, call_method], 400, -32020),
        (&list, vec![("MCP-Protocol-Version", "2025-11-25"), list_method], 400, -32020),
        (r#""method":"tools/list""#, vec![version, list_method], 400, -32602),
        (
            &list.replace("2026-07-28", "1900-01-01"),
            vec![("MCP-Protocol-Version", "1900-01-01"), list_method],
            400,
            -32022,
        ),
        (&call("{}"), vec![version, call_method], 400, -32020),
        (&call("{}"), vec![version, call_method, tool_name_header], 200, 0),
        (&call("{}"), vec![version, call_method, ("Mcp-Name", "=?base64?bWlycm9y?=")], 200, 0),
        (&call(r#"{"region":"é"}"#), vec![version, call_method, tool_name_header], 400, -32020),
        (
            &call(r#"{"region":"é"}"#),
            vec![version, call_method, tool_name_header, ("Mcp-Param-Region", "=?base64?w6k=?=")],
            200,
            0,
        ),
        (&list.replace("tools/list", "no/such"), vec![version, ("Mcp-Method", "no/such")], 404, -32601),
        (r#""method":"initialize","params":{}"#, vec![], 400, -32022),
    ];
    for (message, headers, status, code) in cases {
        let body = format!(r#"{{"jsonrpc":"2.0","id":"x",{message}}}"#);
        let mut all_headers =
            vec![("Accept", "application/json, text/event-stream"), ("Content-Type", "application/json")];
        all_headers.extend(headers);
        let mut response = http::send(Method::POST, &rig.url(), &all_headers, &body).await.unwrap();
        assert_eq!(response.status, status, "{body} {all_headers:?}");
        let response = if response.is_stream() {
            response.next_event().await.unwrap().unwrap()
        } else {
            response.text().await.unwrap()
        };
        let response: serde_json::Value = serde_json::from_str(&response).unwrap();
        assert_eq!(response["error"]["code"].as_i64().unwrap_or(0), code, "{body}: {response}");
        assert_eq!(response["id"], "x");
    }
    for method in [Method::GET, Method::DELETE] {
        assert_eq!(http::send(method, &rig.url(), &[], "").await.unwrap().status, 405);
    }
}

#[tokio::test]
async fn tool_list_is_paged_and_can_repeat_its_cursor() {
    let mut script = Script::new("paged", ServerEra::Dual).tools(&["a", "b", "c", "d", "e"]);
    script.page_size = 2;
    let rig = FakeHttpServer::start(script).await;
    let agent = Agent::connect(Era::Legacy, &rig.url()).await;
    assert_eq!(agent.tool_names().await, ["a", "b", "c", "d", "e"]);
    assert_eq!(rig.counters().tool_lists(), 3);
    rig.edit_script(|script| script.repeat_cursor = true);
    for params in ["{}", r#"{"cursor":"page 0"}"#] {
        let page = agent.request("tools/list", params).await.unwrap();
        assert!(page.contains(r#""nextCursor":"page 0""#), "{page}");
    }
    let error = agent.request("tools/list", r#"{"cursor":"other"}"#).await.unwrap_err();
    assert!(error.contains("-32602"), "{error}");
}
