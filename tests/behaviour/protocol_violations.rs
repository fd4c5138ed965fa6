//! Servers that deviate from the protocol: what is tolerated is reported in `Degraded`, and what cannot be read fails at
//! once, without an effect on other servers.

use std::time::{Duration, Instant};

use futures_util::future::join_all;

use crate::control_servers::ControlServers;
use crate::fixture::{EvenkeelFixture, error_text};
use crate::rig::{Action, FakeHttpServer, FakeStdioServer, ResponseFormat, Rule, Script, ServerEra};
use crate::support::{Era, eventually};

/// A rig over one transport, with the lines of its spec.
enum Rig {
    Stdio(Box<FakeStdioServer>),
    Http(FakeHttpServer),
}

impl Rig {
    fn spec(&self) -> String {
        match self {
            Self::Stdio(rig) => rig.spec(""),
            Self::Http(rig) => rig.spec(),
        }
    }
}

/// Starts one server over stdio, and one over HTTP for each format of responses.
async fn over_all_transports(script: Script) -> Vec<(&'static str, Rig)> {
    let mut rigs = vec![("stdio", Rig::Stdio(Box::new(FakeStdioServer::new(script.clone()))))];
    for (name, format) in [("json", ResponseFormat::Json), ("stream", ResponseFormat::Stream)] {
        let mut script = script.clone();
        script.http.answers = format;
        rigs.push((name, Rig::Http(FakeHttpServer::start(script).await)));
    }
    rigs
}

/// Returns the script of a server that answers every call with this message.
fn answering_calls_with(name: &str, message: &str) -> Script {
    Script::new(name, ServerEra::Legacy)
        .tools(&["echo"])
        .on("tools/call", Rule::always(Action::message(message)))
}

/// Responses to the probe of a modern server, all of which identify a legacy server.
fn probe_responses() -> Vec<(&'static str, Action)> {
    vec![
        ("empty-result", Action::result("{}")),
        ("null-result", Action::result("null")),
        ("array-result", Action::result("[]")),
        ("tool-result", Action::result(r#"{"content":[],"isError":true}"#)),
        ("list-result", Action::result(r#"{"tools":[]}"#)),
        ("legacy-versions", Action::result(r#"{"supportedVersions":["2025-11-25"],"capabilities":{}}"#)),
        ("invalid-params", Action::error(-32602, "Invalid request parameters")),
        ("not-initialized", Action::error(-32000, "Server not initialized")),
        ("legacy-supported", {
            let error = r#"{"code":-32022,"message":"Unsupported","data":{"supported":["2025-06-18"]}}"#;
            Action::message(&format!(r#"{{"jsonrpc":"2.0","id":$ID,"error":{error}}}"#))
        }),
        ("null-id", Action::message(r#"{"jsonrpc":"2.0","id":null,"error":{"code":-32600,"message":"no"}}"#)),
        ("no-id", Action::message(r#"{"jsonrpc":"2.0","error":{"code":-32600,"message":"no"}}"#)),
        ("text-error", Action::message(r#"{"jsonrpc":"2.0","id":"$ID","error":"unknown method"}"#)),
        ("silent", Action::Hang),
    ]
}

/// Responses to the probe over HTTP alone.
fn http_probe_responses() -> Vec<(&'static str, Action)> {
    let with = |status, name: &str, value: &str, body: &str| Action::Http {
        status,
        headers: [(name.to_owned(), value.to_owned())].into(),
        body: body.to_owned(),
    };
    let error = r#"{"jsonrpc":"2.0","id":null,"error":{"code":-32600,"message":"no session"}}"#;
    vec![
        ("accepted", Action::status(202)),
        ("no-content", Action::status(204)),
        ("html", with(200, "Content-Type", "text/html", "<html><title>Welcome</title></html>")),
        ("text", with(200, "Content-Type", "text/plain", "ok")),
        ("other-json", with(200, "Content-Type", "application/json", r#"{"status":"ok"}"#)),
        ("empty-json", with(200, "Content-Type", "application/json", "")),
        ("bad-request", Action::status(400)),
        ("session-header", with(400, "Mcp-Session-Id", "of-the-refusal", error)),
        ("version-header", with(400, "MCP-Protocol-Version", "2025-06-18", error)),
        ("forbidden", with(403, "Content-Type", "text/html", "<html>Blocked</html>")),
        ("not-found", Action::status(404)),
        ("not-allowed", Action::status(405)),
        ("not-acceptable", Action::status(406)),
        ("server-error", Action::status(500)),
        ("not-implemented", Action::status(501)),
        ("bad-gateway", Action::status(502)),
        ("dropped", Action::Drop),
        ("cut", Action::Cut),
    ]
}

#[tokio::test]
async fn legacy_server_is_attached_at_the_first_attempt_whatever_it_answers_to_the_probe() {
    let fixture = EvenkeelFixture::start(&[]).await;
    let controls = ControlServers::attach(&fixture).await;
    let mut rigs = Vec::new();
    for (name, action) in probe_responses() {
        let script = Script::new(name, ServerEra::Legacy).on("server/discover", Rule::always(action));
        for (transport, rig) in over_all_transports(script).await {
            rigs.push((format!("{name}-{transport}"), rig));
        }
    }
    for (name, action) in http_probe_responses() {
        let script = Script::new(name, ServerEra::Legacy).on("server/discover", Rule::always(action));
        rigs.push((format!("{name}-http"), Rig::Http(FakeHttpServer::start(script).await)));
    }
    for (name, rig) in &rigs {
        // A second attempt would come after the test.
        let limits = "timeouts: { start: 30s, connect: 15s }\nretry: { initial: 1h, max: 1h }";
        fixture.declared.write_server(name, &format!("{}\n{limits}", rig.spec()));
    }
    let agent = fixture.agent(Era::Modern).await;
    for (name, _) in &rigs {
        fixture.evenkeel.wait_until_attached(name).await;
        agent.call_text(&format!("{name}_echo"), "{}").await;
        assert_eq!(fixture.server(name).await["status"]["protocolVersion"], "2025-11-25", "{name}");
        // A text that is no message is a violation, and so are some envelopes; a rejection is none.
        let degraded = fixture.evenkeel.condition(name, "Degraded").await;
        let may_be_degraded = ["null-result", "array-result", "text-error", "other-json"];
        assert!(
            degraded.is_none() || may_be_degraded.iter().any(|violation| name.starts_with(violation)),
            "{name}: {degraded:?}"
        );
    }
    controls.assert_untouched(&fixture).await;
}

#[tokio::test]
async fn declared_protocol_needs_no_probe() {
    let (legacy, modern) = (
        FakeHttpServer::start(Script::new("l", ServerEra::Dual)).await,
        FakeHttpServer::start(Script::new("m", ServerEra::Dual)).await,
    );
    let fixture = EvenkeelFixture::start(&[
        ("l", &format!("{}\nprotocol: Legacy", legacy.spec())),
        ("m", &format!("{}\nprotocol: Modern", modern.spec())),
    ])
    .await;
    for (name, version) in [("l", "2025-11-25"), ("m", "2026-07-28")] {
        fixture.evenkeel.wait_until_attached(name).await;
        assert_eq!(fixture.server(name).await["status"]["protocolVersion"], version);
    }
    assert_eq!((legacy.counters().discovers(), legacy.counters().initializes()), (0, 1));
    assert_eq!((modern.counters().discovers(), modern.counters().initializes()), (1, 0));
    // Another protocol is another connection.
    fixture.declared.write_server("l", &format!("{}\nprotocol: Modern", legacy.spec()));
    eventually("the server is connected in the other era", async || {
        (fixture.server("l").await["status"]["protocolVersion"] == "2026-07-28").then_some(())
    })
    .await;
}

#[tokio::test]
async fn responses_that_deviate_are_read_and_reported() {
    let result = r#"{"content":[{"type":"text","text":"fine"}]}"#;
    let cases = [
        ("text-id", format!(r#"{{"jsonrpc":"2.0","id":"$ID","result":{result}}}"#), "id of the request"),
        ("fraction-id", format!(r#"{{"jsonrpc":"2.0","id":$ID.0,"result":{result}}}"#), "id of the request"),
        ("no-version", format!(r#"{{"id":$ID,"result":{result}}}"#), "not quite JSON-RPC"),
        (
            "null-error",
            format!(r#"{{"jsonrpc":"2.0","id":$ID,"result":{result},"error":null}}"#),
            "not quite",
        ),
        ("batch", format!(r#"[{{"jsonrpc":"2.0","id":$ID,"result":{result}}}]"#), ""),
    ];
    let fixture = EvenkeelFixture::start(&[]).await;
    let controls = ControlServers::attach(&fixture).await;
    let agent = fixture.agent(Era::Legacy).await;
    let mut rigs = Vec::new();
    for (name, message, reported) in &cases {
        for (transport, rig) in over_all_transports(answering_calls_with(name, message)).await {
            let name = format!("{name}-{transport}");
            fixture.attach(&name, &rig.spec()).await;
            assert!(fixture.evenkeel.condition(&name, "Degraded").await.is_none(), "{name}");
            assert_eq!(agent.call_text(&format!("{name}_echo"), "{}").await, "fine", "{name}");
            rigs.push(rig);
            if reported.is_empty() {
                continue;
            }
            let degraded = fixture.evenkeel.wait_for(&name, "Degraded", "True", "NonCompliant").await;
            assert!(degraded.message.contains(reported), "{name}: {degraded:?}");
        }
    }
    controls.assert_untouched(&fixture).await;
}

#[tokio::test]
async fn call_whose_response_cannot_be_used_fails_at_once() {
    let cases = [
        ("nan", r#"{"jsonrpc":"2.0","id":$ID,"result":{"value":NaN}}"#, "not valid JSON-RPC"),
        ("cut-json", r#"{"jsonrpc":"2.0","id":$ID,"result":{"value":"#, "not valid JSON-RPC"),
        ("null-result", r#"{"jsonrpc":"2.0","id":$ID,"result":null}"#, "null, not an object"),
        ("text-result", r#"{"jsonrpc":"2.0","id":$ID,"result":"done"}"#, "not an object"),
        (
            "both",
            r#"{"jsonrpc":"2.0","id":$ID,"result":{},"error":{"code":-32000,"message":"the disk is full"}}"#,
            "the disk is full",
        ),
        ("text-error", r#"{"jsonrpc":"2.0","id":$ID,"error":"the disk is full"}"#, "the disk is full"),
    ];
    let fixture = EvenkeelFixture::start(&[]).await;
    let agent = fixture.agent(Era::Modern).await;
    let mut rigs = Vec::new();
    for (name, message, expected) in cases {
        for (transport, rig) in over_all_transports(answering_calls_with(name, message)).await {
            let name = format!("{name}-{transport}");
            fixture.attach(&name, &rig.spec()).await;
            let started_at = Instant::now();
            let outcome = agent.call(&format!("{name}_echo"), "{}").await;
            // Far less than timeouts.call, which is ten minutes.
            assert!(started_at.elapsed() < Duration::from_secs(20), "{name}: {:?}", started_at.elapsed());
            let text = outcome.map_or_else(|error| error, |result| error_text(&result));
            assert!(text.contains(expected), "{name}: {text}");
            assert!(!text.contains("line 1 column"), "{name}: {text}");
            fixture.evenkeel.wait_for(&name, "Degraded", "True", "NonCompliant").await;
            // The connection is the same.
            assert_eq!(fixture.server(&name).await["status"]["restarts"], 0, "{name}");
            rigs.push(rig);
        }
    }
}

#[tokio::test]
async fn text_on_stdout_is_logged_redacted() {
    let mut script = Script::new("noisy", ServerEra::Legacy).tools(&["echo"]);
    script.stdio.stdout = vec!["Listening with key hunter2-hunter2".into(), String::new(), "Ready".into()];
    let rig = FakeStdioServer::new(script);
    let fixture =
        EvenkeelFixture::start(&[("noisy", &rig.spec(", env: [{ name: API_KEY, value: hunter2-hunter2 }]"))])
            .await;
    let degraded = fixture.evenkeel.wait_for("noisy", "Degraded", "True", "NonCompliant").await;
    assert!(degraded.message.contains("evenkeel logs"), "{degraded:?}");
    let logs = fixture
        .evenkeel
        .command(&["logs", "noisy"])
        .env("EVENKEEL_DIR", fixture.declared.path())
        .output()
        .unwrap();
    let logs = String::from_utf8(logs.stdout).unwrap();
    assert!(logs.contains("Listening with key <redacted>") && logs.contains("Ready"), "{logs}");
    assert!(!logs.contains("hunter2"), "{logs}");
    fixture.agent(Era::Legacy).await.call_text("noisy_echo", "{}").await;
}

#[tokio::test]
async fn server_that_does_not_answer_ping_is_asked_for_a_list() {
    let script =
        |name, action| Script::new(name, ServerEra::Legacy).tools(&["echo"]).on("ping", Rule::always(action));
    let (silent, refusing, nothing) = (
        FakeStdioServer::new(script("silent", Action::Hang)),
        FakeHttpServer::start(script("refusing", Action::status(500))).await,
        FakeHttpServer::start(script("nothing", Action::result("null"))).await,
    );
    let health = "health: { interval: 5s, failures: 1 }";
    let fixture = EvenkeelFixture::start(&[
        ("silent", &format!("{}\n{health}", silent.spec(""))),
        ("refusing", &format!("{}\n{health}", refusing.spec())),
        ("nothing", &format!("{}\n{health}", nothing.spec())),
    ])
    .await;
    for name in ["silent", "refusing"] {
        let degraded = fixture.evenkeel.wait_for(name, "Degraded", "True", "NonCompliant").await;
        assert!(degraded.message.contains("spec.health"), "{degraded:?}");
    }
    let list_requests = refusing.counters().tool_lists();
    eventually("further checks request the list", async || {
        (refusing.counters().tool_lists() > list_requests).then_some(())
    })
    .await;
    assert_eq!(refusing.counters().count("ping"), 1, "ping is not tried again");
    fixture.evenkeel.wait_for("nothing", "Degraded", "True", "NonCompliant").await;
    for name in ["silent", "refusing", "nothing"] {
        assert_eq!(fixture.server(name).await["status"]["restarts"], 0, "{name}");
    }
}

#[tokio::test]
async fn health_checks_share_one_connection() {
    // At the same time: most of it is waiting for checks.
    join_all([ServerEra::Legacy, ServerEra::Modern].map(check_health_checks_share_one_connection)).await;
}

async fn check_health_checks_share_one_connection(era: ServerEra) {
    let rig = FakeHttpServer::start(Script::new("s", era).tools(&["echo"])).await;
    let fixture =
        EvenkeelFixture::start(&[("s", &format!("{}\nhealth: {{ interval: 5s }}", rig.spec()))]).await;
    fixture.evenkeel.wait_until_attached("s").await;
    let method = if era == ServerEra::Modern { "server/discover" } else { "ping" };
    let checks_at_start = rig.counters().count(method);
    let checks = async |count| {
        eventually("the checks are sent", async || {
            (rig.counters().count(method) >= checks_at_start + count).then_some(())
        })
        .await;
    };
    checks(1).await;
    let connections = rig.counters().connections;
    checks(3).await;
    assert_eq!(rig.counters().connections, connections, "{era:?}");
}

#[tokio::test]
async fn another_version_of_a_modern_server_is_detected_by_a_health_check() {
    let mut script = Script::new("first", ServerEra::Modern).tools(&["old"]);
    script.quiet = true;
    let rig = FakeHttpServer::start(script).await;
    let fixture =
        EvenkeelFixture::start(&[("s", &format!("{}\nhealth: {{ interval: 5s }}", rig.spec()))]).await;
    fixture.evenkeel.wait_until_attached("s").await;
    let [mut legacy, mut modern] = fixture.watchers(&["s_old"]).await;
    rig.edit_script(|script| {
        let other = Script::new("second", ServerEra::Modern).tools(&["new"]);
        (script.name, script.tools) = (other.name, other.tools);
    });
    legacy.wait_for_tools(&["s_new"]).await;
    modern.wait_for_tools(&["s_new"]).await;
    let server = fixture.server("s").await;
    assert_eq!(server["status"]["serverInfo"]["name"], "second");
    assert_eq!(server["status"]["restarts"], 0);
}
