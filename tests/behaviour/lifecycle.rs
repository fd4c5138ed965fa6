//! Losing, suspending and letting go of a connection: what serves meanwhile, and what callers are told.

use serde_json::Value;

use crate::control_servers::ControlServers;
use crate::fixture::{EvenkeelFixture, NO_RETRY, error_text, start_call};
use crate::rig::{Action, ControlCommand, FakeHttpServer, FakeStdioServer, Rule, Script, ServerEra};
use crate::support::{Era, eventually, within};

/// Declares a server with an annotation that asks for a look.
fn request_reconcile(stage: &EvenkeelFixture, name: &str, at: &str, spec: &str) {
    declare_with_annotations(stage, name, &format!("evenkeel.dev/reconcile-requested-at: \"{at}\""), spec);
}

/// Declares a server with annotations.
fn declare_with_annotations(stage: &EvenkeelFixture, name: &str, annotations: &str, spec: &str) {
    let spec = spec.replace('\n', "\n  ");
    stage.declared.write(
        &format!("{name}.yaml"),
        &format!(
            "apiVersion: evenkeel.dev/v1alpha1\nkind: McpServer\nmetadata:\n  name: {name}\n  annotations: {{ {annotations} }}\nspec:\n  {spec}\n"
        ),
    );
}

#[tokio::test]
async fn suspend_detaches_one_server_and_resume_attaches_it() {
    let rig = FakeStdioServer::new(Script::default().tools(&["echo"]));
    let stage = EvenkeelFixture::start(&[]).await;
    let peers = ControlServers::attach(&stage).await;
    stage.declared.write_server("s", &format!("{}\nsuspend: true", rig.spec("")));
    stage.evenkeel.wait_for("s", "Ready", "False", "Suspended").await;
    assert_eq!(rig.processes().len(), 0);
    stage.attach("s", &rig.spec("")).await;
    let uid = stage.server("s").await["metadata"]["uid"].clone();
    let agent = stage.agent(Era::Legacy).await;
    agent.call_text("s_echo", "{}").await;

    stage.declared.write_server("s", &format!("{}\nsuspend: true", rig.spec("")));
    stage.evenkeel.wait_for("s", "Ready", "False", "Suspended").await;
    stage.evenkeel.wait_for("s", "Attached", "False", "Detached").await;
    assert!(stage.evenkeel.condition("s", "Stalled").await.is_none());
    let text = error_text(&agent.call("s_echo", "{}").await.unwrap());
    assert!(text.contains("default/s") && text.contains("suspended") && text.contains("Do not"), "{text}");
    eventually("its process is gone", async || rig.live_processes().is_empty().then_some(())).await;

    stage.attach("s", &rig.spec("")).await;
    agent.call_text("s_echo", "{}").await;
    assert_eq!(stage.server("s").await["metadata"]["uid"], uid);
    assert_eq!(rig.processes().len(), 2);
    peers.assert_untouched(&stage).await;
}

#[tokio::test]
async fn lost_server_fails_calls_in_flight_and_holds_new_ones() {
    let rig = FakeStdioServer::new(Script::new("s", ServerEra::Modern).tools(&["echo", "sleep"]));
    let stage = EvenkeelFixture::start(&[]).await;
    let peers = ControlServers::attach(&stage).await;
    stage.attach("s", &format!("{}\nretry: {{ initial: 100ms, max: 100ms }}", rig.spec(""))).await;
    let process = rig.live_processes().pop().unwrap();
    let mut calls = Vec::new();
    for era in Era::ALL {
        let agent = stage.agent(era).await;
        calls.push(tokio::spawn(async move { agent.call("s_sleep", r#"{"ms":600000}"#).await }));
    }
    eventually("two calls and the subscription are at work", async || {
        (process.counters().await.in_flight == 2 + 1).then_some(())
    })
    .await;
    // The next one takes its time to start: for so long is it told that the server is gone.
    rig.edit_script(|script| script.stdio.start_delay_ms = 10_000);
    process.send_command(ControlCommand::Stderr("out of memory, sorry".into())).await;
    process.send_command(ControlCommand::Exit(41)).await;
    for call in calls {
        let text = error_text(&within("a call in flight fails", call).await.unwrap().unwrap());
        for part in ["default/s", "41", "out of memory, sorry", "may have taken effect"] {
            assert!(text.contains(part), "{part}: {text}");
        }
    }
    let ready = eventually("the loss is told", async || {
        stage.evenkeel.condition("s", "Ready").await.filter(|ready| ready.status == "False")
    })
    .await;
    assert_eq!(ready.reason, "Exited", "{ready:?}");
    stage.evenkeel.wait_for("s", "Attached", "False", "Reconnecting").await;
    // Within its grace its tools stay listed, and once an attempt is under way a call waits for it.
    let agent = stage.agent(Era::Legacy).await;
    assert!(agent.tool_names().await.contains(&"s_echo".to_owned()));
    eventually("the attempt is under way", async || (rig.processes().len() == 2).then_some(())).await;
    agent.call_text("s_echo", "{}").await;
    stage.evenkeel.wait_until_attached("s").await;
    assert_eq!(stage.server("s").await["status"]["restarts"], 1);
    let calls = rig.live_processes()[0].counters().await.calls();
    assert_eq!(calls, 1, "what had been dispatched is not sent again");
    peers.assert_untouched(&stage).await;
}

#[tokio::test]
async fn lost_server_is_withdrawn_after_grace_period() {
    let mut rig = FakeHttpServer::start(Script::new("s", ServerEra::Legacy).tools(&["echo"])).await;
    let stage = EvenkeelFixture::start(&[(
        "s",
        &format!("{}\ngracePeriod: 1s\nretry: {{ initial: 200ms, max: 200ms }}", rig.spec()),
    )])
    .await;
    stage.evenkeel.wait_until_attached("s").await;
    let [mut legacy, mut modern] = stage.watchers(&["s_echo"]).await;
    rig.stop().await;
    legacy.wait_for_tools(&[]).await;
    modern.wait_for_tools(&[]).await;
    let text = error_text(&legacy.agent.call("s_echo", "{}").await.unwrap());
    assert!(text.contains("default/s") && text.contains("later"), "{text}");
    rig.resume().await;
    legacy.wait_for_tools(&["s_echo"]).await;
    modern.wait_for_tools(&["s_echo"]).await;
    modern.agent.call_text("s_echo", "{}").await;
}

#[tokio::test]
async fn forgotten_session_is_reopened_without_notifications() {
    let rig = FakeHttpServer::start(Script::new("s", ServerEra::Legacy).tools(&["echo"])).await;
    let stage = EvenkeelFixture::start(&[("s", &format!("{}\n{NO_RETRY}", rig.spec()))]).await;
    stage.evenkeel.wait_until_attached("s").await;
    let [mut legacy, _] = stage.watchers(&["s_echo"]).await;
    rig.send_command(ControlCommand::ForgetSessions { quietly: false });
    eventually("calls work again", async || {
        legacy.agent.call("s_echo", "{}").await.ok().filter(|result| !result.contains("isError")).map(drop)
    })
    .await;
    assert_eq!(rig.counters().sessions_opened, 2, "one new session for all");
    assert_eq!(legacy.pending_notifications(), Vec::<String>::new());

    // Once more, soon after, it counts as a failure like any other.
    rig.send_command(ControlCommand::ForgetSessions { quietly: false });
    legacy.agent.call("s_echo", "{}").await.unwrap();
    stage.evenkeel.wait_for("s", "Ready", "False", "ConnectFailed").await;
    assert!(stage.server("s").await["status"]["nextRetryTime"].is_string());
}

#[tokio::test]
async fn call_in_flight_finishes_within_the_drain_timeout() {
    let patient = FakeHttpServer::start(Script::new("patient", ServerEra::Legacy).tools(&["sleep"])).await;
    let hasty = FakeHttpServer::start(Script::new("hasty", ServerEra::Modern).tools(&["sleep"])).await;
    let other = FakeHttpServer::start(Script::default()).await;
    let stage = EvenkeelFixture::start(&[
        ("patient", &patient.spec()),
        ("hasty", &format!("{}\ntimeouts: {{ drain: 500ms }}", hasty.spec())),
        ("other", &other.spec()),
    ])
    .await;
    for name in ["patient", "hasty", "other"] {
        stage.evenkeel.wait_until_attached(name).await;
    }
    let finishes =
        start_call(stage.agent(Era::Legacy).await, "patient_sleep", r#"{"ms":4000}"#, &patient).await;
    let cut = start_call(stage.agent(Era::Legacy).await, "hasty_sleep", r#"{"ms":600000}"#, &hasty).await;
    stage.declared.remove("patient.yaml");
    stage.declared.remove("hasty.yaml");
    assert!(within("a call that ends in time", finishes).await.unwrap().unwrap().contains("slept"));
    let text = error_text(&within("a call that does not", cut).await.unwrap().unwrap());
    assert!(text.contains("default/hasty") && text.contains("removed"), "{text}");
    assert!(text.contains("did not end within 0.5 s"), "{text}");
    eventually("both sessions are ended", async || {
        (patient.counters().sessions == 0 && hasty.counters().in_flight == 0).then_some(())
    })
    .await;
    assert_eq!(hasty.counters().cancelled, 1, "the server is told");
}

/// Waits until a request for a look is said to be done.
async fn wait_for_reconcile(stage: &EvenkeelFixture, name: &str) -> Value {
    eventually("the request is said to be done", async || {
        let server = stage.server(name).await;
        (server["status"]["lastHandledReconcileAt"] == "2026-11-21T12:00:00Z").then_some(server)
    })
    .await
}

#[tokio::test]
async fn requested_reconcile_retries_failed_and_refreshes_healthy_servers() {
    let failing = FakeHttpServer::start(
        Script::new("f", ServerEra::Legacy).on("POST", Rule::always(Action::status(503))),
    )
    .await;
    let mut quiet = Script::new("q", ServerEra::Legacy).tools(&["echo"]);
    quiet.quiet = true;
    let healthy = FakeStdioServer::new(quiet);
    let failing_spec = format!("{}\n{NO_RETRY}", failing.spec());
    let stage = EvenkeelFixture::start(&[("f", &failing_spec), ("h", &healthy.spec(""))]).await;
    stage.evenkeel.wait_for("f", "Ready", "False", "ConnectFailed").await;
    stage.evenkeel.wait_until_attached("h").await;
    let process = healthy.live_processes().pop().unwrap();
    let lists = process.counters().await.tool_lists();
    let mut quiet = Script::new("q", ServerEra::Legacy).tools(&["echo", "odd"]);
    quiet.quiet = true;
    process.set_script(quiet).await;
    failing.edit_script(|script| {
        *script = Script::new("f", ServerEra::Legacy).on("tools/list", Rule::delay(700))
    });

    request_reconcile(&stage, "f", "2026-11-21T12:00:00Z", &failing_spec);
    let server = wait_for_reconcile(&stage, "f").await;
    let ready = &server["status"]["conditions"][0];
    assert_eq!(
        (&ready["type"], &ready["reason"]),
        (&"Ready".into(), &"Attached".into()),
        "done is done: {server}"
    );
    let [mut watcher, _] = stage.watchers(&["f_echo", "f_report", "h_echo"]).await;
    request_reconcile(&stage, "h", "2026-11-21T12:00:00Z", &healthy.spec(""));
    watcher.wait_for_tools(&["f_echo", "f_report", "h_echo", "h_odd"]).await;
    // The status follows the list.
    let server = wait_for_reconcile(&stage, "h").await;
    assert_eq!(server["metadata"]["generation"], 1);
    assert_eq!(healthy.processes().len(), 1, "not reconnected");
    assert_eq!(process.counters().await.tool_lists(), lists + 1);
}

#[tokio::test]
async fn retry_after_is_reported_and_reconnect_overrides_it() {
    let busy = Rule::times(1, Action::status_with(429, "Retry-After", "3600"));
    let rig = FakeHttpServer::start(Script::default().tools(&["echo"]).on("tools/call", busy)).await;
    let stage = EvenkeelFixture::start(&[("s", &rig.spec())]).await;
    stage.evenkeel.wait_until_attached("s").await;
    let agent = stage.agent(Era::Modern).await;
    error_text(&agent.call("s_echo", "{}").await.unwrap());
    let asked = rig.counters().tool_lists();
    let says_so = async || {
        let trouble = stage.evenkeel.wait_for("s", "Reconciling", "True", "ProgressingWithRetry").await;
        assert!(trouble.message.contains("no request before"), "{trouble:?}");
    };
    says_so().await;
    request_reconcile(&stage, "s", "2026-11-21T12:00:00Z", &rig.spec());
    wait_for_reconcile(&stage, "s").await;
    says_so().await;
    assert_eq!(rig.counters().tool_lists(), asked, "it is left alone");

    declare_with_annotations(&stage, "s", "evenkeel.dev/reconnect-requested-at: now", &rig.spec());
    eventually("nothing is wrong any more", async || {
        stage.evenkeel.condition("s", "Reconciling").await.is_none().then_some(())
    })
    .await;
    stage.evenkeel.wait_until_attached("s").await;
    agent.call_text("s_echo", "{}").await;
}

#[tokio::test]
async fn notification_burst_refreshes_once_and_failed_refresh_keeps_the_list() {
    for era in [ServerEra::Legacy, ServerEra::Modern] {
        let slow = Rule { delay_ms: 700, ..Rule::default() };
        let rig = FakeHttpServer::start(Script::new("s", era).tools(&["echo"])).await;
        let stage = EvenkeelFixture::start(&[("s", &rig.spec())]).await;
        stage.evenkeel.wait_until_attached("s").await;
        eventually("the notice stream is open", async || (rig.counters().streams == 1).then_some(())).await;
        let [mut watcher, _] = stage.watchers(&["s_echo"]).await;
        let (before, base) = (rig.counters().tool_lists(), rig.counters().in_flight);
        rig.edit_script(|script| {
            *script = script.clone().tools(&["echo", "odd"]).on("tools/list", slow);
        });
        for _ in 0..50 {
            rig.send_command(ControlCommand::Notify("notifications/tools/list_changed".into()));
        }
        watcher.wait_for_tools(&["s_echo", "s_odd"]).await;
        eventually("nothing more is listed", async || {
            let now = rig.counters();
            (now.tool_lists() > before && now.in_flight == base).then_some(())
        })
        .await;
        let lists = rig.counters().tool_lists() - before;
        assert!(lists <= 3, "{era:?}: {lists} lists for one burst");

        rig.edit_script(|script| {
            script.on.clear();
            *script =
                script.clone().tools(&["echo"]).on("tools/list", Rule::always(Action::error(-32603, "boom")));
        });
        let failure = stage.evenkeel.wait_for("s", "Degraded", "True", "ListUnavailable").await;
        assert!(failure.message.contains("tools/list") && failure.message.contains("boom"), "{failure:?}");
        assert_eq!(watcher.agent.tool_names().await, ["s_echo", "s_odd"]);
        stage.evenkeel.wait_until_attached("s").await;
        // It is asked again without another notice.
        rig.edit_script(|script| script.on.clear());
        watcher.wait_for_tools(&["s_echo"]).await;
        eventually("all is said to be well", async || {
            stage.evenkeel.condition("s", "Degraded").await.is_none().then_some(())
        })
        .await;
    }
}
