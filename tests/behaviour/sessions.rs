//! Servers that forget their sessions, however they say so: calls go on, in one new session for all.

use crate::rig::{Command, Era as RigEra, Http, Rule, Script, Then};
use crate::stage::{NEVER, Stage};
use crate::support::{Era, eventually};

/// How servers answer a request in a session that they do not know: HTTP status, JSON-RPC code and message.
const ANSWERS: [(u16, i32, &str); 7] = [
    (404, -32001, "Session not found"),
    (400, -32000, "Bad Request: No valid session ID provided"),
    (400, -32600, "Invalid Request"),
    (400, -32602, "Missing session"),
    (409, -32000, "Conflict"),
    (410, -32001, "Gone"),
    (422, -32000, "Unprocessable"),
];

async fn forgetful(stage: &Stage, number: usize, answer: (u16, i32, &str)) -> (String, Http) {
    let name = format!("s{number}");
    let mut script = Script::new(&name, RigEra::Legacy).tools(&["echo"]);
    script.http.unknown_session = (answer.0, answer.1, answer.2.to_owned());
    let rig = Http::start(script).await;
    // Without health checks, so that nothing but the calls can notice.
    stage.attach(&name, &format!("{}\n{NEVER}\nhealth: {{ interval: 0s }}", rig.spec())).await;
    (name, rig)
}

#[tokio::test]
async fn all_calls_go_on_in_one_new_session() {
    let stage = Stage::start(&[]).await;
    let agent = stage.agent(Era::Legacy).await;
    for (number, answer) in ANSWERS.into_iter().enumerate() {
        let (name, rig) = forgetful(&stage, number, answer).await;
        let tool = format!("{name}_echo");
        eventually("the tool is there", async || agent.tools().await.contains(&tool).then_some(())).await;
        rig.tell(Command::ForgetSessions { quietly: true });
        let calls: Vec<_> = (0..10).map(|_| agent.text(&tool, "{}")).collect();
        futures_util::future::join_all(calls).await;
        assert_eq!(rig.counters().sessions_opened, 2, "{answer:?}: one new session for all");
        assert_eq!(rig.counters().complaints, Vec::<String>::new(), "{answer:?}");
    }
}

/// The call gets the server's own error, and the next one goes on.
#[tokio::test]
async fn an_error_in_a_response_that_says_success_is_looked_into() {
    let stage = Stage::start(&[]).await;
    let agent = stage.agent(Era::Legacy).await;
    for (number, message) in
        ["No valid session ID provided", "Server not initialized"].into_iter().enumerate()
    {
        let (name, rig) = forgetful(&stage, number, (200, -32000, message)).await;
        let tool = format!("{name}_echo");
        eventually("the tool is there", async || agent.tools().await.contains(&tool).then_some(())).await;
        rig.tell(Command::ForgetSessions { quietly: true });
        assert!(agent.call(&tool, "{}").await.unwrap_err().contains(message));
        eventually("calls go on", async || agent.call(&tool, "{}").await.ok()).await;
        assert_eq!(rig.counters().sessions_opened, 2, "{message}");
    }
}

#[tokio::test]
async fn health_checks_notice_a_forgotten_session() {
    let mut script = Script::new("s", RigEra::Legacy).tools(&["echo"]);
    script.http.get_stream = false;
    script.http.unknown_session = (400, -32000, "Bad Request: Server not initialized".into());
    let rig = Http::start(script).await;
    let stage = Stage::start(&[("s", &format!("{}\n{NEVER}\nhealth: {{ interval: 5s }}", rig.spec()))]).await;
    stage.evenkeel.attached("s").await;
    rig.tell(Command::ForgetSessions { quietly: true });
    eventually("the session is opened again, with no call", async || {
        (rig.counters().sessions_opened == 2).then_some(())
    })
    .await;
}

/// A request that is wrong for its own reasons costs nobody the session.
#[tokio::test]
async fn a_refused_request_does_not_end_a_session_that_is_known() {
    let error = r#"{"jsonrpc":"2.0","id":ID,"error":{"code":-32602,"message":"session_id is required"}}"#;
    for (status, without_ping) in [(400, false), (404, false), (422, false), (400, true)] {
        let refusal = Then::Http {
            status,
            headers: [("Content-Type".to_owned(), "application/json".to_owned())].into(),
            body: error
                .replace("ID", "null")
                .replace("-32602", if status == 404 { "-32601" } else { "-32602" }),
        };
        let mut script = Script::new("s", RigEra::Legacy)
            .tools(&["echo"])
            .on("tools/call", Rule::times(3, refusal.clone()));
        if without_ping {
            script = script.on("ping", Rule::always(refusal));
        }
        let rig = Http::start(script).await;
        let stage = Stage::start(&[("s", &format!("{}\n{NEVER}", rig.spec()))]).await;
        stage.evenkeel.attached("s").await;
        let agent = stage.agent(Era::Legacy).await;
        for _ in 0..3 {
            let refused = agent.call("s_echo", "{}").await.unwrap_err();
            assert!(refused.contains("session_id is required"), "{status}: {refused}");
        }
        agent.text("s_echo", "{}").await;
        assert_eq!(rig.counters().sessions_opened, 1, "{status}");
    }
}
