//! `isolation: Session`: a connection of its own for each caller.

use std::time::Duration;

use serde_json::value::RawValue;
use serde_json::{Value, json};
use tokio::time::{sleep, timeout};

use crate::fixture::{EvenkeelFixture, error_text};
use crate::rig::{
    Action, ControlCommand, FakeHttpServer, FakeServerProcess, FakeStdioServer, Rule, Script, ServerEra,
};
use crate::support::{Agent, Era, PendingRequest, eventually, http, within};

const ISOLATED: &str = "isolation: Session";

/// Connects an agent on a path with an id.
async fn agent_as(fixture: &EvenkeelFixture, era: Era, id: &str) -> Agent {
    Agent::connect(era, &url_as(fixture, id)).await
}

fn url_as(fixture: &EvenkeelFixture, id: &str) -> String {
    fixture.evenkeel.url().replace("/mcp", &format!("/as/{id}/mcp"))
}

async fn report(agent: &Agent) -> Value {
    serde_json::from_str(&agent.call_text("s_report", "{}").await).unwrap()
}

/// Returns the id of the process that responds to the agent.
async fn pid(agent: &Agent) -> u32 {
    u32::try_from(report(agent).await["pid"].as_u64().unwrap()).unwrap()
}

/// Returns the text of a call that is refused.
async fn refusal(agent: &Agent) -> String {
    error_text(&agent.call("s_report", "{}").await.unwrap())
}

async fn wait_for_sessions(fixture: &EvenkeelFixture, count: u32) {
    eventually(&format!("{count} sessions"), async || {
        (fixture.server("s").await["status"]["sessions"] == count).then_some(())
    })
    .await;
}

async fn wait_for_processes(server: &FakeStdioServer, expected: &[u32]) {
    let mut expected = expected.to_vec();
    expected.sort_unstable();
    eventually(&format!("the processes {expected:?}"), async || {
        let mut pids: Vec<_> = server.live_processes().iter().map(FakeServerProcess::pid).collect();
        pids.sort_unstable();
        (pids == expected).then_some(())
    })
    .await;
}

/// Starts evenkeel with an isolated stdio server, whose catalog is read.
async fn start(script: Script, more: &str) -> (FakeStdioServer, EvenkeelFixture) {
    let server = FakeStdioServer::new(script);
    let fixture = EvenkeelFixture::start(&[("s", &format!("{}\n{ISOLATED}\n{more}", server.spec("")))]).await;
    fixture.evenkeel.wait_for("s", "Ready", "True", "Idle").await;
    (server, fixture)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn callers_never_share_a_process() {
    let (server, fixture) = start(Script::default(), "").await;
    wait_for_processes(&server, &[]).await;
    assert_eq!(server.processes().len(), 1, "the lists were read");
    wait_for_sessions(&fixture, 0).await;
    let first = fixture.agent(Era::Legacy).await;
    let second = agent_as(&fixture, Era::Legacy, "a").await;
    let modern = agent_as(&fixture, Era::Modern, "a").await;
    let other = agent_as(&fixture, Era::Modern, "b").await;
    assert_eq!(first.tool_names().await, ["s_echo", "s_report"]);
    let mut pids = Vec::new();
    for agent in [&first, &second, &modern, &other] {
        pids.push(pid(agent).await);
        assert_eq!(pid(agent).await, *pids.last().unwrap(), "the connection is kept");
    }
    wait_for_processes(&server, &pids).await;
    let mut distinct = pids.clone();
    distinct.sort_unstable();
    distinct.dedup();
    assert_eq!(distinct.len(), 4, "{pids:?}");
    wait_for_sessions(&fixture, 4).await;
    let mut describe = fixture.evenkeel.command(&["describe", "mcps", "s"]);
    let described = describe.env("EVENKEEL_DIR", fixture.declared.path()).output().unwrap();
    let described = String::from_utf8(described.stdout).unwrap();
    assert!(
        described.lines().any(|line| line.starts_with("Sessions") && line.ends_with(" 4")),
        "{described}"
    );
    let metrics = http::get(&fixture.evenkeel.admin("/metrics")).await.unwrap();
    assert!(metrics.contains(r#"evenkeel_server_sessions{namespace="default",server="s"} 4"#), "{metrics}");
    // Other windows of the same modern agent, the second of which says so.
    let mut window = agent_as(&fixture, Era::Modern, "a").await;
    assert_eq!(pid(&window).await, pids[2]);
    window.window = Some("2".into());
    pids.push(pid(&window).await);
    assert!(!pids[..4].contains(&pids[4]));
    wait_for_sessions(&fixture, 5).await;

    let nobody = refusal(&fixture.agent(Era::Modern).await).await;
    assert!(nobody.contains("/as/ID/mcp") && nobody.contains("Nothing was sent"), "{nobody}");

    assert_eq!(first.end_session().await, 204);
    wait_for_processes(&server, &pids[1..]).await;
    wait_for_sessions(&fixture, 4).await;
    assert_eq!(pid(&second).await, pids[1]);

    // A process that is killed is replaced for its caller only.
    let killed = server.live_processes().into_iter().find(|process| process.pid() == pids[1]).unwrap();
    killed.kill();
    killed.wait_for_exit().await;
    let replaced = eventually("the next call reconnects", async || {
        let result: Value = serde_json::from_str(&second.call("s_report", "{}").await.unwrap()).unwrap();
        (result["isError"] != true).then(|| result["content"][0]["text"].as_str().unwrap().to_owned())
    })
    .await;
    let replaced =
        u32::try_from(serde_json::from_str::<Value>(&replaced).unwrap()["pid"].as_u64().unwrap()).unwrap();
    assert!(!pids.contains(&replaced));
    assert_eq!((pid(&modern).await, pid(&other).await), (pids[2], pids[3]));

    // The removal of the last file would be held.
    fixture.declared.write_server("other", "suspend: true\nhttp: { url: 'http://127.0.0.1:1/mcp' }");
    eventually("the other server is declared", async || fixture.evenkeel.get_server("other").await).await;
    fixture.declared.remove("s.yaml");
    wait_for_processes(&server, &[]).await;
    assert!(modern.tool_names().await.is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn isolation_ends_and_begins_with_the_declaration() {
    let (server, fixture) = start(Script::default(), "").await;
    let agents = [fixture.agent(Era::Legacy).await, agent_as(&fixture, Era::Modern, "a").await];
    let before = [pid(&agents[0]).await, pid(&agents[1]).await];
    // A changed connection replaces each.
    fixture
        .declared
        .write_server("s", &format!("{}\n{ISOLATED}", server.spec(", env: [{ name: A, value: b }]")));
    eventually("new processes", async || {
        let now = [pid(&agents[0]).await, pid(&agents[1]).await];
        (!now.contains(&before[0]) && !now.contains(&before[1]) && now[0] != now[1]).then_some(())
    })
    .await;
    wait_for_sessions(&fixture, 2).await;
    fixture.declared.write_server("s", &server.spec(""));
    fixture.evenkeel.wait_until_attached("s").await;
    let shared = eventually("both share a process", async || {
        let now = [pid(&agents[0]).await, pid(&agents[1]).await];
        (now[0] == now[1]).then_some(now[0])
    })
    .await;
    wait_for_processes(&server, &[shared]).await;
    assert!(fixture.server("s").await["status"]["sessions"].is_null());
    fixture.declared.write_server("s", &format!("{}\n{ISOLATED}", server.spec("")));
    eventually("they have processes of their own", async || {
        (pid(&agents[0]).await != pid(&agents[1]).await).then_some(())
    })
    .await;
    fixture.declared.write_server("s", &format!("{}\n{ISOLATED}\nsuspend: true", server.spec("")));
    wait_for_processes(&server, &[]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn number_of_connections_is_limited_and_unused_ones_end() {
    let (server, fixture) = start(Script::default(), "maxSessions: 1\ntimeouts: { idle: 10s }").await;
    let (first, second) = (fixture.agent(Era::Legacy).await, fixture.agent(Era::Legacy).await);
    let first_pid = pid(&first).await;
    let text = refusal(&second).await;
    assert!(text.contains("spec.maxSessions") && text.contains("1 callers"), "{text}");
    let spec = format!("{}\n{ISOLATED}\nmaxSessions: 2\ntimeouts: {{ idle: 10s }}", server.spec(""));
    fixture.declared.write_server("s", &spec);
    let second_pid = eventually("the limit is raised", async || {
        let result: Value = serde_json::from_str(&second.call("s_report", "{}").await.unwrap()).unwrap();
        let text = result["content"][0]["text"].as_str().unwrap();
        serde_json::from_str::<Value>(text).ok()?["pid"].as_u64()
    })
    .await;
    let second_pid = u32::try_from(second_pid).unwrap();
    assert_eq!(pid(&first).await, first_pid, "the connection is kept");
    wait_for_processes(&server, &[first_pid, second_pid]).await;
    wait_for_processes(&server, &[]).await;
    wait_for_sessions(&fixture, 0).await;
    assert!(![first_pid, second_pid].contains(&pid(&first).await));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sessions_survive_a_restart_with_new_connections() {
    let (server, mut fixture) = start(Script::default(), "").await;
    let (legacy, modern) = (fixture.agent(Era::Legacy).await, agent_as(&fixture, Era::Modern, "a").await);
    let before = [pid(&legacy).await, pid(&modern).await];
    fixture.evenkeel.kill();
    eventually("no process is left", async || server.existing_pids().is_empty().then_some(())).await;
    fixture.evenkeel.restart().await;
    fixture.evenkeel.wait_for("s", "Ready", "True", "Idle").await;
    let after = [pid(&legacy).await, pid(&modern).await];
    assert!(after[0] != after[1] && !before.contains(&after[0]) && !before.contains(&after[1]));
    assert!(fixture.evenkeel.terminate().await.success());
    assert!(server.existing_pids().is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn failure_of_a_connection_is_told_to_its_caller() {
    let (server, fixture) = start(Script::default(), crate::fixture::NO_RETRY).await;
    server.edit_script(|script| {
        script.stdio.stderr = vec!["the browser is not installed".into()];
        script.stdio.exit_at_start = Some(7);
    });
    let text = refusal(&fixture.agent(Era::Legacy).await).await;
    assert!(text.contains("code 7") && text.contains("the browser is not installed"), "{text}");
    fixture.evenkeel.wait_for_log(&["the connection of a caller failed", "code 7"]).await;
    // The state of the server is that of the connection from which the lists were read.
    fixture.evenkeel.wait_for("s", "Ready", "True", "Idle").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn callers_never_share_an_http_session() {
    for era in [ServerEra::Legacy, ServerEra::Modern] {
        let server = FakeHttpServer::start(Script::new("s", era).tools(&["report", "echo"])).await;
        let fixture = EvenkeelFixture::start(&[("s", &format!("{}\n{ISOLATED}", server.spec()))]).await;
        fixture.evenkeel.wait_for("s", "Ready", "True", "Idle").await;
        let agents = [
            fixture.agent(Era::Legacy).await,
            fixture.agent(Era::Legacy).await,
            agent_as(&fixture, Era::Modern, "a").await,
        ];
        let mut sessions = Vec::new();
        for agent in &agents {
            let headers = report(agent).await["headers"].clone();
            sessions.push(headers["mcp-session-id"].as_str().map(ToOwned::to_owned));
        }
        if era == ServerEra::Legacy {
            assert!(sessions.iter().all(Option::is_some), "{sessions:?}");
            let mut distinct = sessions.clone();
            distinct.sort_unstable();
            distinct.dedup();
            assert_eq!(distinct.len(), 3, "{sessions:?}");
        }
        wait_for_sessions(&fixture, 3).await;
        assert_eq!(agents[0].end_session().await, 204);
        wait_for_sessions(&fixture, 2).await;
    }
}

const ROOTS: &str = r#"{"roots":[{"uri":"file:///work"}]}"#;
const CAPABILITIES: &str =
    r#"{"elicitation":{"form":{}},"sampling":{"tools":{}},"roots":{"listChanged":true}}"#;

async fn ask_for_roots(agent: &Agent, more: &str) -> PendingRequest {
    let arguments = format!(r#"{{"requests":[{{"method":"roots/list","params":{{}}}}]{more}}}"#);
    let params = format!(r#"{{"name":"s_ask","arguments":{arguments}}}"#);
    agent.start_request("tools/call", &params).await.unwrap()
}

/// Responds to the next request of the call, which must be for roots.
async fn give_roots(agent: &Agent, call: &mut PendingRequest) {
    let asked = within("the request arrives", call.next_message()).await.unwrap().unwrap();
    let asked: Value = serde_json::from_str(&asked).unwrap();
    assert_eq!(asked["method"], "roots/list", "{asked}");
    assert_eq!(agent.respond(&asked["id"].to_string(), ROOTS).await, 202);
}

/// Returns what the server got as the response to its only request.
fn response(result: &str) -> Value {
    let result: Value = serde_json::from_str(result).unwrap();
    let text = result["content"][0]["text"].as_str().unwrap_or_else(|| panic!("{result}"));
    serde_json::from_str::<Value>(text).unwrap()[0].clone()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connection_declares_the_capabilities_of_its_caller() {
    let script = Script::new("s", ServerEra::Legacy).tools(&["ask", "sleep", "report"]);
    let (server, fixture) = start(script, "roots: true").await;
    let agent =
        Agent::connect_with_capabilities(Era::Legacy, &fixture.evenkeel.url(), CAPABILITIES).await.unwrap();
    let bare = fixture.agent(Era::Legacy).await;
    let declared = async |agent: &Agent| {
        let pid = pid(agent).await;
        let process = server.live_processes().into_iter().find(|process| process.pid() == pid).unwrap();
        let capabilities = process.counters().await.client_capabilities;
        (process, serde_json::from_str::<Value>(&capabilities[0]).unwrap())
    };
    let (process, capabilities) = declared(&agent).await;
    assert_eq!(capabilities, serde_json::from_str::<Value>(CAPABILITIES).unwrap());
    assert_eq!(declared(&bare).await.1, json!({}));

    let mut call = ask_for_roots(&agent, "").await;
    give_roots(&agent, &mut call).await;
    let expected: Value = serde_json::from_str(ROOTS).unwrap();
    assert_eq!(response(&call.result().await.unwrap())["result"], expected);
    // With several calls of the same caller in flight.
    let sleeping = agent.start_request("tools/call", r#"{"name":"s_sleep","arguments":{"ms":600000}}"#);
    let mut sleeping = std::pin::pin!(sleeping);
    assert!(timeout(Duration::from_millis(500), sleeping.as_mut()).await.is_err());
    let mut call = ask_for_roots(&agent, "").await;
    give_roots(&agent, &mut call).await;
    assert_eq!(response(&call.result().await.unwrap())["result"], expected);

    agent.notify("notifications/roots/list_changed", "{}").await.unwrap();
    bare.notify("notifications/roots/list_changed", "{}").await.unwrap();
    eventually("the change is passed on", async || {
        (process.counters().await.count("notifications/roots/list_changed") == 1).then_some(())
    })
    .await;
    let (bare_process, _) = declared(&bare).await;
    assert_eq!(bare_process.counters().await.count("notifications/roots/list_changed"), 1);
    let result = ask_for_roots(&bare, "").await.result().await.unwrap();
    assert_eq!(response(&result)["error"]["code"], -32601, "{result}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn first_call_of_a_modern_agent_does_not_limit_what_later_calls_are_asked() {
    let script = Script::new("s", ServerEra::Legacy).tools(&["ask", "report"]);
    let (_server, fixture) = start(script, "roots: true").await;
    let bare = agent_as(&fixture, Era::Modern, "a").await;
    let first = pid(&bare).await;
    let agent =
        Agent::connect_with_capabilities(Era::Modern, &url_as(&fixture, "a"), CAPABILITIES).await.unwrap();
    let asked = ask_for_roots(&agent, "").await.result().await.unwrap();
    assert!(asked.contains("input_required") && asked.contains("roots/list"), "{asked}");
    // The same connection declines for a call that does not declare roots.
    let result = ask_for_roots(&bare, "").await.result().await.unwrap();
    assert_eq!(response(&result)["error"]["code"], -32601, "{result}");
    assert_eq!(pid(&agent).await, first);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn request_for_roots_waits_for_the_next_call() {
    let server = FakeHttpServer::start(Script::new("s", ServerEra::Legacy).tools(&["ask", "report"])).await;
    let spec = format!("{}\n{ISOLATED}\nroots: true", server.spec());
    let fixture = EvenkeelFixture::start(&[("s", &spec)]).await;
    fixture.evenkeel.wait_for("s", "Ready", "True", "Idle").await;
    let agent =
        Agent::connect_with_capabilities(Era::Legacy, &fixture.evenkeel.url(), CAPABILITIES).await.unwrap();
    report(&agent).await;
    eventually("the GET stream of the connection is open", async || {
        (server.counters().streams == 1).then_some(())
    })
    .await;
    server.send_command(ControlCommand::AskForRoots(1));
    sleep(Duration::from_millis(300)).await;
    assert_eq!(server.counters().answers, 0);
    let mut call = ask_for_roots(&agent, "").await;
    // The request that was held, and that of the call.
    give_roots(&agent, &mut call).await;
    give_roots(&agent, &mut call).await;
    call.result().await.unwrap();
    eventually("both are answered", async || (server.counters().answers == 2).then_some(())).await;
    // One on the GET stream while a call is in flight.
    let mut call = ask_for_roots(&agent, r#","on_get":true"#).await;
    give_roots(&agent, &mut call).await;
    assert_eq!(response(&call.result().await.unwrap())["result"]["roots"][0]["uri"], "file:///work");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn modern_servers_get_roots_only_if_they_are_declared_so() {
    let server = FakeHttpServer::start(Script::new("s", ServerEra::Modern).tools(&["ask"])).await;
    let fixture = EvenkeelFixture::start(&[("s", &server.spec())]).await;
    fixture.evenkeel.wait_until_attached("s").await;
    let agent =
        Agent::connect_with_capabilities(Era::Modern, &url_as(&fixture, "a"), CAPABILITIES).await.unwrap();
    let ask = async || ask_for_roots(&agent, "").await.result().await;
    let refused = ask().await.unwrap_err();
    assert!(refused.contains("-32021") && refused.contains("roots"), "{refused}");
    fixture.declared.write_server("s", &format!("{}\n{ISOLATED}", server.spec()));
    fixture.evenkeel.wait_for("s", "Ready", "True", "Idle").await;
    let refused = ask().await.unwrap_err();
    assert!(refused.contains("-32021"), "{refused}");
    fixture.declared.write_server("s", &format!("{}\n{ISOLATED}\nroots: true", server.spec()));
    let asked = eventually("the server may ask for roots", async || ask().await.ok()).await;
    assert!(asked.contains("input_required") && asked.contains("roots/list"), "{asked}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn published_lists_follow_those_of_callers() {
    let (server, fixture) = start(Script::default(), "").await;
    // The program is updated: one tool is another one now, and one is new.
    server.edit_script(|script| {
        script.tools = Script::default().tools(&["report", "sleep"]).tools;
        let changed = r#"{"name":"echo","description":"changed","inputSchema":{"type":"object"}}"#;
        script.tools.push(RawValue::from_string(changed.to_owned()).unwrap());
    });
    let agent = fixture.agent(Era::Legacy).await;
    let refused = error_text(&agent.call("s_echo", "{}").await.unwrap());
    assert!(refused.contains("changed"), "{refused}");
    eventually("the new tool is listed", async || {
        (agent.tool_names().await == ["s_echo", "s_report", "s_sleep"]).then_some(())
    })
    .await;
    assert!(agent.call("s_echo", "{}").await.is_ok());
    // The published lists were read by a process that has ended.
    assert_eq!(server.live_processes().len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unknown_resource_has_the_code_of_the_agents_era() {
    for (server_era, server_code, agent_era, code) in [
        (ServerEra::Legacy, -32002, Era::Modern, "-32602"),
        (ServerEra::Modern, -32602, Era::Legacy, "-32002"),
    ] {
        let script = Script::new("s", server_era)
            .prompts_and_resources(&[], &[], &["x://{name}"])
            .on("resources/read", Rule::always(Action::error(server_code, "Resource not found")));
        let (_server, fixture) = start(script, "").await;
        let agent = agent_as(&fixture, agent_era, "a").await;
        let refused = agent.request("resources/read", r#"{"uri":"x://nothing"}"#).await.unwrap_err();
        assert!(refused.contains(code), "{server_era:?}: {refused}");
    }
}
