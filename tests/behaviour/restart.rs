//! Shutdowns, crashes and restarts of evenkeel: open sessions continue after the restart, and no process is left
//! behind.

use std::path::Path;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use crate::fixture::EvenkeelFixture;
use crate::rig::{Action, FakeHttpServer, FakeStdioServer, Rule, Script, ServerEra};
use crate::support::{Era, eventually, within};

/// Creates a server that exits on SIGKILL only, and has a child like that.
fn stubborn_server() -> FakeStdioServer {
    let mut script = Script::new("stubborn", ServerEra::Dual);
    script.stdio.ignore_sigterm = true;
    script.stdio.ignore_eof = true;
    script.stdio.grandchild = true;
    FakeStdioServer::new(script)
}

/// Waits until all processes of a rig and their children have exited.
async fn wait_until_all_gone(rig: &FakeStdioServer) {
    for process in rig.processes().into_iter().chain(rig.grandchildren()) {
        within("the process exits", process.wait_for_exit()).await;
    }
}

#[tokio::test]
async fn session_survives_kill_9_and_restart() {
    let (stdio, http) = (
        FakeStdioServer::new(Script::default()),
        FakeHttpServer::start(Script::new("h", ServerEra::Legacy)).await,
    );
    let mut fixture = EvenkeelFixture::start(&[("s", &stdio.spec("")), ("h", &http.spec())]).await;
    for name in ["s", "h"] {
        fixture.evenkeel.wait_until_attached(name).await;
    }
    let agent = fixture.agent(Era::Legacy).await;
    let tools = agent.tool_names().await;
    let mut notifications = agent.notifications().await;
    fixture.evenkeel.kill();
    notifications.wait_for_end().await;
    fixture.evenkeel.restart().await;
    for name in ["s", "h"] {
        fixture.evenkeel.wait_until_attached(name).await;
    }
    // The same session, without a new handshake.
    agent.call_text("s_echo", "{}").await;
    agent.call_text("h_echo", "{}").await;
    let mut notifications = agent.notifications().await;
    notifications.wait_for_tools_changed().await;
    assert_eq!(agent.tool_names().await, tools);
    assert_eq!(agent.end_session().await, 204);
    let error = agent.call("s_echo", "{}").await.unwrap_err();
    assert!(error.contains("404") || error.contains("ession"), "{error}");
}

#[tokio::test]
async fn first_call_after_restart_waits_for_its_server() {
    let rig = FakeStdioServer::new(Script::default());
    let mut fixture = EvenkeelFixture::start(&[("s", &rig.spec(""))]).await;
    fixture.evenkeel.wait_until_attached("s").await;
    let agent = fixture.agent(Era::Legacy).await;
    fixture.evenkeel.kill();
    rig.edit_script(|script| script.stdio.start_delay_ms = 1000);
    fixture.evenkeel.restart().await;
    agent.call_text("s_echo", "{}").await;
}

#[tokio::test]
async fn mistyped_name_is_refused_at_once_while_a_server_hangs_at_its_start() {
    let silent = Script::new("silent", ServerEra::Legacy)
        .on("server/discover", Rule::always(Action::Hang))
        .on("initialize", Rule::always(Action::Hang));
    let rig = FakeStdioServer::new(silent);
    let fixture =
        EvenkeelFixture::start(&[("hung", &format!("{}\ntimeouts: {{ connect: 10m }}", rig.spec("")))]).await;
    fixture.evenkeel.wait_for("hung", "Ready", "False", "Connecting").await;
    for era in Era::ALL {
        let agent = fixture.agent(era).await;
        // The skills, of which there are none, may be complete a little later.
        let started_at = Instant::now();
        let error = agent.call("huNg_echo", "{}").await.unwrap_err();
        assert!(error.contains("Unknown tool: huNg_echo"), "{error}");
        let error = agent.request("prompts/get", r#"{"name":"greeting"}"#).await.unwrap_err();
        assert!(error.contains("Unknown prompt: greeting"), "{error}");
        assert!(started_at.elapsed() < Duration::from_secs(5), "{:?}", started_at.elapsed());

        let possible = agent.call("hung_echo", "{}");
        assert!(
            tokio::time::timeout(Duration::from_secs(1), possible).await.is_err(),
            "a call that may succeed waits"
        );
    }
}

#[tokio::test]
async fn change_made_while_down_reaches_open_sessions() {
    let (before, after) = (FakeStdioServer::new(Script::default()), FakeStdioServer::new(Script::default()));
    let mut fixture = EvenkeelFixture::start(&[("old", &before.spec(""))]).await;
    fixture.evenkeel.wait_until_attached("old").await;
    let uid = fixture.server("old").await["metadata"]["uid"].clone();
    let agent = fixture.agent(Era::Legacy).await;
    assert_eq!(agent.tool_names().await, ["old_echo", "old_report"]);
    fixture.evenkeel.kill();
    fixture.declared.write_server("new", &after.spec(""));
    fixture.evenkeel.restart().await;
    let mut notifications = agent.notifications().await;
    while agent.tool_names().await != ["new_echo", "new_report", "old_echo", "old_report"] {
        notifications.wait_for_tools_changed().await;
    }
    assert_eq!(fixture.server("old").await["metadata"]["uid"], uid);
}

#[tokio::test]
async fn file_broken_at_start_keeps_its_last_good_declaration() {
    let rig = FakeStdioServer::new(Script::default());
    let mut fixture = EvenkeelFixture::start(&[("kept", &rig.spec(""))]).await;
    fixture.evenkeel.wait_until_attached("kept").await;
    fixture.evenkeel.kill();
    fixture
        .declared
        .write("kept.yaml", "apiVersion: evenkeel.dev/v1alpha1\nkind: McpServer\nmetadata: { name: kept\n");
    fixture.evenkeel.restart().await;
    fixture.evenkeel.wait_for("kept", "Accepted", "False", "ParseError").await;
    fixture.evenkeel.wait_for("kept", "Attached", "True", "ServingPreviousGeneration").await;
    fixture.agent(Era::Legacy).await.call_text("kept_echo", "{}").await;
}

#[tokio::test]
async fn kill_9_leaves_no_child_and_no_grandchild() {
    let rigs: Vec<_> = (0..5).map(|_| stubborn_server()).collect();
    let mut fixture = EvenkeelFixture::start(&[]).await;
    for (number, rig) in rigs.iter().enumerate() {
        fixture.attach(&format!("s{number}"), &rig.spec("")).await;
    }
    eventually("all grandchildren are recorded", async || {
        rigs.iter().all(|rig| rig.grandchildren().len() == 1).then_some(())
    })
    .await;
    fixture.evenkeel.kill();
    for rig in &rigs {
        wait_until_all_gone(rig).await;
    }
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn process_that_left_its_session_does_not_outlive_evenkeel() {
    let mut script = Script::new("runaway", ServerEra::Dual);
    (script.stdio.grandchild, script.stdio.runaway) = (true, true);
    for kill in [true, false] {
        let rig = FakeStdioServer::new(script.clone());
        let mut fixture = EvenkeelFixture::start(&[("s", &rig.spec(""))]).await;
        fixture.evenkeel.wait_until_attached("s").await;
        eventually("the grandchild is recorded", async || rig.grandchildren().pop()).await;
        if kill {
            fixture.evenkeel.kill();
        } else {
            fixture.evenkeel.terminate().await;
        }
        wait_until_all_gone(&rig).await;
    }
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn process_that_left_its_session_does_not_outlive_its_server() {
    let mut script = Script::new("runaway", ServerEra::Dual);
    (script.stdio.grandchild, script.stdio.runaway) = (true, true);
    let (rig, peer) = (FakeStdioServer::new(script.clone()), FakeStdioServer::new(script));
    let fixture = EvenkeelFixture::start(&[("peer", &peer.spec(""))]).await;
    let spec = format!("{}\nretry: {{ initial: 100ms, max: 100ms }}", rig.spec(""));
    fixture.attach("s", &spec).await;
    for (number, what) in ["crashed", "replaced", "detached"].into_iter().enumerate() {
        let runaway =
            eventually("the grandchild is recorded", async || rig.grandchildren().get(number).cloned()).await;
        fixture.evenkeel.wait_until_attached("s").await;
        assert!(runaway.is_alive());
        match what {
            "crashed" => rig.live_processes().pop().unwrap().kill(),
            "replaced" => {
                fixture
                    .declared
                    .write_server("s", &spec.replace("args: [", "env: [{ name: A, value: b }], args: ["));
            }
            _ => fixture.declared.remove("s.yaml"),
        }
        within(&format!("the grandchild exits after its server {what}"), runaway.wait_for_exit()).await;
    }
    let runaway =
        eventually("the grandchild of the other server is recorded", async || peer.grandchildren().pop())
            .await;
    assert!(runaway.is_alive(), "processes of other servers are not killed");
}

#[tokio::test]
async fn kill_9_during_fifty_starts_leaves_no_process() {
    let mut script = Script::new("starting", ServerEra::Dual);
    script.stdio.ignore_eof = true;
    let rig = FakeStdioServer::new(script);
    let spec = rig.spec("");
    let names: Vec<_> = (0..50).map(|number| format!("s{number}")).collect();
    let declared: Vec<_> = names.iter().map(|name| (name.as_str(), spec.as_str())).collect();
    let mut fixture = EvenkeelFixture::start(&declared).await;
    // Some processes have started, some are starting, some have not begun.
    eventually("twenty processes have started", async || (rig.processes().len() >= 20).then_some(())).await;
    fixture.evenkeel.kill();
    eventually("no process is left", async || {
        let output = std::process::Command::new("ps").args(["-A", "-o", "args="]).output().unwrap();
        let script = rig.command().1.display().to_string();
        (!String::from_utf8_lossy(&output.stdout).contains(&script)).then_some(())
    })
    .await;
    wait_until_all_gone(&rig).await;
}

#[tokio::test]
async fn killed_guard_is_replaced_without_disturbance() {
    let rig = stubborn_server();
    let mut fixture = EvenkeelFixture::start(&[]).await;
    fixture.attach("s", &rig.spec("")).await;
    eventually("the grandchild is recorded", async || rig.grandchildren().pop()).await;
    let evenkeel = fixture.evenkeel.pid();
    let first = guard_process_of(evenkeel).expect("a guard");
    kill_process(first, Signal::KILL).unwrap();
    eventually("another guard has started", async || {
        guard_process_of(evenkeel).filter(|guard| *guard != first)
    })
    .await;
    assert!(rig.live_processes().len() == 1 && rig.grandchildren()[0].is_alive());
    fixture.agent(Era::Modern).await.call_text("s_echo", "{}").await;
    fixture.evenkeel.kill();
    wait_until_all_gone(&rig).await;
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn suspended_guard_ends_the_servers_of_a_killed_evenkeel() {
    let rig = stubborn_server();
    let mut fixture = EvenkeelFixture::start(&[]).await;
    fixture.attach("early", &rig.spec("")).await;
    let guard = guard_process_of(fixture.evenkeel.pid()).expect("a guard");
    kill_process(guard, Signal::STOP).unwrap();
    // A server that starts while the guard is suspended.
    let late = stubborn_server();
    fixture.attach("late", &late.spec("")).await;
    for rig in [&rig, &late] {
        eventually("the grandchild is recorded", async || rig.grandchildren().pop()).await;
    }
    fixture.evenkeel.kill();
    wait_until_all_gone(&rig).await;
    wait_until_all_gone(&late).await;
}

#[tokio::test]
async fn sigterm_stops_everything_within_its_timeout() {
    let rigs: Vec<_> = (0..5).map(|_| stubborn_server()).collect();
    let http = FakeHttpServer::start(Script::new("h", ServerEra::Legacy).tools(&["sleep"])).await;
    let mut fixture = EvenkeelFixture::start(&[]).await;
    for (number, rig) in rigs.iter().enumerate() {
        fixture.attach(&format!("s{number}"), &rig.spec("")).await;
    }
    fixture.attach("h", &http.spec()).await;
    let guard = guard_process_of(fixture.evenkeel.pid());
    // A call in flight and open streams do not delay the exit.
    let agent = fixture.agent(Era::Legacy).await;
    let mut notifications = agent.notifications().await;
    let call = tokio::spawn(async move { agent.call("h_sleep", r#"{"ms":600000}"#).await });
    eventually("the call is in flight", async || (http.counters().in_flight == 1).then_some(())).await;

    let started_at = Instant::now();
    let status = fixture.evenkeel.terminate().await;
    assert!(status.success(), "{status}");
    // The servers have 10 s, and the whole shutdown 15 s; a server that needs longer is logged.
    assert!(!fixture.evenkeel.stderr().contains("did not end within"));
    assert!(!fixture.evenkeel.stderr().contains("shutdown did not complete"));
    assert!(started_at.elapsed() < Duration::from_secs(15), "{:?}", started_at.elapsed());
    for rig in &rigs {
        wait_until_all_gone(rig).await;
    }
    assert_eq!((http.counters().sessions, http.counters().count("DELETE")), (0, 1));
    notifications.wait_for_end().await;
    within("the call ends", call).await.unwrap().ok();
    eventually("the guard exits too", async || {
        guard.is_none_or(|guard| rustix::process::test_kill_process(guard).is_err()).then_some(())
    })
    .await;
}

#[tokio::test]
async fn second_signal_exits_immediately() {
    let http =
        FakeHttpServer::start(Script::new("h", ServerEra::Legacy).on("DELETE", Rule::delay(600_000))).await;
    let rig = stubborn_server();
    let mut fixture = EvenkeelFixture::start(&[("h", &http.spec()), ("s", &rig.spec(""))]).await;
    fixture.evenkeel.wait_until_attached("h").await;
    fixture.evenkeel.wait_until_attached("s").await;
    let pid = Pid::from_raw(i32::try_from(fixture.evenkeel.pid()).unwrap()).unwrap();
    kill_process(pid, Signal::TERM).unwrap();
    fixture.evenkeel.wait_for_log(&["a second signal exits immediately"]).await;
    let started_at = Instant::now();
    let status = fixture.evenkeel.terminate().await;
    assert_eq!(status.code(), Some(1), "{status}");
    // Without the second signal, the session that does not close would have delayed the exit for longer.
    assert!(started_at.elapsed() < Duration::from_secs(10), "{:?}", started_at.elapsed());
    wait_until_all_gone(&rig).await;
}

/// Returns the guard process of an evenkeel process, according to `ps`.
fn guard_process_of(evenkeel: u32) -> Option<Pid> {
    let output = std::process::Command::new("ps").args(["-A", "-o", "pid=,ppid=,args="]).output().unwrap();
    String::from_utf8_lossy(&output.stdout).lines().find_map(|line| {
        let mut columns = line.split_whitespace();
        let (pid, parent) = (columns.next()?.parse().ok()?, columns.next()?.parse::<u32>().ok()?);
        let program = Path::new(columns.next()?).file_name()?.to_owned();
        (parent == evenkeel && program == "evenkeel" && columns.next() == Some("guard"))
            .then(|| Pid::from_raw(pid))?
    })
}

/// Starts servers of both transports that were attached once and then reconnect slowly.
async fn slow_servers(limits: &str) -> (EvenkeelFixture, FakeStdioServer, FakeHttpServer) {
    let stdio = FakeStdioServer::new(Script::new("s", ServerEra::Dual).tools(&["echo"]));
    let http = FakeHttpServer::start(Script::new("h", ServerEra::Legacy).tools(&["echo", "odd"])).await;
    let mut fixture = EvenkeelFixture::start(&[
        ("s", &format!("{}\n{limits}", stdio.spec(""))),
        ("h", &format!("{}\n{limits}", http.spec())),
    ])
    .await;
    for name in ["s", "h"] {
        fixture.evenkeel.wait_until_attached(name).await;
    }
    wait_for_cached_catalogs(&fixture, 2).await;
    fixture.evenkeel.kill();
    stdio.edit_script(|script| script.stdio.start_delay_ms = 3_000);
    http.edit_script(|script| {
        script.on.insert("initialize".into(), vec![Rule::delay(3_000)]);
    });
    (fixture, stdio, http)
}

/// Waits until the lists of this number of servers are stored.
async fn wait_for_cached_catalogs(fixture: &EvenkeelFixture, servers: usize) {
    let folder = fixture.evenkeel.state_dir().join("catalogs");
    // A file that is being written has a hidden name.
    let is_complete = |entry: &std::fs::DirEntry| !entry.file_name().as_encoded_bytes().starts_with(b".");
    eventually("the lists are stored", async || {
        (std::fs::read_dir(&folder).ok()?.flatten().filter(is_complete).count() == servers).then_some(())
    })
    .await;
}

#[tokio::test]
async fn returning_agent_sees_cached_tools_and_its_calls_wait() {
    let (mut fixture, _stdio, _http) = slow_servers("health: { interval: 0s }").await;
    fixture.evenkeel.restart().await;
    let agent = fixture.agent(Era::Legacy).await;
    assert_eq!(
        agent.tool_names().await,
        ["h_echo", "h_odd", "s_echo"],
        "the first list contains the cached tools"
    );
    assert!(fixture.server("h").await["status"]["attachedGeneration"].is_null(), "nothing is attached yet");
    for tool in ["s_echo", "h_echo"] {
        agent.call_text(tool, "{}").await;
    }
    assert_eq!(agent.tool_names().await, ["h_echo", "h_odd", "s_echo"]);
}

#[tokio::test]
async fn cached_tools_are_withdrawn_after_grace_period() {
    let (mut fixture, _stdio, mut http) = slow_servers("gracePeriod: 2s").await;
    http.stop().await;
    fixture.evenkeel.restart().await;
    let agent = fixture.agent(Era::Legacy).await;
    assert_eq!(agent.tool_names().await, ["h_echo", "h_odd", "s_echo"]);
    eventually("the section is withdrawn", async || (agent.tool_names().await == ["s_echo"]).then_some(()))
        .await;
    let error = crate::fixture::error_text(&agent.call("h_echo", "{}").await.unwrap());
    assert!(error.contains("default/h"), "{error}");
}

#[tokio::test]
async fn waiting_call_is_not_sent_to_a_changed_tool() {
    let (mut fixture, stdio, http) = slow_servers("health: { interval: 0s }").await;
    let changed = serde_json::value::to_raw_value(
        &serde_json::json!({ "name": "echo", "description": "Deletes everything.", "inputSchema": { "type": "object" } }),
    )
    .unwrap();
    stdio.edit_script(|script| script.tools = vec![changed.clone()]);
    http.edit_script(|script| {
        script.on.insert("initialize".into(), vec![Rule::delay(3_000)]);
        script.tools = vec![changed.clone()];
    });
    fixture.evenkeel.restart().await;
    let agent = fixture.agent(Era::Legacy).await;
    assert_eq!(agent.tool_names().await, ["h_echo", "h_odd", "s_echo"]);
    let (over_stdio, over_http) = tokio::join!(agent.call("s_echo", "{}"), agent.call("h_echo", "{}"));
    for refused in [over_stdio, over_http] {
        let refused = crate::fixture::error_text(&refused.unwrap());
        assert!(refused.contains("changed its tool \"echo\"") && refused.contains("tools/list"), "{refused}");
    }
    assert_eq!(http.counters().calls(), 0);
    // The changed tool is listed by now, so it can be called.
    agent.call_text("s_echo", "{}").await;
    agent.call_text("h_echo", "{}").await;
    // A tool that was removed.
    let error = crate::fixture::error_text(&agent.call("h_odd", "{}").await.unwrap());
    assert!(error.contains("default/h"), "{error}");
}

#[tokio::test]
async fn filters_apply_to_cached_tools() {
    let (mut fixture, _stdio, http) = slow_servers("health: { interval: 0s }").await;
    let filter = "expose: { prefix: x, tools: { deny: [odd] } }";
    fixture.declared.write_server("h", &format!("{}\nhealth: {{ interval: 0s }}\n{filter}", http.spec()));
    fixture.evenkeel.restart().await;
    assert_eq!(fixture.agent(Era::Modern).await.tool_names().await, ["s_echo", "x_echo"]);
}

#[tokio::test]
async fn catalog_containing_a_secret_is_not_cached() {
    let tool = serde_json::json!({ "name": "t", "description": "Uses hunter2-hunter2.", "inputSchema": { "type": "object" } });
    let mut script = Script::new("s", ServerEra::Dual);
    script.tools = vec![serde_json::value::to_raw_value(&tool).unwrap()];
    let (leaking, plain) =
        (FakeStdioServer::new(script), FakeStdioServer::new(Script::new("p", ServerEra::Dual)));
    let secrets = tempfile::tempdir().unwrap();
    std::fs::create_dir(secrets.path().join("a")).unwrap();
    std::fs::write(secrets.path().join("a/b"), "hunter2-hunter2").unwrap();
    let declared = crate::support::TestDirectory::new();
    let env = ", env: [{ name: TOKEN, valueFrom: { secretKeyRef: { name: a, key: b } } }]";
    declared.write_server("leaking", &leaking.spec(env));
    declared.write_server("plain", &plain.spec(env));
    let flags = ["--secrets-dir", secrets.path().to_str().unwrap()];
    let evenkeel = crate::support::Evenkeel::run_with(declared.path(), &flags).await;
    for name in ["leaking", "plain"] {
        evenkeel.wait_until_attached(name).await;
    }
    let fixture = EvenkeelFixture { declared, evenkeel };
    wait_for_cached_catalogs(&fixture, 1).await;
    let grep = std::process::Command::new("grep")
        .args(["-r", "hunter2"])
        .arg(fixture.evenkeel.state_dir())
        .output()
        .unwrap();
    assert_eq!(String::from_utf8_lossy(&grep.stdout), "");
}

#[tokio::test]
async fn readyz_waits_for_and_names_first_attempts() {
    let hanging = FakeHttpServer::start(Script::default().on("POST", Rule::always(Action::Hang))).await;
    let rig = FakeHttpServer::start(Script::default()).await;
    let fixture = EvenkeelFixture::start(&[
        ("hanging", &format!("{}\ntimeouts: {{ connect: 4s }}", hanging.spec())),
        ("fine", &format!("{}\nrequired: true", rig.spec())),
    ])
    .await;
    fixture.evenkeel.wait_until_attached("fine").await;
    let readyz = |query: &str| fixture.evenkeel.admin(&format!("/readyz{query}"));
    let get = async |query: &str| {
        let response = crate::support::http::send(hyper::Method::GET, &readyz(query), &[], "").await.unwrap();
        (response.status, response.text().await.unwrap())
    };
    let (status, text) = get("").await;
    assert_eq!(status, 503, "{text}");
    assert!(
        text.starts_with("McpServer/default/hanging: Connecting: ") && text.lines().count() == 1,
        "{text}"
    );
    assert_eq!(get("?exclude=first-attempts").await.0, 200);
    fixture.evenkeel.wait_for("hanging", "Ready", "False", "Timeout").await;
    eventually("readyz reports ready", async || (get("").await.0 == 200).then_some(())).await;
    // Servers that are declared later do not count.
    fixture.declared.write_server("later", &hanging.spec());
    fixture.evenkeel.wait_for("later", "Ready", "False", "Connecting").await;
    assert_eq!(get("").await.0, 200);
}

#[tokio::test]
async fn port_answers_during_shutdown_and_soon_after_restart() {
    let stubborn = stubborn_server();
    let mut fixture = EvenkeelFixture::start(&[("stubborn", &stubborn.spec(""))]).await;
    fixture.evenkeel.wait_until_attached("stubborn").await;
    let url = fixture.evenkeel.url();
    let address = url.trim_start_matches("http://").trim_end_matches("/mcp").to_owned();
    let (stop, stopped) = tokio::sync::watch::channel(false);
    let watching = tokio::spawn(async move {
        let (mut refused, mut closed_since, mut longest) = (0, None::<Instant>, Duration::ZERO);
        while !*stopped.borrow() {
            match tokio::net::TcpStream::connect(&address).await {
                Err(error) if error.kind() == std::io::ErrorKind::ConnectionRefused => {
                    closed_since.get_or_insert_with(Instant::now);
                }
                // A connection that is closed again at once was accepted.
                _ => {
                    if let Some(since) = closed_since.take() {
                        longest = longest.max(since.elapsed());
                    }
                    let response = crate::support::http::send(hyper::Method::GET, &url, &[], "").await;
                    refused += u32::from(response.is_ok_and(|response| response.status == 503));
                }
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        (refused, longest)
    });
    fixture.evenkeel.terminate().await;
    fixture.evenkeel.restart().await;
    stop.send(true).unwrap();
    let (refused, longest) = within("the watching task ends", watching).await.unwrap();
    println!("the port was closed for {longest:?}");
    // The server takes seconds to exit; meanwhile agents get 503.
    assert!(refused > 10, "responded {refused} times");
    assert!(longest < Duration::from_secs(5), "closed for {longest:?}");
    fixture.agent(Era::Legacy).await.call_text("stubborn_echo", "{}").await;
}
