//! Requests of servers for input from agents: elicitation and sampling, in every pairing of eras.

use hyper::Method;
use serde_json::{Value, json};

use crate::fixture::GatewayFixture;
use crate::rig::{Action, ControlCommand, FakeHttpServer, Rule, Script, ServerEra};
use crate::support::http::send;
use crate::support::{Agent, Era, PendingRequest, eventually, within};

const ALL_CAPABILITIES: &str = r#"{"elicitation":{"form":{},"url":{}},"sampling":{}}"#;
const FORM: &str = r#"{"method":"elicitation/create","params":{"message":"Wh\u00e4t?","requestedSchema":{"type":"object","properties":{"n":{"type":"number","default":1.0e+2}}}}}"#;
const SAMPLING: &str = r#"{"method":"sampling/createMessage","params":{"messages":[],"maxTokens":5}}"#;
const URL: &str = r#"{"method":"elicitation/create","params":{"mode":"url","url":"https://example.com/","message":"open"}}"#;
const ACCEPTED: &str = r#"{"action":"accept","content":{"n":1}}"#;

async fn start(era: ServerEra) -> (GatewayFixture, FakeHttpServer) {
    let fixture = GatewayFixture::start().await;
    let server = FakeHttpServer::start(Script::new("s", era).tools(&["ask", "echo"])).await;
    fixture.attach_server("s", &server, json!({})).await;
    (fixture, server)
}

async fn connect(fixture: &GatewayFixture, era: Era, capabilities: &str) -> Agent {
    Agent::connect_with_capabilities(era, &fixture.url(), capabilities).await.unwrap()
}

/// Begins a call of the tool `ask`.
async fn ask(agent: &Agent, requests: &[&str], more: &str) -> PendingRequest {
    let params = format!(r#"{{"name":"s_ask","arguments":{{"requests":[{}]{more}}}}}"#, requests.join(","));
    agent.start_request("tools/call", &params).await.unwrap()
}

async fn next(call: &mut PendingRequest) -> Value {
    let message = within("a message arrives", call.next_message()).await.unwrap();
    serde_json::from_str(&message.expect("the stream is open")).unwrap()
}

/// Returns the text of a tool result, parsed.
fn text(result: &str) -> Value {
    let result: Value = serde_json::from_str(result).unwrap();
    serde_json::from_str(result["content"][0]["text"].as_str().unwrap_or_else(|| panic!("{result}"))).unwrap()
}

/// Sends the call of the tool `ask` again, with the state of `result` and these responses.
async fn repeat(
    agent: &Agent,
    requests: &[&str],
    more: &str,
    result: &Value,
    responses: &str,
) -> Result<String, String> {
    let params = format!(
        r#"{{"name":"s_ask","arguments":{{"requests":[{}]{more}}},"inputResponses":{responses},"requestState":{}}}"#,
        requests.join(","),
        result["requestState"]
    );
    agent.request("tools/call", &params).await
}

#[tokio::test]
async fn legacy_agent_answers_the_requests_of_a_legacy_server() {
    let (fixture, server) = start(ServerEra::Legacy).await;
    let agent = connect(&fixture, Era::Legacy, ALL_CAPABILITIES).await;
    let with_id = URL.replace(r#""mode""#, r#""elicitationId":"e 1","mode""#);
    let mut notifications = agent.notifications().await;
    let mut call = ask(&agent, &[FORM, SAMPLING, &with_id], "").await;
    for (request, response) in [
        (FORM, ACCEPTED),
        (SAMPLING, r#"{"role":"assistant","content":{"type":"text","text":"hi"},"model":"m"}"#),
        (&with_id, r#"{"action":"accept"}"#),
    ] {
        let asked = next(&mut call).await;
        let expected: Value = serde_json::from_str(request).unwrap();
        assert_eq!((&asked["method"], &asked["params"]), (&expected["method"], &expected["params"]));
        assert!(!asked.to_string().contains("question"), "the server's id is its own: {asked}");
        assert_eq!(agent.respond(&asked["id"].to_string(), response).await, 202);
    }
    let answers = text(&call.result().await.unwrap());
    assert_eq!(answers[0]["result"], serde_json::from_str::<Value>(ACCEPTED).unwrap());
    assert_eq!(
        (&answers[1]["result"]["model"], &answers[2]["result"]["action"]),
        (&json!("m"), &json!("accept"))
    );
    assert_eq!(server.counters().complaints, Vec::<String>::new());

    // The end of the elicitation comes after the call, to the agent that got it.
    let other = connect(&fixture, Era::Legacy, ALL_CAPABILITIES).await;
    let mut others = other.notifications().await;
    for id in ["e 2", "e 1"] {
        let method = "notifications/elicitation/complete";
        let message = json!({ "jsonrpc": "2.0", "method": method, "params": { "elicitationId": id } });
        server.send_command(ControlCommand::Message(message.to_string()));
    }
    let complete = notifications.wait_for("notifications/elicitation/complete").await;
    assert!(complete.contains(r#""elicitationId":"e 1""#), "{complete}");
    assert_eq!(others.drain(), Vec::<String>::new());
}

#[tokio::test]
async fn what_an_agent_does_not_support_is_declined_at_once() {
    for (era, capabilities) in [
        (Era::Legacy, "{}"),
        (Era::Modern, "{}"),
        (Era::Legacy, r#"{"elicitation":{"url":{}}}"#),
        (Era::Modern, r#"{"elicitation":{"url":{}}}"#),
    ] {
        let (fixture, _server) = start(ServerEra::Legacy).await;
        let agent = connect(&fixture, era, capabilities).await;
        let result = within("the result", async { ask(&agent, &[FORM, SAMPLING], "").await.result().await });
        let answers = text(&result.await.unwrap());
        assert_eq!(answers[0]["result"], json!({ "action": "decline" }), "{era:?} {capabilities}");
        assert_eq!(answers[1]["error"]["code"], -32601, "{era:?} {capabilities}");
    }
}

#[tokio::test]
async fn request_on_the_notification_stream_is_declined() {
    let (fixture, _server) = start(ServerEra::Legacy).await;
    let agent = connect(&fixture, Era::Legacy, ALL_CAPABILITIES).await;
    let answers = text(&ask(&agent, &[FORM], r#","on_get":true"#).await.result().await.unwrap());
    assert_eq!(answers[0]["result"], json!({ "action": "decline" }));
}

#[tokio::test]
async fn legacy_agent_answers_the_requests_of_a_modern_server() {
    let (fixture, server) = start(ServerEra::Modern).await;
    let agent = connect(&fixture, Era::Legacy, ALL_CAPABILITIES).await;
    let mut call = ask(&agent, &[FORM, URL], r#","rounds":2"#).await;
    for _ in 0..2 {
        let asked = [next(&mut call).await, next(&mut call).await];
        // A revision with sessions requires an id of each elicitation by URL.
        assert!(
            asked[1]["params"]["elicitationId"].is_string() && asked[0]["params"]["elicitationId"].is_null()
        );
        for request in &asked {
            assert_eq!(agent.respond(&request["id"].to_string(), ACCEPTED).await, 202);
        }
    }
    let responses = text(&call.result().await.unwrap());
    let accepted: Value = serde_json::from_str(ACCEPTED).unwrap();
    assert_eq!(responses, json!({ "q0": accepted, "q1": accepted }));
    assert_eq!(server.counters().methods["tools/call"], 3);

    // A server that never has enough is not asked for ever.
    let mut call = ask(&agent, &[FORM], r#","rounds":1000"#).await;
    for _ in 0..10 {
        let asked = next(&mut call).await;
        agent.respond(&asked["id"].to_string(), ACCEPTED).await;
    }
    let result = call.result().await.unwrap();
    assert!(result.contains("more than 10 times") && result.contains("isError"), "{result}");
}

#[tokio::test]
async fn modern_server_learns_the_capabilities_of_the_calling_agent() {
    let (fixture, _server) = start(ServerEra::Modern).await;
    for era in Era::ALL {
        let without = connect(&fixture, era, r#"{"sampling":{}}"#).await;
        let error = ask(&without, &[FORM], "").await.result().await.unwrap_err();
        assert!(error.contains("-32021"), "{era:?}: {error}");
        let with = connect(&fixture, era, r#"{"elicitation":{},"extensions":{"a/b":{}}}"#).await;
        let echoed = with.call_text("s_echo", "{}").await;
        let params: Value = serde_json::from_str(&echoed).unwrap();
        let capabilities = &params["_meta"]["io.modelcontextprotocol/clientCapabilities"];
        assert_eq!(*capabilities, json!({ "elicitation": { "form": {} } }), "{era:?}");
    }
}

#[tokio::test]
async fn modern_agent_answers_a_modern_server() {
    let (fixture, _server) = start(ServerEra::Modern).await;
    let agent = connect(&fixture, Era::Modern, ALL_CAPABILITIES).await;
    let result: Value =
        serde_json::from_str(&ask(&agent, &[FORM], "").await.result().await.unwrap()).unwrap();
    assert_eq!(result["resultType"], "input_required");
    assert_eq!(result["inputRequests"]["q0"], serde_json::from_str::<Value>(FORM).unwrap());
    assert!(!result["requestState"].as_str().unwrap().contains("round"), "the state is sealed");

    // The state is for this request alone, and unchanged.
    let responses = format!(r#"{{"q0":{ACCEPTED}}}"#);
    let other = repeat(&agent, &[URL], "", &result, &responses).await.unwrap_err();
    assert!(other.contains("-32602") && other.contains("another request"), "{other}");
    let mut changed = result.clone();
    changed["requestState"] = format!("{}A", result["requestState"].as_str().unwrap()).into();
    let forged = repeat(&agent, &[FORM], "", &changed, &responses).await.unwrap_err();
    assert!(forged.contains("-32602") && forged.contains("not valid"), "{forged}");

    let done = repeat(&agent, &[FORM], "", &result, &responses).await.unwrap();
    assert_eq!(text(&done)["q0"]["action"], "accept");
    let again = repeat(&agent, &[FORM], "", &result, &responses).await.unwrap_err();
    assert!(again.contains("used before"), "{again}");
}

#[tokio::test]
async fn modern_agent_answers_a_legacy_server_whose_call_stays_open() {
    let (fixture, server) = start(ServerEra::Legacy).await;
    let agent = connect(&fixture, Era::Modern, ALL_CAPABILITIES).await;
    let both = [FORM, SAMPLING];
    let asked: Value = serde_json::from_str(&ask(&agent, &both, "").await.result().await.unwrap()).unwrap();
    assert_eq!(asked["inputRequests"]["input"], serde_json::from_str::<Value>(FORM).unwrap());
    fixture.wait_for_metric("suspended_calls 1").await;
    assert_eq!(server.counters().in_flight, 1);

    // A request without the response is asked again.
    let asked: Value = serde_json::from_str(&repeat(&agent, &both, "", &asked, "{}").await.unwrap()).unwrap();
    assert_eq!(asked["inputRequests"]["input"]["method"], "elicitation/create");
    let response = format!(r#"{{"input":{ACCEPTED}}}"#);
    let asked: Value =
        serde_json::from_str(&repeat(&agent, &both, "", &asked, &response).await.unwrap()).unwrap();
    assert_eq!(asked["inputRequests"]["input"]["method"], "sampling/createMessage");
    let done = repeat(&agent, &both, "", &asked, r#"{"input":{"model":"m"}}"#).await.unwrap();
    let answers = text(&done);
    assert_eq!(answers[0]["result"]["action"], "accept");
    assert_eq!(answers[1]["result"]["model"], "m");
    assert_eq!(server.counters().methods["tools/call"], 1, "the call was sent once");
    fixture.wait_for_metric("suspended_calls 0").await;
}

#[tokio::test]
async fn call_that_is_open_ends_with_its_process() {
    let (mut fixture, server) = start(ServerEra::Legacy).await;
    let agent = connect(&fixture, Era::Modern, ALL_CAPABILITIES).await;
    let asked: Value = serde_json::from_str(&ask(&agent, &[FORM], "").await.result().await.unwrap()).unwrap();
    fixture.restart().await;
    eventually("the call is cancelled", async || (server.counters().in_flight == 0).then_some(())).await;
    let error = repeat(&agent, &[FORM], "", &asked, "{}").await.unwrap_err();
    assert!(error.contains("-32602") && error.contains("without requestState"), "{error}");
}

#[tokio::test]
async fn legacy_agent_that_goes_away_cancels_what_it_was_asked() {
    let (fixture, server) = start(ServerEra::Legacy).await;
    let agent = connect(&fixture, Era::Legacy, ALL_CAPABILITIES).await;
    let mut call = ask(&agent, &[FORM], "").await;
    let asked = next(&mut call).await;
    drop(call);
    // The call itself goes on without its agent.
    eventually("the call ends", async || (server.counters().in_flight == 0).then_some(())).await;
    assert_eq!((server.counters().answers, server.counters().cancelled), (1, 0));
    assert_eq!(agent.respond(&asked["id"].to_string(), ACCEPTED).await, 400);
    fixture.wait_for_metric("unexpected_responses_total 1").await;
}

/// Without a request of its agent, a call stays open only while it waits for input.
#[tokio::test]
async fn modern_agent_that_goes_away_cancels_a_call_that_goes_on_after_its_input() {
    const SLEEP: &str = r#","then_ms":600000"#;
    // The call is held by the replica that the agent reaches, or by another one.
    for passed_on in [false, true] {
        let server = FakeHttpServer::start(Script::new("s", ServerEra::Legacy).tools(&["ask", "echo"])).await;
        let holder = GatewayFixture::start_with(|config| config.limits.max_server_calls = 1).await;
        let other = GatewayFixture::start().await;
        for replica in [&holder, &other] {
            replica.attach_server("s", &server, json!({})).await;
        }
        let mut agent = connect(&holder, Era::Modern, ALL_CAPABILITIES).await;
        let asked: Value =
            serde_json::from_str(&ask(&agent, &[FORM], SLEEP).await.result().await.unwrap()).unwrap();
        holder.wait_for_metric("suspended_calls 1").await;
        assert_eq!((server.counters().in_flight, server.counters().cancelled), (1, 0));

        if passed_on {
            agent.url = other.url();
        }
        let repeating = tokio::spawn(async move {
            let responses = format!(r#"{{"input":{ACCEPTED}}}"#);
            repeat(&agent, &[FORM], SLEEP, &asked, &responses).await
        });
        eventually("the server has its input", async || (server.counters().answers == 1).then_some(())).await;
        holder.wait_for_metric("suspended_calls 0").await;
        assert_eq!((server.counters().in_flight, server.counters().cancelled), (1, 0));
        // Aborting the task closes the connection of the request.
        repeating.abort();
        eventually("the call is cancelled at the server", async || {
            let counters = server.counters();
            (counters.cancelled == 1 && counters.in_flight == 0).then_some(())
        })
        .await;
        // Another call finds room.
        let next = connect(&holder, Era::Modern, ALL_CAPABILITIES).await;
        next.call_text("s_echo", "{}").await;
    }
}

#[tokio::test]
async fn cancelled_request_of_a_server_is_cancelled_at_the_agent() {
    let (fixture, _server) = start(ServerEra::Legacy).await;
    let agent = connect(&fixture, Era::Legacy, ALL_CAPABILITIES).await;
    let mut call = ask(&agent, &[FORM], r#","cancel":true"#).await;
    let asked = next(&mut call).await;
    let cancelled = next(&mut call).await;
    assert_eq!(cancelled["method"], "notifications/cancelled");
    assert_eq!(cancelled["params"]["requestId"], asked["id"]);
    assert_eq!(text(&call.result().await.unwrap()), json!([]));
    assert_eq!(agent.respond(&asked["id"].to_string(), ACCEPTED).await, 400);
}

#[tokio::test]
async fn response_to_no_request_is_an_error() {
    let (fixture, _server) = start(ServerEra::Legacy).await;
    let legacy = connect(&fixture, Era::Legacy, ALL_CAPABILITIES).await;
    for id in ["7", "\"question 1\"", "\"AAAA\""] {
        assert_eq!(legacy.respond(id, ACCEPTED).await, 400, "{id}");
    }
    // An id is of use in its session alone.
    let mut call = ask(&legacy, &[FORM], "").await;
    let asked = next(&mut call).await;
    let other = connect(&fixture, Era::Legacy, ALL_CAPABILITIES).await;
    assert_eq!(other.respond(&asked["id"].to_string(), ACCEPTED).await, 400);
    assert_eq!(legacy.respond(&asked["id"].to_string(), ACCEPTED).await, 202);
    assert_eq!(legacy.respond(&asked["id"].to_string(), ACCEPTED).await, 400, "it was answered");
    fixture.wait_for_metric("unexpected_responses_total 5").await;
}

#[tokio::test]
async fn url_elicitation_error_becomes_a_request_for_input_in_the_modern_era() {
    let error = r#"{"code":-32042,"message":"log in","data":{"elicitations":[{"mode":"url","elicitationId":"e","url":"https://example.com/","message":"open"}]}}"#;
    let error = Action::Error(serde_json::value::RawValue::from_string(error.into()).unwrap());
    let mut script = Script::new("s", ServerEra::Legacy).tools(&["ask", "echo"]);
    script = script.on("tools/call", Rule::times(2, error.clone()));
    let fixture = GatewayFixture::start().await;
    let server = FakeHttpServer::start(script).await;
    fixture.attach_server("s", &server, json!({})).await;

    let legacy = connect(&fixture, Era::Legacy, ALL_CAPABILITIES).await;
    let raw = legacy.call("s_echo", "{}").await.unwrap_err();
    assert!(raw.contains("-32042") && raw.contains("https://example.com/"), "{raw}");

    let modern = connect(&fixture, Era::Modern, ALL_CAPABILITIES).await;
    let asked: Value = serde_json::from_str(&modern.call("s_echo", "{}").await.unwrap()).unwrap();
    assert_eq!(asked["resultType"], "input_required");
    assert_eq!(asked["inputRequests"]["1"]["params"]["url"], "https://example.com/");
    let params = format!(
        r#"{{"name":"s_echo","arguments":{{}},"inputResponses":{{"1":{{"action":"accept"}}}},"requestState":{}}}"#,
        asked["requestState"]
    );
    let done = modern.request("tools/call", &params).await.unwrap();
    let sent = text(&done);
    assert!(sent["inputResponses"].is_null() && sent["requestState"].is_null(), "{sent}");

    // An agent that cannot open URLs learns what it lacks.
    server.edit_script(|script| drop(script.on.insert("tools/call".into(), vec![Rule::always(error)])));
    let without = connect(&fixture, Era::Modern, r#"{"elicitation":{}}"#).await;
    let error = without.call("s_echo", "{}").await.unwrap_err();
    assert!(error.contains("-32021") && error.contains(r#""url":{}"#), "{error}");
}

#[tokio::test]
async fn waiting_for_a_person_does_not_use_up_the_timeout() {
    let fixture = GatewayFixture::start().await;
    let server = FakeHttpServer::start(Script::new("s", ServerEra::Legacy).tools(&["ask"])).await;
    fixture.attach_server("s", &server, json!({ "timeouts": { "call": "1s" } })).await;
    for era in Era::ALL {
        let agent = connect(&fixture, era, ALL_CAPABILITIES).await;
        let mut call = ask(&agent, &[FORM], "").await;
        let asked = next(&mut call).await;
        tokio::time::sleep(std::time::Duration::from_millis(2_500)).await;
        let result = if era == Era::Legacy {
            assert_eq!(agent.respond(&asked["id"].to_string(), ACCEPTED).await, 202);
            call.result().await.unwrap()
        } else {
            let response = format!(r#"{{"input":{ACCEPTED}}}"#);
            repeat(&agent, &[FORM], "", &asked["result"], &response).await.unwrap()
        };
        assert_eq!(text(&result)[0]["result"]["action"], "accept", "{era:?}");
    }
}

#[tokio::test]
async fn response_reaches_the_replica_that_asked() {
    let server = FakeHttpServer::start(Script::new("s", ServerEra::Legacy).tools(&["ask"])).await;
    let (mut first, second) = (GatewayFixture::start().await, GatewayFixture::start().await);
    first.attach_server("s", &server, json!({})).await;
    second.attach_server("s", &server, json!({})).await;

    let mut legacy = connect(&first, Era::Legacy, ALL_CAPABILITIES).await;
    let mut call = ask(&legacy, &[FORM], "").await;
    let asked = next(&mut call).await;
    legacy.url = second.url();
    assert_eq!(legacy.respond(&asked["id"].to_string(), ACCEPTED).await, 202);
    assert_eq!(text(&call.result().await.unwrap())[0]["result"]["action"], "accept");
    assert_eq!(legacy.respond(&asked["id"].to_string(), ACCEPTED).await, 400, "it was answered");

    let mut modern = connect(&first, Era::Modern, ALL_CAPABILITIES).await;
    let asked: Value =
        serde_json::from_str(&ask(&modern, &[FORM], "").await.result().await.unwrap()).unwrap();
    modern.url = second.url();
    let response = format!(r#"{{"input":{ACCEPTED}}}"#);
    let done = repeat(&modern, &[FORM], "", &asked, &response).await.unwrap();
    assert_eq!(text(&done)[0]["result"]["action"], "accept");

    // A replica that has ended is told as such, by the one that is asked.
    modern.url = first.url();
    let asked: Value =
        serde_json::from_str(&ask(&modern, &[FORM], "").await.result().await.unwrap()).unwrap();
    first.stop().await;
    modern.url = second.url();
    let error = repeat(&modern, &[FORM], "", &asked, &response).await.unwrap_err();
    assert!(error.contains("without requestState"), "{error}");
}

#[tokio::test]
async fn forwarded_request_is_not_forwarded_again() {
    let (fixture, _server) = start(ServerEra::Legacy).await;
    let agent = connect(&fixture, Era::Legacy, ALL_CAPABILITIES).await;
    let session = agent.session.clone().unwrap();
    let headers = [
        ("Content-Type", "application/json"),
        ("Accept", "application/json, text/event-stream"),
        ("Mcp-Session-Id", &*session),
        ("Evenkeel-Forwarded", "1"),
    ];
    let body = r#"{"jsonrpc":"2.0","id":"x","result":{}}"#;
    assert_eq!(send(Method::POST, &fixture.url(), &headers, body).await.unwrap().status, 400);
}
