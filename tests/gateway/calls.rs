//! Calls through the gateway to a real server.

use std::sync::Arc;

use evenkeel::resource::{Problem, Reason};
use serde_json::{Value, json};

use crate::fixture::GatewayFixture;
use crate::rig::{FakeHttpServer, ODD_RESULT, ODD_TOOL, ResponseFormat, Script, ServerEra};
use crate::support::{Agent, Era, eventually};

const TOOLS: &[&str] = &["echo", "odd", "reply", "fail", "sleep", "log", "big", "mirror"];

async fn start_with_server(era: ServerEra) -> (GatewayFixture, FakeHttpServer) {
    start_with_script(Script::new("rig", era).tools(TOOLS), json!({})).await
}

async fn start_with_script(script: Script, extra_spec: Value) -> (GatewayFixture, FakeHttpServer) {
    let server = FakeHttpServer::start(script).await;
    let fixture = GatewayFixture::start().await;
    fixture.attach_server("r", &server, extra_spec).await;
    (fixture, server)
}

/// Returns the number of calls in flight at the server, without `subscriptions/listen` requests.
fn calls_in_flight(server: &FakeHttpServer) -> u64 {
    let counters = server.counters();
    if counters.count("subscriptions/listen") > 0 {
        counters.in_flight - counters.streams
    } else {
        counters.in_flight
    }
}

/// Returns the number of cancelled calls at the server: by notification in the legacy era, by a closed stream in the
/// modern one.
fn cancellations(server: &FakeHttpServer) -> u64 {
    let counters = server.counters();
    if counters.initializes() > 0 { counters.count("notifications/cancelled") } else { counters.cancelled }
}

async fn wait_for_call(server: &FakeHttpServer) {
    eventually("the call is in flight", async || (calls_in_flight(server) == 1).then_some(())).await;
}

async fn wait_for_cancellation(server: &FakeHttpServer, times: u64) {
    eventually("the call is cancelled at the server", async || {
        (cancellations(server) == times && calls_in_flight(server) == 0).then_some(())
    })
    .await;
}

fn tool_error_text(result: &str) -> String {
    let result: Value = serde_json::from_str(result).unwrap();
    assert_eq!(result["isError"], true, "{result}");
    result["content"][0]["text"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn unknown_members_pass_unchanged_between_all_eras() {
    for server_era in [ServerEra::Legacy, ServerEra::Modern] {
        let (fixture, server) = start_with_server(server_era).await;
        for era in Era::ALL {
            let agent = fixture.agent(era).await;
            let case = format!("{era:?} agent, {server_era:?} server");
            let listed = agent.list_tools().await;
            let odd =
                listed.iter().find(|tool| tool.get().contains("r_odd")).expect("the odd tool is listed");
            assert_eq!(odd.get(), ODD_TOOL.replace(r#""name":"odd""#, r#""name":"r_odd""#), "{case}");

            let result = agent.call("r_odd", "{}").await.unwrap();
            let without_result_type = match era {
                Era::Legacy => result.clone(),
                Era::Modern => result.replacen(r#""resultType":"complete","#, "", 1),
            };
            assert_eq!(without_result_type, ODD_RESULT, "{case}");
            assert_eq!(result.contains("resultType"), era == Era::Modern, "{case}");

            let arguments = r#"{"a": 1.0e+2,"b":[{"x":1,"x":2}],"c":12345678901234567890123,"d":"\u00e9"}"#;
            let params = format!(
                r#"{{"later":{{"k": []}},"name":"r_echo","arguments":{arguments},"_meta":{{"a/b": 1}}}}"#
            );
            let result = agent.request("tools/call", &params).await.unwrap();
            let echoed: Value = serde_json::from_str(&result).unwrap();
            let echoed = echoed["content"][0]["text"].as_str().unwrap();
            assert!(
                echoed.contains(&format!(r#""name":"echo","arguments":{arguments}"#)),
                "{case}: {echoed}"
            );
            assert!(echoed.contains(r#""later":{"k": []}"#), "{case}: {echoed}");
            assert!(echoed.contains(r#""a/b":1"#) || echoed.contains(r#""a/b": 1"#), "{case}: {echoed}");
        }
        assert_eq!(server.counters().complaints, Vec::<String>::new());
        assert_eq!(server.counters().cancelled + server.counters().abandoned, 0);
    }
}

#[tokio::test]
async fn server_error_is_returned_unchanged() {
    let (fixture, _server) = start_with_server(ServerEra::Legacy).await;
    for era in Era::ALL {
        let agent = fixture.agent(era).await;
        let error = r#"{"code":-31999,"message":"no","data":{"x": [1.0e+2]}}"#;
        assert_eq!(agent.call("r_fail", &format!(r#"{{"error":{error}}}"#)).await.unwrap_err(), error);
    }
    fixture.wait_for_metric(r#"calls_total{namespace="default",server="r",outcome="error"} 2"#).await;
}

#[tokio::test]
async fn progress_arrives_before_the_response() {
    for server_era in [ServerEra::Legacy, ServerEra::Modern] {
        let (fixture, server) = start_with_server(server_era).await;
        for era in Era::ALL {
            let agent = fixture.agent(era).await;
            let params =
                r#"{"name":"r_sleep","arguments":{"ms":20,"steps":2},"_meta":{"progressToken":"mine"}}"#;
            let mut call = agent.start_request("tools/call", params).await.unwrap();
            for step in 1..=2 {
                let notification = call.next_message().await.unwrap().unwrap();
                assert!(notification.contains("notifications/progress"), "{notification}");
                assert!(notification.contains(r#""progressToken":"mine""#), "{notification}");
                assert!(notification.contains(&format!(r#""progress":{step}"#)), "{notification}");
            }
            assert!(call.result().await.unwrap().contains("slept"));
            assert_eq!(call.next_message().await.unwrap(), None);
        }
        assert_eq!(server.counters().complaints, Vec::<String>::new());
    }
}

#[tokio::test]
async fn json_only_agent_gets_only_the_response() {
    let (fixture, _server) = start_with_server(ServerEra::Legacy).await;
    let agent = fixture.agent(Era::Legacy).await;
    let body = r#"{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"r_sleep","arguments":{"ms":20,"steps":2},"_meta":{"progressToken":1}}}"#;
    let headers = [
        ("Content-Type", "application/json"),
        ("Accept", "application/json"),
        ("Mcp-Session-Id", agent.session.as_deref().unwrap()),
    ];
    let response =
        crate::support::http::send(hyper::Method::POST, &fixture.url(), &headers, body).await.unwrap();
    assert!(!response.is_stream());
    assert!(response.text().await.unwrap().contains("slept"));
}

#[tokio::test]
async fn legacy_agent_cancels_by_notification() {
    for server_era in [ServerEra::Legacy, ServerEra::Modern] {
        let (fixture, server) = start_with_server(server_era).await;
        let agent = Arc::new(fixture.agent(Era::Legacy).await);
        let caller = agent.clone();
        let call = tokio::spawn(async move { caller.call("r_sleep", r#"{"ms":600000}"#).await });
        wait_for_call(&server).await;
        // Another id of this agent, and the same id of another agent.
        agent.notify("notifications/cancelled", r#"{"requestId":999}"#).await.unwrap();
        let other = fixture.agent(Era::Legacy).await;
        other.notify("notifications/cancelled", r#"{"requestId":2}"#).await.unwrap();
        assert_eq!(agent.request("ping", "{}").await.unwrap(), "{}");
        assert_eq!((calls_in_flight(&server), cancellations(&server)), (1, 0));

        agent.notify("notifications/cancelled", r#"{"requestId":2,"reason":"enough"}"#).await.unwrap();
        let error = call.await.unwrap().unwrap_err();
        assert_eq!(error, "the response ended without a result");
        wait_for_cancellation(&server, 1).await;
        fixture.wait_for_metric(r#"calls_total{namespace="default",server="r",outcome="cancelled"} 1"#).await;
        assert!(agent.call("r_echo", "{}").await.is_ok());
    }
}

#[tokio::test]
async fn disconnect_cancels_modern_calls_but_not_legacy_ones() {
    for steps in [0, 9] {
        for era in Era::ALL {
            let (fixture, server) = start_with_server(ServerEra::Legacy).await;
            let canceller = Arc::new(fixture.agent(era).await);
            let agent = canceller.clone();
            // With a step, the response is a stream by then. The rest of the call is long enough for the checks below.
            let ms = if steps == 0 { 600_000 } else { 10_000 };
            let params = format!(
                r#"{{"name":"r_sleep","arguments":{{"ms":{ms},"steps":{steps}}},"_meta":{{"progressToken":1}}}}"#
            );
            let call = tokio::spawn(async move {
                let mut call = agent.start_request("tools/call", &params).await.unwrap();
                call.next_message().await.unwrap();
                call
            });
            wait_for_call(&server).await;
            if steps == 0 {
                call.abort();
            } else {
                drop(call.await.unwrap());
            }
            if era == Era::Modern {
                wait_for_cancellation(&server, 1).await;
                continue;
            }
            // The legacy agent's call continues until its response or a late cancellation.
            let other = fixture.agent(Era::Legacy).await;
            assert!(other.call("r_echo", "{}").await.is_ok());
            assert_eq!((calls_in_flight(&server), cancellations(&server)), (1, 0));
            if steps == 0 {
                canceller.notify("notifications/cancelled", r#"{"requestId":2}"#).await.unwrap();
                wait_for_cancellation(&server, 1).await;
                fixture
                    .wait_for_metric(r#"calls_total{namespace="default",server="r",outcome="cancelled"} 1"#)
                    .await;
            } else {
                fixture
                    .wait_for_metric(r#"calls_total{namespace="default",server="r",outcome="ok"} 2"#)
                    .await;
                wait_for_cancellation(&server, 0).await;
            }
        }
    }
}

#[tokio::test]
async fn duplicate_request_id_is_rejected() {
    let (fixture, server) = start_with_server(ServerEra::Legacy).await;
    let agent = Arc::new(fixture.agent(Era::Legacy).await);
    let caller = agent.clone();
    let call = tokio::spawn(async move { caller.call("r_sleep", r#"{"ms":600000}"#).await });
    wait_for_call(&server).await;
    let body = r#"{"jsonrpc":"2.0","id":2,"method":"tools/call","params":{"name":"r_echo"}}"#;
    let headers =
        [("Content-Type", "application/json"), ("Mcp-Session-Id", agent.session.as_deref().unwrap())];
    let response =
        crate::support::http::send(hyper::Method::POST, &fixture.url(), &headers, body).await.unwrap();
    let text = response.text().await.unwrap();
    assert!(text.contains("-32600") && text.contains("in flight"), "{text}");
    call.abort();
}

#[tokio::test]
async fn id_of_a_detached_call_can_be_used_again_and_a_cancellation_ends_only_the_newer_call() {
    let (fixture, server) = start_with_server(ServerEra::Legacy).await;
    let agent = Arc::new(fixture.agent(Era::Legacy).await);
    let caller = agent.clone();
    let first = tokio::spawn(async move { caller.call("r_sleep", r#"{"ms":600000}"#).await });
    wait_for_call(&server).await;
    first.abort();

    // The second call uses the id of the first, whose disconnect the gateway may not have noticed yet.
    let second = async {
        let body = r#"{"jsonrpc":"2.0","id":2,"method":"tools/call","params":{"name":"r_sleep","arguments":{"ms":600000}}}"#;
        let headers =
            [("Content-Type", "application/json"), ("Mcp-Session-Id", agent.session.as_deref().unwrap())];
        eventually("the id is free", async || {
            let response = crate::support::http::send(hyper::Method::POST, &fixture.url(), &headers, body)
                .await
                .unwrap();
            let text = response.text().await.unwrap();
            (!text.contains("in flight")).then_some(text)
        })
        .await
    };
    let cancel = async {
        eventually("both calls are in flight", async || (calls_in_flight(&server) == 2).then_some(())).await;
        agent.notify("notifications/cancelled", r#"{"requestId":2}"#).await.unwrap();
    };
    let (text, ()) = tokio::join!(second, cancel);
    assert_eq!(text, "", "the newer call ends without a response");
    eventually("one call is cancelled", async || (cancellations(&server) == 1).then_some(())).await;
    agent.notify("notifications/cancelled", r#"{"requestId":2}"#).await.unwrap();
    assert_eq!(agent.request("ping", "{}").await.unwrap(), "{}");
    assert_eq!((calls_in_flight(&server), cancellations(&server)), (1, 1), "the first call continues");
    agent.end_session().await;
    wait_for_cancellation(&server, 2).await;
}

#[tokio::test]
async fn timed_out_call_is_cancelled_and_reported() {
    let extra_spec = json!({ "timeouts": { "call": "1s" } });
    let (fixture, server) =
        start_with_script(Script::new("rig", ServerEra::Legacy).tools(TOOLS), extra_spec).await;
    for era in Era::ALL {
        let agent = fixture.agent(era).await;
        let text = tool_error_text(&agent.call("r_sleep", r#"{"ms":600000}"#).await.unwrap());
        assert!(text.contains("default/r did not respond within 1 s"), "{text}");
    }
    wait_for_cancellation(&server, 2).await;
    fixture.wait_for_metric(r#"calls_total{namespace="default",server="r",outcome="timeout"} 2"#).await;
}

#[tokio::test]
async fn progress_extends_the_call_timeout() {
    // The call takes longer than the timeout, and a step takes far less than the timeout.
    let extra_spec = json!({ "timeouts": { "call": "8s" } });
    let call = async |server_era, era| {
        let (fixture, _server) =
            start_with_script(Script::new("rig", server_era).tools(TOOLS), extra_spec.clone()).await;
        let agent = fixture.agent(era).await;
        let params = r#"{"name":"r_sleep","arguments":{"ms":12000,"steps":20},"_meta":{"progressToken":1}}"#;
        let mut call = agent.start_request("tools/call", params).await.unwrap();
        let response = call.result().await.unwrap();
        assert!(response.contains("slept"), "{era:?} {server_era:?}: {response}");
    };
    let [legacy, modern] = Era::ALL;
    tokio::join!(
        call(ServerEra::Legacy, legacy),
        call(ServerEra::Legacy, modern),
        call(ServerEra::Modern, legacy),
        call(ServerEra::Modern, modern),
    );
}

#[tokio::test]
async fn quiet_call_becomes_a_stream() {
    let (fixture, _server) = start_with_server(ServerEra::Modern).await;
    let agent = fixture.agent(Era::Legacy).await;
    let mut call =
        agent.start_request("tools/call", r#"{"name":"r_sleep","arguments":{"ms":11000}}"#).await.unwrap();
    // The response head arrived before the result, so this is a stream.
    assert!(call.result().await.unwrap().contains("slept"));
    assert_eq!(call.next_message().await.unwrap(), None);
}

#[tokio::test]
async fn removed_tool_error_names_the_server_and_the_reason() {
    let (fixture, _server) = start_with_server(ServerEra::Dual).await;
    fixture.publish_tools("default", "off", &["t"]);
    for era in Era::ALL {
        let agent = fixture.agent(era).await;
        eventually("the tool is published", async || {
            agent.tool_names().await.contains(&"off_t".to_owned()).then_some(())
        })
        .await;
        let text = tool_error_text(&agent.call("off_t", "{}").await.unwrap());
        assert!(
            text.contains("default/off") && text.contains("exit code 7") && text.contains("later"),
            "{text}"
        );
        let unknown = agent.call("never_there", "{}").await.unwrap_err();
        assert!(unknown.contains("-32602") && unknown.contains("never_there"), "{unknown}");
        let nameless = agent.request("tools/call", r#"{"arguments":{}}"#).await.unwrap_err();
        assert!(nameless.contains("-32602"), "{nameless}");
    }
    let agent = fixture.agent(Era::Legacy).await;
    fixture.withdraw("default", "off", Problem::new(Reason::Removed, "off.yaml was deleted"));
    fixture.remove_server("r");
    eventually("all tools are removed", async || agent.tool_names().await.is_empty().then_some(())).await;
    for tool in ["off_t", "r_echo"] {
        let text = tool_error_text(&agent.call(tool, "{}").await.unwrap());
        assert!(text.contains("Removed") && text.contains("Do not call it again."), "{text}");
    }
    let text = tool_error_text(&agent.call("off_t", "{}").await.unwrap());
    assert!(text.contains("off.yaml was deleted"), "{text}");
}

#[tokio::test]
async fn lost_connection_is_reported_and_the_call_is_not_resent() {
    let (fixture, mut server) = start_with_server(ServerEra::Legacy).await;
    let agent = Arc::new(fixture.agent(Era::Legacy).await);
    let caller = agent.clone();
    let call = tokio::spawn(async move { caller.call("r_sleep", r#"{"ms":600000}"#).await });
    wait_for_call(&server).await;
    server.stop().await;
    let text = tool_error_text(&call.await.unwrap().unwrap());
    assert!(text.contains("default/r") && text.contains("may have taken effect"), "{text}");
    assert_eq!(server.counters().calls(), 1);
}

#[tokio::test]
async fn concurrent_agents_get_their_own_responses() {
    let script = Script::new("rig", ServerEra::Modern).tools(TOOLS);
    for answers in [ResponseFormat::Mixed, ResponseFormat::Json, ResponseFormat::Stream] {
        let mut script = script.clone();
        script.http.answers = answers;
        let (fixture, server) = start_with_script(script, json!({})).await;
        let mut calls = tokio::task::JoinSet::new();
        for number in 0..32 {
            let url = fixture.url();
            calls.spawn(async move {
                let agent = Agent::connect(Era::ALL[number % 2], &url).await;
                for turn in 0..5 {
                    let arguments = format!(r#"{{"who":"{number}/{turn}"}}"#);
                    let text = agent.call_text("r_echo", &arguments).await;
                    assert!(text.contains(&arguments), "{text}");
                }
                let big = agent.call_text("r_big", r#"{"bytes":300000}"#).await;
                assert_eq!(big.len(), 300_000);
            });
        }
        calls.join_all().await;
        assert_eq!((server.counters().calls(), calls_in_flight(&server)), (32 * 6, 0));
        assert_eq!(server.counters().complaints, Vec::<String>::new());
        fixture.wait_for_metric(r#"calls_total{namespace="default",server="r",outcome="ok"} 192"#).await;
    }
}
