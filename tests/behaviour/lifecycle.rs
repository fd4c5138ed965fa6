//! Losing, suspending and closing a connection: what is served meanwhile, and the errors that callers get.

use serde_json::Value;

use crate::control_servers::ControlServers;
use crate::fixture::{EvenkeelFixture, NO_RETRY, error_text, start_call};
use crate::rig::{Action, ControlCommand, FakeHttpServer, FakeStdioServer, Rule, Script, ServerEra};
use crate::support::{Era, eventually, within};

/// Declares a server with an annotation that requests a reconcile.
fn request_reconcile(fixture: &EvenkeelFixture, name: &str, at: &str, spec: &str) {
    declare_with_annotations(fixture, name, &format!("evenkeel.dev/reconcile-requested-at: \"{at}\""), spec);
}

/// Declares a server with annotations.
fn declare_with_annotations(fixture: &EvenkeelFixture, name: &str, annotations: &str, spec: &str) {
    let spec = spec.replace('\n', "\n  ");
    fixture.declared.write(
        &format!("{name}.yaml"),
        &format!(
            "apiVersion: evenkeel.dev/v1alpha1\nkind: McpServer\nmetadata:\n  name: {name}\n  annotations: {{ {annotations} }}\nspec:\n  {spec}\n"
        ),
    );
}

#[tokio::test]
async fn suspend_detaches_one_server_and_resume_attaches_it() {
    let rig = FakeStdioServer::new(Script::default().tools(&["echo"]));
    let fixture = EvenkeelFixture::start(&[]).await;
    let controls = ControlServers::attach(&fixture).await;
    fixture.declared.write_server("s", &format!("{}\nsuspend: true", rig.spec("")));
    fixture.evenkeel.wait_for("s", "Ready", "False", "Suspended").await;
    assert_eq!(rig.processes().len(), 0);
    fixture.attach("s", &rig.spec("")).await;
    let uid = fixture.server("s").await["metadata"]["uid"].clone();
    let agent = fixture.agent(Era::Legacy).await;
    agent.call_text("s_echo", "{}").await;

    fixture.declared.write_server("s", &format!("{}\nsuspend: true", rig.spec("")));
    fixture.evenkeel.wait_for("s", "Ready", "False", "Suspended").await;
    fixture.evenkeel.wait_for("s", "Attached", "False", "Detached").await;
    assert!(fixture.evenkeel.condition("s", "Stalled").await.is_none());
    let text = error_text(&agent.call("s_echo", "{}").await.unwrap());
    assert!(text.contains("default/s") && text.contains("suspended") && text.contains("Do not"), "{text}");
    eventually("the process has exited", async || rig.live_processes().is_empty().then_some(())).await;

    fixture.attach("s", &rig.spec("")).await;
    agent.call_text("s_echo", "{}").await;
    assert_eq!(fixture.server("s").await["metadata"]["uid"], uid);
    assert_eq!(rig.processes().len(), 2);
    controls.assert_untouched(&fixture).await;
}

#[tokio::test]
async fn lost_server_fails_calls_in_flight_and_holds_new_ones() {
    let rig = FakeStdioServer::new(Script::new("s", ServerEra::Modern).tools(&["echo", "sleep"]));
    let fixture = EvenkeelFixture::start(&[]).await;
    let controls = ControlServers::attach(&fixture).await;
    fixture.attach("s", &format!("{}\nretry: {{ initial: 100ms, max: 100ms }}", rig.spec(""))).await;
    let process = rig.live_processes().pop().unwrap();
    let mut calls = Vec::new();
    for era in Era::ALL {
        let agent = fixture.agent(era).await;
        calls.push(tokio::spawn(async move { agent.call("s_sleep", r#"{"ms":600000}"#).await }));
    }
    eventually("two calls and the subscription are in flight", async || {
        (process.counters().await.in_flight == 2 + 1).then_some(())
    })
    .await;
    // The next process starts slowly, so that the loss is reported long enough to be observed.
    rig.edit_script(|script| script.stdio.start_delay_ms = 10_000);
    process.send_command(ControlCommand::Stderr("out of memory, sorry".into())).await;
    process.send_command(ControlCommand::Exit(41)).await;
    for call in calls {
        let text = error_text(&within("a call in flight fails", call).await.unwrap().unwrap());
        for part in ["default/s", "41", "out of memory, sorry", "may have taken effect"] {
            assert!(text.contains(part), "{part}: {text}");
        }
    }
    let ready = eventually("the loss is reported", async || {
        fixture.evenkeel.condition("s", "Ready").await.filter(|ready| ready.status == "False")
    })
    .await;
    assert_eq!(ready.reason, "Exited", "{ready:?}");
    fixture.evenkeel.wait_for("s", "Attached", "False", "Reconnecting").await;
    // Within the grace period the tools stay listed, and a call waits for an attempt in progress.
    let agent = fixture.agent(Era::Legacy).await;
    assert!(agent.tool_names().await.contains(&"s_echo".to_owned()));
    eventually("the attempt is in progress", async || (rig.processes().len() == 2).then_some(())).await;
    agent.call_text("s_echo", "{}").await;
    fixture.evenkeel.wait_until_attached("s").await;
    assert_eq!(fixture.server("s").await["status"]["restarts"], 1);
    let calls = rig.live_processes()[0].counters().await.calls();
    assert_eq!(calls, 1, "dispatched calls are not sent again");
    controls.assert_untouched(&fixture).await;
}

#[tokio::test]
async fn lost_server_is_withdrawn_after_grace_period() {
    let mut rig = FakeHttpServer::start(Script::new("s", ServerEra::Legacy).tools(&["echo"])).await;
    let fixture = EvenkeelFixture::start(&[(
        "s",
        &format!("{}\ngracePeriod: 1s\nretry: {{ initial: 200ms, max: 200ms }}", rig.spec()),
    )])
    .await;
    fixture.evenkeel.wait_until_attached("s").await;
    let [mut legacy, mut modern] = fixture.watchers(&["s_echo"]).await;
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
    let fixture = EvenkeelFixture::start(&[("s", &format!("{}\n{NO_RETRY}", rig.spec()))]).await;
    fixture.evenkeel.wait_until_attached("s").await;
    let [mut legacy, _] = fixture.watchers(&["s_echo"]).await;
    rig.send_command(ControlCommand::ForgetSessions { quietly: false });
    eventually("calls succeed again", async || {
        legacy.agent.call("s_echo", "{}").await.ok().filter(|result| !result.contains("isError")).map(drop)
    })
    .await;
    assert_eq!(rig.counters().sessions_opened, 2, "one new session for all");
    assert_eq!(legacy.pending_notifications(), Vec::<String>::new());

    // A second loss shortly after counts as a failure.
    rig.send_command(ControlCommand::ForgetSessions { quietly: false });
    legacy.agent.call("s_echo", "{}").await.unwrap();
    fixture.evenkeel.wait_for("s", "Ready", "False", "ConnectFailed").await;
    assert!(fixture.server("s").await["status"]["nextRetryTime"].is_string());
}

#[tokio::test]
async fn call_in_flight_finishes_within_the_drain_timeout() {
    let long_drain =
        FakeHttpServer::start(Script::new("long-drain", ServerEra::Legacy).tools(&["sleep"])).await;
    let short_drain =
        FakeHttpServer::start(Script::new("short-drain", ServerEra::Modern).tools(&["sleep"])).await;
    let other = FakeHttpServer::start(Script::default()).await;
    let fixture = EvenkeelFixture::start(&[
        ("long-drain", &long_drain.spec()),
        ("short-drain", &format!("{}\ntimeouts: {{ drain: 500ms }}", short_drain.spec())),
        ("other", &other.spec()),
    ])
    .await;
    for name in ["long-drain", "short-drain", "other"] {
        fixture.evenkeel.wait_until_attached(name).await;
    }
    let finishes =
        start_call(fixture.agent(Era::Legacy).await, "long-drain_sleep", r#"{"ms":4000}"#, &long_drain).await;
    let cut =
        start_call(fixture.agent(Era::Legacy).await, "short-drain_sleep", r#"{"ms":600000}"#, &short_drain)
            .await;
    fixture.declared.remove("long-drain.yaml");
    fixture.declared.remove("short-drain.yaml");
    assert!(within("a call that finishes in time", finishes).await.unwrap().unwrap().contains("slept"));
    let text = error_text(&within("a call that does not finish in time", cut).await.unwrap().unwrap());
    assert!(text.contains("default/short-drain") && text.contains("removed"), "{text}");
    assert!(text.contains("did not end within 0.5 s"), "{text}");
    eventually("both sessions are closed", async || {
        (long_drain.counters().sessions == 0 && short_drain.counters().in_flight == 0).then_some(())
    })
    .await;
    assert_eq!(short_drain.counters().cancelled, 1, "the cancellation reaches the server");
}

/// Waits until a reconcile request is reported as handled.
async fn wait_for_reconcile(fixture: &EvenkeelFixture, name: &str) -> Value {
    eventually("the request is reported as handled", async || {
        let server = fixture.server(name).await;
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
    let fixture = EvenkeelFixture::start(&[("f", &failing_spec), ("h", &healthy.spec(""))]).await;
    fixture.evenkeel.wait_for("f", "Ready", "False", "ConnectFailed").await;
    fixture.evenkeel.wait_until_attached("h").await;
    let process = healthy.live_processes().pop().unwrap();
    let lists = process.counters().await.tool_lists();
    let mut quiet = Script::new("q", ServerEra::Legacy).tools(&["echo", "odd"]);
    quiet.quiet = true;
    process.set_script(quiet).await;
    failing.edit_script(|script| {
        *script = Script::new("f", ServerEra::Legacy).on("tools/list", Rule::delay(700));
    });

    request_reconcile(&fixture, "f", "2026-11-21T12:00:00Z", &failing_spec);
    let server = wait_for_reconcile(&fixture, "f").await;
    let ready = &server["status"]["conditions"][0];
    assert_eq!(
        (&ready["type"], &ready["reason"]),
        (&"Ready".into(), &"Attached".into()),
        "a handled request has taken effect: {server}"
    );
    let [mut watcher, _] = fixture.watchers(&["f_echo", "f_report", "h_echo"]).await;
    request_reconcile(&fixture, "h", "2026-11-21T12:00:00Z", &healthy.spec(""));
    watcher.wait_for_tools(&["f_echo", "f_report", "h_echo", "h_odd"]).await;
    // The status is updated after the list.
    let server = wait_for_reconcile(&fixture, "h").await;
    assert_eq!(server["metadata"]["generation"], 1);
    assert_eq!(healthy.processes().len(), 1, "not reconnected");
    assert_eq!(process.counters().await.tool_lists(), lists + 1);
}

#[tokio::test]
async fn retry_after_is_reported_and_reconnect_overrides_it() {
    let busy = Rule::times(1, Action::status_with(429, "Retry-After", "3600"));
    let rig = FakeHttpServer::start(Script::default().tools(&["echo"]).on("tools/call", busy)).await;
    let fixture = EvenkeelFixture::start(&[("s", &rig.spec())]).await;
    fixture.evenkeel.wait_until_attached("s").await;
    let agent = fixture.agent(Era::Modern).await;
    error_text(&agent.call("s_echo", "{}").await.unwrap());
    let lists_before = rig.counters().tool_lists();
    let assert_paused = async || {
        let reconciling = fixture.evenkeel.wait_for("s", "Reconciling", "True", "ProgressingWithRetry").await;
        assert!(reconciling.message.contains("no request before"), "{reconciling:?}");
    };
    assert_paused().await;
    request_reconcile(&fixture, "s", "2026-11-21T12:00:00Z", &rig.spec());
    wait_for_reconcile(&fixture, "s").await;
    assert_paused().await;
    assert_eq!(rig.counters().tool_lists(), lists_before, "no request is sent");

    declare_with_annotations(&fixture, "s", "evenkeel.dev/reconnect-requested-at: now", &rig.spec());
    eventually("the problem is resolved", async || {
        fixture.evenkeel.condition("s", "Reconciling").await.is_none().then_some(())
    })
    .await;
    fixture.evenkeel.wait_until_attached("s").await;
    agent.call_text("s_echo", "{}").await;
}

#[tokio::test]
async fn notification_burst_refreshes_once_and_failed_refresh_keeps_the_list() {
    for era in [ServerEra::Legacy, ServerEra::Modern] {
        let slow = Rule { delay_ms: 700, ..Rule::default() };
        let rig = FakeHttpServer::start(Script::new("s", era).tools(&["echo"])).await;
        let fixture = EvenkeelFixture::start(&[("s", &rig.spec())]).await;
        fixture.evenkeel.wait_until_attached("s").await;
        eventually("the notification stream is open", async || (rig.counters().streams == 1).then_some(()))
            .await;
        let [mut watcher, _] = fixture.watchers(&["s_echo"]).await;
        let (before, base) = (rig.counters().tool_lists(), rig.counters().in_flight);
        rig.edit_script(|script| {
            *script = script.clone().tools(&["echo", "odd"]).on("tools/list", slow);
        });
        for _ in 0..50 {
            rig.send_command(ControlCommand::Notify("notifications/tools/list_changed".into()));
        }
        watcher.wait_for_tools(&["s_echo", "s_odd"]).await;
        eventually("no more lists are read", async || {
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
        let failure = fixture.evenkeel.wait_for("s", "Degraded", "True", "ListUnavailable").await;
        assert!(failure.message.contains("tools/list") && failure.message.contains("boom"), "{failure:?}");
        assert_eq!(watcher.agent.tool_names().await, ["s_echo", "s_odd"]);
        fixture.evenkeel.wait_until_attached("s").await;
        // The list is read again without another notification.
        rig.edit_script(|script| script.on.clear());
        watcher.wait_for_tools(&["s_echo"]).await;
        eventually("the Degraded condition is removed", async || {
            fixture.evenkeel.condition("s", "Degraded").await.is_none().then_some(())
        })
        .await;
    }
}
