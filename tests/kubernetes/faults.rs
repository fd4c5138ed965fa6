//! Declared servers that hang, flood stderr, return garbage or crash; and an instance that is killed.

use crate::rig::{Action, FakeHttpServer, FakeStdioServer, Rule, Script, ServerEra};
use crate::support::{Agent, Era, Evenkeel, eventually, within};
use crate::test_namespace::{TestNamespace, condition, server_yaml};

/// Runs evenkeel with the commands of these servers allowed.
async fn run_with_allowed_commands(ns: &TestNamespace<'_>, rigs: &[&FakeStdioServer]) -> Evenkeel {
    let allowed = rigs.iter().map(|rig| {
        let (program, file) = rig.command();
        format!("--allow-stdio={} {}", program.display(), file.display())
    });
    let allowed: Vec<String> = allowed.collect();
    ns.run(&allowed.iter().map(String::as_str).collect::<Vec<_>>()).await
}

#[tokio::test]
#[cfg_attr(without_api_server, ignore = "needs Go, for a Kubernetes API server")]
async fn failing_server_reports_its_state_and_affects_no_other() {
    let ns = TestNamespace::create_shared().await;
    let hangs = Script::default()
        .on("server/discover", Rule::always(Action::Hang))
        .on("initialize", Rule::always(Action::Hang));
    let mut flood = Script::new("flood", ServerEra::Modern).tools(&["echo"]);
    flood.stdio.stderr_flood = 20_000_000;
    let mut crash = Script::default();
    crash.stdio.exit_at_start = Some(7);
    crash.stdio.stderr = vec!["no such luck".into()];
    let (hanging, hanging_http) = (FakeStdioServer::new(hangs.clone()), FakeHttpServer::start(hangs).await);
    let (flood, crash) = (FakeStdioServer::new(flood), FakeStdioServer::new(crash));
    let garbage =
        FakeHttpServer::start(Script::default().on("POST", Rule::always(Action::Junk("<html>".into()))))
            .await;
    let list_error =
        Script::default().tools(&["echo"]).on("tools/list", Rule::always(Action::error(-32603, "rotten")));
    let list_error = FakeHttpServer::start(list_error).await;
    let peer = FakeHttpServer::start(Script::new("peer", ServerEra::Legacy).tools(&["echo"])).await;

    let evenkeel = run_with_allowed_commands(&ns, &[&hanging, &flood, &crash]).await;
    ns.apply_http_server("peer", &peer).await;
    ns.wait_until_attached("peer").await;
    let agent = Agent::connect(Era::Legacy, &evenkeel.url()).await;
    let slow_retry = "retry: { initial: 1h, max: 1h }";
    let short_timeouts = format!("timeouts: {{ start: 2s, connect: 2s }}\n{slow_retry}");
    ns.apply(
        &(server_yaml("hung", &format!("{}\n{short_timeouts}", hanging.spec("")))
            + &server_yaml("hung-http", &format!("{}\n{short_timeouts}", hanging_http.spec()))
            + &server_yaml("flood", &flood.spec(""))
            + &server_yaml("crash", &format!("{}\n{slow_retry}", crash.spec("")))
            + &server_yaml("lies", &format!("{}\n{slow_retry}", garbage.spec()))
            + &server_yaml("rotten", &format!("{}\n{slow_retry}", list_error.spec()))),
    )
    .await;
    for (name, expected) in [
        ("hung", "Timeout"),
        ("hung-http", "Timeout"),
        ("crash", "Exited"),
        ("lies", "HandshakeFailed"),
        ("rotten", "ListFailed"),
        ("flood", "Attached"),
    ] {
        let reason = eventually(&format!("the state of {name} is reported"), async || {
            let (_, reason, _) = condition(&ns.get_server(name).await?, "Ready")?;
            (reason != "Connecting").then_some(reason)
        })
        .await;
        assert_eq!(reason, expected, "{name}");
        agent.call_text("peer_echo", "{}").await;
    }
    assert_eq!(agent.tool_names().await, ["flood_echo", "peer_echo"]);
    // A new server is attached as usual.
    let another = FakeHttpServer::start(Script::new("another", ServerEra::Modern).tools(&["echo"])).await;
    ns.apply_http_server("another", &another).await;
    ns.wait_until_attached("another").await;
    let message = condition(&ns.get_server("crash").await.unwrap(), "Ready").unwrap().2;
    assert!(message.contains("no such luck"), "{message}");
    let counters = peer.counters();
    assert_eq!((counters.initializes(), counters.sessions_opened, counters.tool_lists()), (1, 1, 1));
}

#[tokio::test]
#[cfg_attr(without_api_server, ignore = "needs Go, for a Kubernetes API server")]
async fn sigkill_of_the_instance_leaves_no_child_process() {
    let ns = TestNamespace::create_shared().await;
    let mut script = Script::new("stubborn", ServerEra::Dual);
    script.stdio.ignore_sigterm = true;
    script.stdio.ignore_eof = true;
    script.stdio.grandchild = true;
    let rig = FakeStdioServer::new(script);
    let mut evenkeel = run_with_allowed_commands(&ns, &[&rig]).await;
    ns.apply(&server_yaml("stubborn", &rig.spec(""))).await;
    ns.wait_until_attached("stubborn").await;
    eventually("the server has a child process", async || (rig.grandchildren().len() == 1).then_some(()))
        .await;
    evenkeel.kill();
    for process in rig.processes().into_iter().chain(rig.grandchildren()) {
        within("every process ends", process.wait_for_exit()).await;
    }
}
