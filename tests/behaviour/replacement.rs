//! Replacing a connection: which connection serves meanwhile, and how the old one is closed.

use crate::control_servers::ControlServers;
use crate::fixture::{CallHandle, EvenkeelFixture, NO_RETRY, error_text, start_call};
use crate::rig::{Action, FakeHttpServer, FakeStdioServer, Rule, Script, ServerEra};
use crate::support::{Era, eventually, within};

#[tokio::test]
async fn failed_replacement_keeps_the_old_connection() {
    let rig = FakeStdioServer::new(Script::default());
    let fixture = EvenkeelFixture::start(&[]).await;
    let controls = ControlServers::attach(&fixture).await;
    let fast_retry = "retry: { initial: 100ms, max: 200ms }";
    fixture.attach("s", &format!("{}\n{fast_retry}", rig.spec(""))).await;
    let old = rig.live_processes().pop().unwrap();
    rig.edit_script(|script| script.stdio.exit_at_start = Some(9));
    fixture
        .declared
        .write_server("s", &format!("{}\n{fast_retry}", rig.spec(", env: [{ name: A, value: b }]")));
    let attached = fixture.evenkeel.wait_for("s", "Attached", "True", "ServingPreviousGeneration").await;
    assert!(attached.message.contains("generation 1") && attached.message.contains('2'), "{attached:?}");
    let ready = eventually("the failure and a possible fix are reported", async || {
        let ready = fixture.evenkeel.condition("s", "Ready").await?;
        (ready.status == "False" && ready.message.contains("spec.update to Recreate")).then_some(ready)
    })
    .await;
    assert!(ready.message.contains('9'), "{ready:?}");
    let status = fixture.server("s").await["status"].clone();
    assert_eq!((&status["attachedGeneration"], &status["observedGeneration"]), (&1.into(), &2.into()));
    for era in Era::ALL {
        fixture.agent(era).await.call_text("s_echo", "{}").await;
    }
    assert!(old.is_alive());

    rig.edit_script(|script| script.stdio.exit_at_start = None);
    fixture.wait_for_generation("s", 2).await;
    within("the old process exits", old.wait_for_exit()).await;
    controls.assert_untouched(&fixture).await;
}

#[tokio::test]
async fn replaced_connection_closes_after_its_calls_finish() {
    let (one, two) = (
        FakeHttpServer::start(Script::new("one", ServerEra::Legacy).tools(&["sleep"])).await,
        FakeHttpServer::start(Script::new("two", ServerEra::Legacy).tools(&["sleep"])).await,
    );
    let fixture = EvenkeelFixture::start(&[("s", &one.spec())]).await;
    fixture.evenkeel.wait_until_attached("s").await;
    let call = start_call(fixture.agent(Era::Legacy).await, "s_sleep", r#"{"ms":4000}"#, &one).await;
    fixture.declared.write_server("s", &two.spec());
    fixture.wait_for_generation("s", 2).await;
    fixture.agent(Era::Modern).await.call_text("s_sleep", r#"{"ms":1}"#).await;
    assert_eq!(two.counters().calls(), 1);
    assert!(call.await.unwrap().unwrap().contains("slept"));
    eventually("the old session is closed", async || (one.counters().sessions == 0).then_some(())).await;
}

#[tokio::test]
async fn recreate_stops_the_old_process_before_starting_the_new_one() {
    let mut script = Script::default();
    script.stdio.ignore_eof = true;
    let rig = FakeStdioServer::new(script);
    let fixture = EvenkeelFixture::start(&[]).await;
    fixture.attach("s", &format!("{}\nupdate: Recreate", rig.spec(""))).await;
    let old = rig.live_processes().pop().unwrap();
    // The old process ignores the end of its input; if the new one started too early, both would be alive.
    rig.edit_script(|script| script.stdio.ignore_eof = false);
    fixture
        .declared
        .write_server("s", &format!("{}\nupdate: Recreate", rig.spec(", env: [{ name: A, value: b }]")));
    eventually("a new process has started", async || (rig.processes().len() == 2).then_some(())).await;
    assert!(!old.is_alive(), "the old process has exited by then");
    fixture.wait_for_generation("s", 2).await;

    // A failed Recreate leaves no callable tools.
    rig.edit_script(|script| script.stdio.exit_at_start = Some(9));
    fixture.declared.write_server(
        "s",
        &format!("{}\nupdate: Recreate\n{NO_RETRY}", rig.spec(", env: [{ name: A, value: c }]")),
    );
    fixture.evenkeel.wait_for("s", "Ready", "False", "Exited").await;
    let status = fixture.server("s").await["status"].clone();
    assert_eq!(status["observedGeneration"], 3);
    assert!(status["attachedGeneration"].is_null(), "{status}");
    let agent = fixture.agent(Era::Legacy).await;
    assert_eq!(agent.tool_names().await, Vec::<String>::new());
    error_text(&agent.call("s_echo", "{}").await.unwrap());
}

#[tokio::test]
async fn recreate_waits_for_processes_of_cancelled_or_failed_attempts() {
    for (then, what) in [(Action::Hang, "cancelled"), (Action::error(-32600, "no"), "failed")] {
        let script = || Script::new("alone", ServerEra::Legacy);
        let mut slow = script().on("initialize", Rule::always(then));
        slow.stdio.ignore_eof = true;
        let rig = FakeStdioServer::new(slow);
        let spec = |value| {
            let retry = "update: Recreate\nretry: { initial: 100ms, max: 100ms }\ntimeouts: { connect: 10m }";
            format!("{}\n{retry}", rig.spec(&format!(", env: [{{ name: A, value: {value} }}]")))
        };
        let fixture = EvenkeelFixture::start(&[("s", &spec("a"))]).await;
        let first = eventually("the first attempt is in progress", async || rig.live_processes().pop()).await;
        rig.edit_script(|good| *good = Script { control: good.control.take(), ..script() });
        fixture.declared.write_server("s", &spec("b"));
        eventually("another process has started", async || (rig.processes().len() >= 2).then_some(())).await;
        assert!(!first.is_alive(), "{what}: two processes ran at once");
        fixture.wait_for_generation("s", 2).await;
        assert_eq!(rig.live_processes().len(), 1, "{what}");
    }
}

#[tokio::test]
async fn latest_declaration_cancels_an_attempt_in_flight() {
    let hung = FakeStdioServer::new(Script::default().on("server/discover", Rule::always(Action::Hang)));
    let good = FakeStdioServer::new(Script::default());
    let fixture =
        EvenkeelFixture::start(&[("s", &format!("{}\ntimeouts: {{ connect: 10m }}", hung.spec("")))]).await;
    let process = eventually("the first attempt is in progress", async || hung.live_processes().pop()).await;
    fixture.declared.write_server("s", &good.spec(""));
    fixture.wait_for_generation("s", 2).await;
    within("the process of the first attempt exits", process.wait_for_exit()).await;
    assert_eq!(fixture.agent(Era::Legacy).await.tool_names().await, ["s_echo", "s_report"]);
}

#[tokio::test]
async fn reverted_declaration_keeps_the_healthy_connection() {
    let rig = FakeStdioServer::new(Script::default());
    let hung = FakeStdioServer::new(Script::default().on("server/discover", Rule::always(Action::Hang)));
    let fixture = EvenkeelFixture::start(&[]).await;
    // Health checks would be counted as handshakes.
    let spec = format!("{}\n{NO_RETRY}\nhealth: {{ interval: 0s }}", rig.spec(""));
    fixture.attach("s", &spec).await;
    let process = rig.live_processes().pop().unwrap();

    rig.edit_script(|script| script.stdio.exit_at_start = Some(9));
    fixture
        .declared
        .write_server("s", &format!("{}\n{NO_RETRY}", rig.spec(", env: [{ name: A, value: b }]")));
    fixture.evenkeel.wait_for("s", "Ready", "False", "Exited").await;
    rig.edit_script(|script| script.stdio.exit_at_start = None);
    fixture.declared.write_server("s", &spec);
    fixture.wait_for_generation("s", 3).await;
    assert!(fixture.server("s").await["status"]["nextRetryTime"].is_null());

    fixture.declared.write_server("s", &format!("{}\ntimeouts: {{ connect: 10m }}", hung.spec("")));
    let attempt = eventually("the attempt is in progress", async || hung.live_processes().pop()).await;
    fixture.declared.write_server("s", &spec);
    fixture.wait_for_generation("s", 5).await;
    within("the process of the attempt exits", attempt.wait_for_exit()).await;

    assert_eq!(rig.processes().len(), 1, "the failed process exited before it was recorded");
    assert_eq!(process.counters().await.discovers(), 1);
    fixture.agent(Era::Legacy).await.call_text("s_echo", "{}").await;
}

/// Replaces a server's connection while a call is in flight that does not end by itself.
async fn replace_during_call(one: &FakeHttpServer, two: &FakeHttpServer) -> (EvenkeelFixture, CallHandle) {
    let drain = "timeouts: { drain: 500ms }";
    let fixture = EvenkeelFixture::start(&[
        ("s", &format!("{}\n{drain}", one.spec())),
        ("other", "suspend: true\nhttp: { url: \"http://localhost/\" }"),
    ])
    .await;
    fixture.evenkeel.wait_until_attached("s").await;
    let call = start_call(fixture.agent(Era::Legacy).await, "s_sleep", r#"{"ms":600000}"#, one).await;
    fixture.declared.write_server("s", &format!("{}\n{drain}", two.spec()));
    fixture.wait_for_generation("s", 2).await;
    (fixture, call)
}

#[tokio::test]
async fn call_on_a_replaced_connection_ends_when_its_server_is_detached() {
    let sleeper = async || FakeHttpServer::start(Script::new("s", ServerEra::Legacy).tools(&["sleep"])).await;
    let (one, two, three) = (sleeper().await, sleeper().await, sleeper().await);

    let (fixture, call) = replace_during_call(&one, &two).await;
    fixture.declared.remove("s.yaml");
    let text = error_text(&within("the drain of a removed server", call).await.unwrap().unwrap());
    assert!(text.contains("removed") && text.contains("did not end within 0.5 s"), "{text}");
    eventually("both sessions are closed", async || {
        (one.counters().sessions + two.counters().sessions == 0).then_some(())
    })
    .await;

    let (fixture, call) = replace_during_call(&one, &two).await;
    fixture
        .declared
        .write_server("s", &format!("{}\nupdate: Recreate\ntimeouts: {{ drain: 500ms }}", three.spec()));
    let text = error_text(&within("the drain of a recreated server", call).await.unwrap().unwrap());
    assert!(text.contains("being replaced"), "{text}");
    fixture.wait_for_generation("s", 3).await;
    assert_eq!(
        (one.counters().sessions, two.counters().sessions),
        (0, 0),
        "the old sessions were closed before the new one opened"
    );

    let (mut fixture, call) = replace_during_call(&one, &two).await;
    assert!(fixture.evenkeel.terminate().await.success());
    let text = error_text(&within("the shutdown of evenkeel", call).await.unwrap().unwrap());
    assert!(text.contains("shutting down"), "{text}");
    assert!(!fixture.evenkeel.stderr().contains("did not end within"), "{}", fixture.evenkeel.stderr());
}

#[tokio::test]
async fn call_waits_for_replacement_when_the_old_connection_is_lost() {
    let rig = FakeStdioServer::new(Script::default());
    let fixture = EvenkeelFixture::start(&[("s", &rig.spec(""))]).await;
    fixture.evenkeel.wait_until_attached("s").await;
    let old = rig.live_processes().pop().unwrap();
    // The replacement starts slowly, so that the loss is reported long enough to be observed.
    rig.edit_script(|script| script.stdio.start_delay_ms = 10_000);
    fixture.declared.write_server("s", &rig.spec(", env: [{ name: A, value: b }]"));
    eventually("the replacement is in progress", async || (rig.processes().len() == 2).then_some(())).await;
    let agent = fixture.agent(Era::Legacy).await;
    old.kill();
    fixture.evenkeel.wait_for("s", "Attached", "False", "Reconnecting").await;
    agent.call_text("s_echo", "{}").await;
    fixture.wait_for_generation("s", 2).await;
    assert_eq!(rig.processes().len(), 2);
}

#[tokio::test]
async fn filter_applies_even_if_the_new_connection_fails() {
    let rig = FakeHttpServer::start(Script::new("s", ServerEra::Legacy).tools(&["echo", "odd"])).await;
    let failing = Script::new("f", ServerEra::Legacy).on("POST", Rule::always(Action::status(503)));
    let failing = FakeHttpServer::start(failing).await;
    let fixture = EvenkeelFixture::start(&[("s", &rig.spec())]).await;
    fixture.evenkeel.wait_until_attached("s").await;
    let [mut watcher, _] = fixture.watchers(&["s_echo", "s_odd"]).await;
    // First with the edit whose connection fails, then with another edit.
    for (deny, remaining) in [("[odd]", &["s_echo"][..]), ("[odd, echo]", &[])] {
        let filter = format!("expose: {{ tools: {{ deny: {deny} }} }}");
        fixture.declared.write_server("s", &format!("{}\n{NO_RETRY}\n{filter}", failing.spec()));
        watcher.wait_for_tools(remaining).await;
    }
    fixture.evenkeel.wait_for("s", "Attached", "True", "ServingPreviousGeneration").await;
    let error = watcher
        .agent
        .call("s_odd", "{}")
        .await
        .map_or_else(|rejection| rejection, |result| error_text(&result));
    assert!(!error.contains("odd said"), "{error}");
    assert_eq!(rig.counters().calls(), 0);
}

#[tokio::test]
async fn call_within_grace_period_waits_for_an_edited_server() {
    let rig = FakeStdioServer::new(Script::default().tools(&["echo"]));
    let fixture = EvenkeelFixture::start(&[("s", &format!("{}\n{NO_RETRY}", rig.spec("")))]).await;
    fixture.evenkeel.wait_until_attached("s").await;
    let agent = fixture.agent(Era::Legacy).await;
    rig.edit_script(|script| script.stdio.exit_at_start = Some(3));
    rig.live_processes().pop().unwrap().kill();
    fixture.evenkeel.wait_for("s", "Ready", "False", "Exited").await;
    rig.edit_script(|script| {
        script.stdio.exit_at_start = None;
        *script = script.clone().on("tools/list", Rule::delay(3_000));
    });
    fixture
        .declared
        .write_server("s", &format!("{}\n{NO_RETRY}", rig.spec(", env: [{ name: X, value: z }]")));
    eventually("the attempt is in progress", async || {
        (fixture.server("s").await["status"]["observedGeneration"] == 2).then_some(())
    })
    .await;
    agent.call_text("s_echo", "{}").await;
}
