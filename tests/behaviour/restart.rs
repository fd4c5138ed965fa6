//! evenkeel ends, in every way there is: open sessions go on with the next one, and no process is left behind.

use std::path::Path;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use crate::fixture::EvenkeelFixture;
use crate::rig::{Action, FakeHttpServer, FakeStdioServer, Rule, Script, ServerEra};
use crate::support::{Era, eventually, within};

/// A server that ends for nothing but SIGKILL, and has a child like that.
fn stubborn_server() -> FakeStdioServer {
    let mut script = Script::new("stubborn", ServerEra::Dual);
    script.stdio.ignore_sigterm = true;
    script.stdio.ignore_eof = true;
    script.stdio.grandchild = true;
    FakeStdioServer::new(script)
}

/// Waits until every process that a rig ever was is gone, and its children.
async fn wait_until_all_gone(rig: &FakeStdioServer) {
    for process in rig.processes().into_iter().chain(rig.grandchildren()) {
        within("no process is left", process.wait_for_exit()).await;
    }
}

#[tokio::test]
async fn session_survives_kill_9_and_restart() {
    let (stdio, http) = (
        FakeStdioServer::new(Script::default()),
        FakeHttpServer::start(Script::new("h", ServerEra::Legacy)).await,
    );
    let mut stage = EvenkeelFixture::start(&[("s", &stdio.spec("")), ("h", &http.spec())]).await;
    for name in ["s", "h"] {
        stage.evenkeel.wait_until_attached(name).await;
    }
    let agent = stage.agent(Era::Legacy).await;
    let tools = agent.tool_names().await;
    let mut notices = agent.notifications().await;
    stage.evenkeel.kill();
    notices.wait_for_end().await;
    stage.evenkeel.restart().await;
    for name in ["s", "h"] {
        stage.evenkeel.wait_until_attached(name).await;
    }
    // The same session, with no new handshake.
    agent.call_text("s_echo", "{}").await;
    agent.call_text("h_echo", "{}").await;
    let mut notices = agent.notifications().await;
    notices.wait_for_tools_changed().await;
    assert_eq!(agent.tool_names().await, tools);
    assert_eq!(agent.end_session().await, 204);
    let gone = agent.call("s_echo", "{}").await.unwrap_err();
    assert!(gone.contains("404") || gone.contains("ession"), "{gone}");
}

#[tokio::test]
async fn first_call_after_restart_waits_for_its_server() {
    let rig = FakeStdioServer::new(Script::default());
    let mut stage = EvenkeelFixture::start(&[("s", &rig.spec(""))]).await;
    stage.evenkeel.wait_until_attached("s").await;
    let agent = stage.agent(Era::Legacy).await;
    stage.evenkeel.kill();
    rig.edit_script(|script| script.stdio.start_delay_ms = 1000);
    stage.evenkeel.restart().await;
    agent.call_text("s_echo", "{}").await;
}

#[tokio::test]
async fn change_made_while_down_reaches_open_sessions() {
    let (before, after) = (FakeStdioServer::new(Script::default()), FakeStdioServer::new(Script::default()));
    let mut stage = EvenkeelFixture::start(&[("old", &before.spec(""))]).await;
    stage.evenkeel.wait_until_attached("old").await;
    let uid = stage.server("old").await["metadata"]["uid"].clone();
    let agent = stage.agent(Era::Legacy).await;
    assert_eq!(agent.tool_names().await, ["old_echo", "old_report"]);
    stage.evenkeel.kill();
    stage.declared.write_server("new", &after.spec(""));
    stage.evenkeel.restart().await;
    let mut notices = agent.notifications().await;
    while agent.tool_names().await != ["new_echo", "new_report", "old_echo", "old_report"] {
        notices.wait_for_tools_changed().await;
    }
    assert_eq!(stage.server("old").await["metadata"]["uid"], uid);
}

#[tokio::test]
async fn file_broken_at_start_keeps_its_last_good_declaration() {
    let rig = FakeStdioServer::new(Script::default());
    let mut stage = EvenkeelFixture::start(&[("kept", &rig.spec(""))]).await;
    stage.evenkeel.wait_until_attached("kept").await;
    stage.evenkeel.kill();
    stage
        .declared
        .write("kept.yaml", "apiVersion: evenkeel.dev/v1alpha1\nkind: McpServer\nmetadata: { name: kept\n");
    stage.evenkeel.restart().await;
    stage.evenkeel.wait_for("kept", "Accepted", "False", "ParseError").await;
    stage.evenkeel.wait_for("kept", "Attached", "True", "ServingPreviousGeneration").await;
    stage.agent(Era::Legacy).await.call_text("kept_echo", "{}").await;
}

#[tokio::test]
async fn kill_9_leaves_no_child_and_no_grandchild() {
    let rigs: Vec<_> = (0..5).map(|_| stubborn_server()).collect();
    let mut stage = EvenkeelFixture::start(&[]).await;
    for (number, rig) in rigs.iter().enumerate() {
        stage.attach(&format!("s{number}"), &rig.spec("")).await;
    }
    eventually("the grandchildren are counted", async || {
        rigs.iter().all(|rig| rig.grandchildren().len() == 1).then_some(())
    })
    .await;
    stage.evenkeel.kill();
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
        let mut stage = EvenkeelFixture::start(&[("s", &rig.spec(""))]).await;
        stage.evenkeel.wait_until_attached("s").await;
        eventually("the grandchild is counted", async || rig.grandchildren().pop()).await;
        if kill {
            stage.evenkeel.kill();
        } else {
            stage.evenkeel.terminate().await;
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
    let stage = EvenkeelFixture::start(&[("peer", &peer.spec(""))]).await;
    let spec = format!("{}\nretry: {{ initial: 100ms, max: 100ms }}", rig.spec(""));
    stage.attach("s", &spec).await;
    for (number, what) in ["crashed", "replaced", "detached"].into_iter().enumerate() {
        let runaway =
            eventually("the grandchild is counted", async || rig.grandchildren().get(number).cloned()).await;
        stage.evenkeel.wait_until_attached("s").await;
        assert!(runaway.is_alive());
        match what {
            "crashed" => rig.live_processes().pop().unwrap().kill(),
            "replaced" => {
                stage
                    .declared
                    .write_server("s", &spec.replace("args: [", "env: [{ name: A, value: b }], args: ["));
            }
            _ => stage.declared.remove("s.yaml"),
        }
        within(&format!("nothing is left of what {what}"), runaway.wait_for_exit()).await;
    }
    let runaway = eventually("the other's is counted", async || peer.grandchildren().pop()).await;
    assert!(runaway.is_alive(), "another server's process is none of its business");
}

#[tokio::test]
async fn kill_9_during_fifty_starts_leaves_no_process() {
    let mut script = Script::new("starting", ServerEra::Dual);
    script.stdio.ignore_eof = true;
    let rig = FakeStdioServer::new(script);
    let spec = rig.spec("");
    let names: Vec<_> = (0..50).map(|number| format!("s{number}")).collect();
    let declared: Vec<_> = names.iter().map(|name| (name.as_str(), spec.as_str())).collect();
    let mut stage = EvenkeelFixture::start(&declared).await;
    // Some are there, some on their way, some not begun.
    eventually("twenty have come", async || (rig.processes().len() >= 20).then_some(())).await;
    stage.evenkeel.kill();
    eventually("none is left", async || {
        let said = std::process::Command::new("ps").args(["-A", "-o", "args="]).output().unwrap();
        let script = rig.command().1.display().to_string();
        (!String::from_utf8_lossy(&said.stdout).contains(&script)).then_some(())
    })
    .await;
    wait_until_all_gone(&rig).await;
}

#[tokio::test]
async fn killed_guard_is_replaced_without_disturbance() {
    let rig = stubborn_server();
    let mut stage = EvenkeelFixture::start(&[]).await;
    stage.attach("s", &rig.spec("")).await;
    eventually("the grandchild is counted", async || rig.grandchildren().pop()).await;
    let evenkeel = stage.evenkeel.pid();
    let first = guard_process_of(evenkeel).expect("a guard");
    kill_process(first, Signal::KILL).unwrap();
    eventually("another guard is there", async || guard_process_of(evenkeel).filter(|guard| *guard != first))
        .await;
    assert!(rig.live_processes().len() == 1 && rig.grandchildren()[0].is_alive());
    stage.agent(Era::Modern).await.call_text("s_echo", "{}").await;
    stage.evenkeel.kill();
    wait_until_all_gone(&rig).await;
}

#[tokio::test]
async fn sigterm_stops_everything_within_its_timeout() {
    let rigs: Vec<_> = (0..5).map(|_| stubborn_server()).collect();
    let http = FakeHttpServer::start(Script::new("h", ServerEra::Legacy).tools(&["sleep"])).await;
    let mut stage = EvenkeelFixture::start(&[]).await;
    for (number, rig) in rigs.iter().enumerate() {
        stage.attach(&format!("s{number}"), &rig.spec("")).await;
    }
    stage.attach("h", &http.spec()).await;
    let guard = guard_process_of(stage.evenkeel.pid());
    // A call in flight and open streams are no reason to stay.
    let agent = stage.agent(Era::Legacy).await;
    let mut notices = agent.notifications().await;
    let call = tokio::spawn(async move { agent.call("h_sleep", r#"{"ms":600000}"#).await });
    eventually("the call is at work", async || (http.counters().in_flight == 1).then_some(())).await;

    let begun = Instant::now();
    let status = stage.evenkeel.terminate().await;
    assert!(status.success(), "{status}");
    // The servers have 10 s and everything together 15 s; who needs longer says so.
    assert!(!stage.evenkeel.stderr().contains("did not end within"));
    assert!(!stage.evenkeel.stderr().contains("shutdown did not complete"));
    assert!(begun.elapsed() < Duration::from_secs(15), "{:?}", begun.elapsed());
    for rig in &rigs {
        wait_until_all_gone(rig).await;
    }
    assert_eq!((http.counters().sessions, http.counters().count("DELETE")), (0, 1));
    notices.wait_for_end().await;
    within("the call ends", call).await.unwrap().ok();
    eventually("the guard ends too", async || {
        guard.is_none_or(|guard| rustix::process::test_kill_process(guard).is_err()).then_some(())
    })
    .await;
}

#[tokio::test]
async fn second_signal_exits_immediately() {
    let http =
        FakeHttpServer::start(Script::new("h", ServerEra::Legacy).on("DELETE", Rule::delay(600_000))).await;
    let rig = stubborn_server();
    let mut stage = EvenkeelFixture::start(&[("h", &http.spec()), ("s", &rig.spec(""))]).await;
    stage.evenkeel.wait_until_attached("h").await;
    stage.evenkeel.wait_until_attached("s").await;
    let pid = Pid::from_raw(i32::try_from(stage.evenkeel.pid()).unwrap()).unwrap();
    kill_process(pid, Signal::TERM).unwrap();
    eventually("the shutdown has begun", async || {
        stage.evenkeel.stderr().contains("a second signal exits immediately").then_some(())
    })
    .await;
    let begun = Instant::now();
    let status = stage.evenkeel.terminate().await;
    assert_eq!(status.code(), Some(1), "{status}");
    // The session that does not end would have kept it for longer.
    assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
    wait_until_all_gone(&rig).await;
}

/// The guard process of this evenkeel, as the system tells it.
fn guard_process_of(evenkeel: u32) -> Option<Pid> {
    let said = std::process::Command::new("ps").args(["-A", "-o", "pid=,ppid=,args="]).output().unwrap();
    String::from_utf8_lossy(&said.stdout).lines().find_map(|line| {
        let mut words = line.split_whitespace();
        let (pid, parent) = (words.next()?.parse().ok()?, words.next()?.parse::<u32>().ok()?);
        let program = Path::new(words.next()?).file_name()?.to_owned();
        (parent == evenkeel && program == "evenkeel" && words.next() == Some("guard"))
            .then(|| Pid::from_raw(pid))?
    })
}

/// Servers of both transports, attached once and then slow to come back.
async fn slow_servers(limits: &str) -> (EvenkeelFixture, FakeStdioServer, FakeHttpServer) {
    let stdio = FakeStdioServer::new(Script::new("s", ServerEra::Dual).tools(&["echo"]));
    let http = FakeHttpServer::start(Script::new("h", ServerEra::Legacy).tools(&["echo", "odd"])).await;
    let mut stage = EvenkeelFixture::start(&[
        ("s", &format!("{}\n{limits}", stdio.spec(""))),
        ("h", &format!("{}\n{limits}", http.spec())),
    ])
    .await;
    for name in ["s", "h"] {
        stage.evenkeel.wait_until_attached(name).await;
    }
    wait_for_cached_catalogs(&stage, 2).await;
    stage.evenkeel.kill();
    stdio.edit_script(|script| script.stdio.start_delay_ms = 3_000);
    http.edit_script(|script| {
        script.on.insert("initialize".into(), vec![Rule::delay(3_000)]);
    });
    (stage, stdio, http)
}

/// Waits until what so many servers list is written down.
async fn wait_for_cached_catalogs(stage: &EvenkeelFixture, servers: usize) {
    let folder = stage.evenkeel.state_dir().join("catalogs");
    eventually("what servers list is written down", async || {
        (std::fs::read_dir(&folder).ok()?.flatten().count() == servers).then_some(())
    })
    .await;
}

#[tokio::test]
async fn returning_agent_sees_cached_tools_and_its_calls_wait() {
    let (mut stage, _stdio, _http) = slow_servers("health: { interval: 0s }").await;
    stage.evenkeel.restart().await;
    let agent = stage.agent(Era::Legacy).await;
    assert_eq!(agent.tool_names().await, ["h_echo", "h_odd", "s_echo"], "with the very first list");
    assert!(stage.server("h").await["status"]["attachedGeneration"].is_null(), "nothing is attached yet");
    for tool in ["s_echo", "h_echo"] {
        agent.call_text(tool, "{}").await;
    }
    assert_eq!(agent.tool_names().await, ["h_echo", "h_odd", "s_echo"]);
}

#[tokio::test]
async fn cached_tools_are_withdrawn_after_grace_period() {
    let (mut stage, _stdio, mut http) = slow_servers("gracePeriod: 2s").await;
    http.stop().await;
    stage.evenkeel.restart().await;
    let agent = stage.agent(Era::Legacy).await;
    assert_eq!(agent.tool_names().await, ["h_echo", "h_odd", "s_echo"]);
    eventually("it is withdrawn", async || (agent.tool_names().await == ["s_echo"]).then_some(())).await;
    let gone = crate::fixture::error_text(&agent.call("h_echo", "{}").await.unwrap());
    assert!(gone.contains("default/h"), "{gone}");
}

#[tokio::test]
async fn waiting_call_is_not_sent_to_a_changed_tool() {
    let (mut stage, stdio, http) = slow_servers("health: { interval: 0s }").await;
    let changed = serde_json::value::to_raw_value(
        &serde_json::json!({ "name": "echo", "description": "Deletes everything." }),
    )
    .unwrap();
    stdio.edit_script(|script| script.tools = vec![changed.clone()]);
    http.edit_script(|script| {
        script.on.insert("initialize".into(), vec![Rule::delay(3_000)]);
        script.tools = vec![changed.clone()];
    });
    stage.evenkeel.restart().await;
    let agent = stage.agent(Era::Legacy).await;
    assert_eq!(agent.tool_names().await, ["h_echo", "h_odd", "s_echo"]);
    let (over_stdio, over_http) = tokio::join!(agent.call("s_echo", "{}"), agent.call("h_echo", "{}"));
    for refused in [over_stdio, over_http] {
        let refused = crate::fixture::error_text(&refused.unwrap());
        assert!(refused.contains("changed its tool \"echo\"") && refused.contains("tools/list"), "{refused}");
    }
    assert_eq!(http.counters().calls(), 0);
    // Whoever calls it now can see what it is.
    agent.call_text("s_echo", "{}").await;
    agent.call_text("h_echo", "{}").await;
    // A tool that is not there any more.
    let gone = crate::fixture::error_text(&agent.call("h_odd", "{}").await.unwrap());
    assert!(gone.contains("default/h"), "{gone}");
}

#[tokio::test]
async fn filters_apply_to_cached_tools() {
    let (mut stage, _stdio, http) = slow_servers("health: { interval: 0s }").await;
    let filter = "expose: { prefix: x, tools: { deny: [odd] } }";
    stage.declared.write_server("h", &format!("{}\nhealth: {{ interval: 0s }}\n{filter}", http.spec()));
    stage.evenkeel.restart().await;
    assert_eq!(stage.agent(Era::Modern).await.tool_names().await, ["s_echo", "x_echo"]);
}

#[tokio::test]
async fn catalog_containing_a_secret_is_not_cached() {
    let tool = serde_json::json!({ "name": "t", "description": "Uses hunter2-hunter2." });
    let mut script = Script::new("s", ServerEra::Dual);
    script.tools = vec![serde_json::value::to_raw_value(&tool).unwrap()];
    let (leaky, plain) =
        (FakeStdioServer::new(script), FakeStdioServer::new(Script::new("p", ServerEra::Dual)));
    let secrets = tempfile::tempdir().unwrap();
    std::fs::create_dir(secrets.path().join("a")).unwrap();
    std::fs::write(secrets.path().join("a/b"), "hunter2-hunter2").unwrap();
    let declared = crate::support::TestDirectory::new();
    let env = ", env: [{ name: TOKEN, valueFrom: { secretKeyRef: { name: a, key: b } } }]";
    declared.write_server("leaky", &leaky.spec(env));
    declared.write_server("plain", &plain.spec(env));
    let flags = ["--secrets-dir", secrets.path().to_str().unwrap()];
    let evenkeel = crate::support::Evenkeel::run_with(declared.path(), &flags).await;
    for name in ["leaky", "plain"] {
        evenkeel.wait_until_attached(name).await;
    }
    let stage = EvenkeelFixture { declared, evenkeel };
    wait_for_cached_catalogs(&stage, 1).await;
    let grep = std::process::Command::new("grep")
        .args(["-r", "hunter2"])
        .arg(stage.evenkeel.state_dir())
        .output()
        .unwrap();
    assert_eq!(String::from_utf8_lossy(&grep.stdout), "");
}

#[tokio::test]
async fn readyz_waits_for_and_names_first_attempts() {
    let hanging = FakeHttpServer::start(Script::default().on("POST", Rule::always(Action::Hang))).await;
    let rig = FakeHttpServer::start(Script::default()).await;
    let stage = EvenkeelFixture::start(&[
        ("hanging", &format!("{}\ntimeouts: {{ connect: 4s }}", hanging.spec())),
        ("fine", &format!("{}\nrequired: true", rig.spec())),
    ])
    .await;
    stage.evenkeel.wait_until_attached("fine").await;
    let readyz = |query: &str| stage.evenkeel.admin(&format!("/readyz{query}"));
    let get = async |query: &str| {
        let answer = crate::support::http::send(hyper::Method::GET, &readyz(query), &[], "").await.unwrap();
        (answer.status, answer.text().await.unwrap())
    };
    let (status, text) = get("").await;
    assert_eq!(status, 503, "{text}");
    assert!(
        text.starts_with("McpServer/default/hanging: Connecting: ") && text.lines().count() == 1,
        "{text}"
    );
    assert_eq!(get("?exclude=first-attempts").await.0, 200);
    stage.evenkeel.wait_for("hanging", "Ready", "False", "Timeout").await;
    eventually("it is ready", async || (get("").await.0 == 200).then_some(())).await;
    // What is declared later does not count.
    stage.declared.write_server("later", &hanging.spec());
    stage.evenkeel.wait_for("later", "Ready", "False", "Connecting").await;
    assert_eq!(get("").await.0, 200);
}

#[tokio::test]
async fn port_answers_during_shutdown_and_soon_after_restart() {
    let stubborn = stubborn_server();
    let mut stage = EvenkeelFixture::start(&[("stubborn", &stubborn.spec(""))]).await;
    stage.evenkeel.wait_until_attached("stubborn").await;
    let url = stage.evenkeel.url();
    let address = url.trim_start_matches("http://").trim_end_matches("/mcp").to_owned();
    let (stop, stopped) = tokio::sync::watch::channel(false);
    let watching = tokio::spawn(async move {
        let (mut refused, mut closed_since, mut longest) = (0, None::<Instant>, Duration::ZERO);
        while !*stopped.borrow() {
            match tokio::net::TcpStream::connect(&address).await {
                Err(error) if error.kind() == std::io::ErrorKind::ConnectionRefused => {
                    closed_since.get_or_insert_with(Instant::now);
                }
                // One that is closed again at once was open.
                _ => {
                    if let Some(since) = closed_since.take() {
                        longest = longest.max(since.elapsed());
                    }
                    let answer = crate::support::http::send(hyper::Method::GET, &url, &[], "").await;
                    refused += u32::from(answer.is_ok_and(|answer| answer.status == 503));
                }
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        (refused, longest)
    });
    stage.evenkeel.terminate().await;
    stage.evenkeel.restart().await;
    stop.send(true).unwrap();
    let (refused, longest) = within("the watch ends", watching).await.unwrap();
    println!("the port was closed for {longest:?}");
    // The server takes seconds to end, and all the while agents are told to come back.
    assert!(refused > 10, "answered {refused} times");
    assert!(longest < Duration::from_secs(5), "closed for {longest:?}");
    stage.agent(Era::Legacy).await.call_text("stubborn_echo", "{}").await;
}
