//! Servers that lose their sessions, with various error responses: calls continue, in one new session for all of them.

use crate::fixture::{EvenkeelFixture, NO_RETRY};
use crate::rig::{Action, ControlCommand, FakeHttpServer, Rule, Script, ServerEra};
use crate::support::{Era, eventually, within};

/// Responses of servers to a request in an unknown session: HTTP status, JSON-RPC code and message.
const UNKNOWN_SESSION_RESPONSES: [(u16, i32, &str); 12] = [
    (200, -32000, "No valid session ID provided"),
    (200, -32603, "Server not initialized"),
    (400, -32603, "Internal error"),
    (401, -32001, "Unauthorized"),
    (403, -32000, "Forbidden: unknown session"),
    (404, -32001, "Session not found"),
    (400, -32000, "Bad Request: No valid session ID provided"),
    (400, -32600, "Invalid Request"),
    (400, -32602, "Missing session"),
    (409, -32000, "Conflict"),
    (410, -32001, "Gone"),
    (422, -32000, "Unprocessable"),
];

async fn forgetful_server(
    fixture: &EvenkeelFixture,
    number: usize,
    answer: (u16, i32, &str),
) -> (String, FakeHttpServer) {
    let name = format!("s{number}");
    let mut script = Script::new(&name, ServerEra::Legacy).tools(&["echo"]);
    script.http.unknown_session = (answer.0, answer.1, answer.2.to_owned());
    let rig = FakeHttpServer::start(script).await;
    // Without health checks, so that only the calls can detect the loss.
    fixture.attach(&name, &format!("{}\n{NO_RETRY}\nhealth: {{ interval: 0s }}", rig.spec())).await;
    (name, rig)
}

#[tokio::test]
async fn calls_continue_in_one_new_session() {
    let fixture = EvenkeelFixture::start(&[]).await;
    let agent = fixture.agent(Era::Legacy).await;
    for (number, answer) in UNKNOWN_SESSION_RESPONSES.into_iter().enumerate() {
        let (name, rig) = forgetful_server(&fixture, number, answer).await;
        let tool = format!("{name}_echo");
        eventually("the tool is listed", async || agent.tool_names().await.contains(&tool).then_some(()))
            .await;
        rig.send_command(ControlCommand::ForgetSessions { quietly: true });
        let calls: Vec<_> = (0..10).map(|_| agent.call_text(&tool, "{}")).collect();
        futures_util::future::join_all(calls).await;
        assert_eq!(rig.counters().sessions_opened, 2, "{answer:?}: one new session for all");
        assert_eq!(rig.counters().complaints, Vec::<String>::new(), "{answer:?}");
    }
}

/// The server may have processed a call that was in flight when another one showed that the session is lost.
#[tokio::test]
async fn call_in_flight_is_not_sent_again_when_the_session_is_lost() {
    for (ms, succeeds) in [(600, true), (600_000, false)] {
        let mut script = Script::new("s", ServerEra::Legacy).tools(&["echo", "sleep"]);
        script.http.unknown_session = (404, -32001, "Session not found".into());
        let rig = FakeHttpServer::start(script).await;
        let spec = format!("{}\n{NO_RETRY}\nhealth: {{ interval: 0s }}", rig.spec());
        let fixture = EvenkeelFixture::start(&[("s", &spec)]).await;
        fixture.evenkeel.wait_until_attached("s").await;
        let (sleeping, calling) = (fixture.agent(Era::Legacy).await, fixture.agent(Era::Legacy).await);
        let arguments = format!(r#"{{"ms":{ms}}}"#);
        let call = tokio::spawn(async move { sleeping.call("s_sleep", &arguments).await });
        eventually("the call is in flight", async || (rig.counters().in_flight == 1).then_some(())).await;
        rig.send_command(ControlCommand::ForgetSessions { quietly: true });
        calling.call_text("s_echo", "{}").await;
        let result = within("the call in flight ends", call).await.unwrap();
        let text = result.unwrap_or_else(|error| error);
        assert_eq!(!text.contains(r#""isError":true"#), succeeds, "{text}");
        // The call in flight, the one that was rejected, and the latter once more.
        assert_eq!(rig.counters().calls(), 3, "{text}");
    }
}

#[tokio::test]
async fn health_check_detects_a_forgotten_session() {
    let mut script = Script::new("s", ServerEra::Legacy).tools(&["echo"]);
    script.http.get_stream = false;
    script.http.unknown_session = (400, -32000, "Bad Request: Server not initialized".into());
    let rig = FakeHttpServer::start(script).await;
    let fixture =
        EvenkeelFixture::start(&[("s", &format!("{}\n{NO_RETRY}\nhealth: {{ interval: 5s }}", rig.spec()))])
            .await;
    fixture.evenkeel.wait_until_attached("s").await;
    rig.send_command(ControlCommand::ForgetSessions { quietly: true });
    eventually("a new session is opened without a call", async || {
        (rig.counters().sessions_opened == 2).then_some(())
    })
    .await;
}

/// A request that the server rejects for other reasons does not end the session.
#[tokio::test]
async fn rejected_request_does_not_end_a_valid_session() {
    let error = r#"{"jsonrpc":"2.0","id":ID,"error":{"code":-32602,"message":"session_id is required"}}"#;
    for (status, without_ping) in [(400, false), (404, false), (422, false), (400, true)] {
        let refusal = Action::Http {
            status,
            headers: [("Content-Type".to_owned(), "application/json".to_owned())].into(),
            body: error
                .replace("ID", "null")
                .replace("-32602", if status == 404 { "-32601" } else { "-32602" }),
        };
        let mut script = Script::new("s", ServerEra::Legacy)
            .tools(&["echo"])
            .on("tools/call", Rule::times(3, refusal.clone()));
        if without_ping {
            script = script.on("ping", Rule::always(refusal));
        }
        let rig = FakeHttpServer::start(script).await;
        let fixture = EvenkeelFixture::start(&[("s", &format!("{}\n{NO_RETRY}", rig.spec()))]).await;
        fixture.evenkeel.wait_until_attached("s").await;
        let agent = fixture.agent(Era::Legacy).await;
        for _ in 0..3 {
            let refused = agent.call("s_echo", "{}").await.unwrap_err();
            assert!(refused.contains("session_id is required"), "{status}: {refused}");
        }
        agent.call_text("s_echo", "{}").await;
        assert_eq!(rig.counters().sessions_opened, 1, "{status}");
    }
}
