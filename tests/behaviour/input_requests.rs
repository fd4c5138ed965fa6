//! Requests of servers for input of agents, over transports whose messages all share one stream.

use serde_json::{Value, json};

use crate::fixture::EvenkeelFixture;
use crate::rig::{FakeHttpServer, FakeStdioServer, Script, ServerEra};
use crate::support::{Agent, Era, PendingRequest, eventually, within};

const CAPABILITIES: &str = r#"{"elicitation":{"form":{}}}"#;
const ARGUMENTS: &str = r#"{"requests":[{"method":"elicitation/create","params":{"message":"?","requestedSchema":{"type":"object","properties":{}}}}]}"#;

async fn agent(fixture: &EvenkeelFixture, era: Era) -> Agent {
    Agent::connect_with_capabilities(era, &fixture.evenkeel.url(), CAPABILITIES).await.unwrap()
}

async fn ask(agent: &Agent, server: &str) -> PendingRequest {
    let params = format!(r#"{{"name":"{server}_ask","arguments":{ARGUMENTS}}}"#);
    agent.start_request("tools/call", &params).await.unwrap()
}

/// Returns the server's view of the response to its only request.
fn response(result: &str) -> Value {
    let result: Value = serde_json::from_str(result).unwrap();
    let text = result["content"][0]["text"].as_str().unwrap_or_else(|| panic!("{result}"));
    serde_json::from_str::<Value>(text).unwrap()[0]["result"].clone()
}

/// Calls the tool with an agent of each era, which accepts.
async fn check_answers(fixture: &EvenkeelFixture, server: &str) {
    let legacy = agent(fixture, Era::Legacy).await;
    let mut call = ask(&legacy, server).await;
    let asked = within("the request arrives", call.next_message()).await.unwrap().unwrap();
    let asked: Value = serde_json::from_str(&asked).unwrap();
    assert_eq!(asked["method"], "elicitation/create");
    assert_eq!(legacy.respond(&asked["id"].to_string(), r#"{"action":"accept"}"#).await, 202);
    assert_eq!(response(&call.result().await.unwrap()), json!({ "action": "accept" }), "{server}");

    let modern = agent(fixture, Era::Modern).await;
    let asked: Value = serde_json::from_str(&ask(&modern, server).await.result().await.unwrap()).unwrap();
    assert_eq!(asked["resultType"], "input_required", "{asked}");
    let params = format!(
        r#"{{"name":"{server}_ask","arguments":{ARGUMENTS},"inputResponses":{{"input":{{"action":"accept"}}}},"requestState":{}}}"#,
        asked["requestState"]
    );
    let done = modern.request("tools/call", &params).await.unwrap();
    assert_eq!(response(&done), json!({ "action": "accept" }), "{server}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn input_is_requested_of_the_only_call() {
    let fixture = EvenkeelFixture::start(&[]).await;
    let script = |name: &str| Script::new(name, ServerEra::Legacy).tools(&["ask", "sleep"]);
    let stdio = FakeStdioServer::new(script("stdio"));
    let mut over_sse = script("sse");
    (over_sse.http.sse, over_sse.http.sessions) = (true, false);
    let sse = FakeHttpServer::start(over_sse).await;
    fixture.declared.write_server("stdio", &stdio.spec(""));
    fixture.declared.write_server("sse", &sse.spec());
    for server in ["stdio", "sse"] {
        fixture.evenkeel.wait_until_attached(server).await;
        check_answers(&fixture, server).await;

        // With another call in flight it cannot be told which agent is responsible.
        let other = agent(&fixture, Era::Legacy).await;
        let sleeping = format!(r#"{{"name":"{server}_sleep","arguments":{{"ms":600000}}}}"#);
        let sleeping = tokio::spawn({
            let (url, session) = (other.url.clone(), other.session.clone());
            async move { (other.start_request("tools/call", &sleeping).await, url, session) }
        });
        let in_flight = async || match server {
            "stdio" => stdio.live_processes()[0].counters().await.in_flight,
            _ => sse.counters().in_flight,
        };
        eventually("the other call is in flight", async || (in_flight().await == 1).then_some(())).await;
        let asking = agent(&fixture, Era::Legacy).await;
        let result = within("the result", async { ask(&asking, server).await.result().await }).await.unwrap();
        assert_eq!(response(&result), json!({ "action": "decline" }), "{server}");
        sleeping.abort();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn vanished_agents_leave_nothing_behind() {
    let fixture = EvenkeelFixture::start(&[]).await;
    let script = Script::new("s", ServerEra::Legacy).tools(&["ask", "sleep"]);
    let server = FakeHttpServer::start(script).await;
    fixture.declared.write_server("s", &server.spec());
    fixture.evenkeel.wait_until_attached("s").await;
    let mut vanishing = Vec::new();
    for _ in 0..5 {
        let agent = agent(&fixture, Era::Legacy).await;
        let mut call = ask(&agent, "s").await;
        within("the request arrives", call.next_message()).await.unwrap();
        vanishing.push(call);
    }
    assert_eq!(server.counters().in_flight, 5);
    drop(vanishing);
    // The server learns that there is no answer, and its tools return.
    eventually("no call is in flight", async || (server.counters().in_flight == 0).then_some(())).await;
    assert_eq!(server.counters().answers, 5);
}
