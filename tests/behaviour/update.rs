//! Losing, suspending and letting go of a connection: what serves meanwhile, and what callers are told.

use serde_json::Value;

use crate::peers::Peers;
use crate::rig::{Command, Era as RigEra, Http, Rule, Script, Stdio, Then};
use crate::stage::{NEVER, Stage, begun, told};
use crate::support::{Era, eventually, within};

/// Declares a server with an annotation that asks for a look.
fn request_a_look(stage: &Stage, name: &str, at: &str, spec: &str) {
    request(stage, name, &format!("evenkeel.dev/reconcile-requested-at: \"{at}\""), spec);
}

/// Declares a server with annotations.
fn request(stage: &Stage, name: &str, annotations: &str, spec: &str) {
    let spec = spec.replace('\n', "\n  ");
    stage.declared.write(
        &format!("{name}.yaml"),
        &format!(
            "apiVersion: evenkeel.dev/v1alpha1\nkind: McpServer\nmetadata:\n  name: {name}\n  annotations: {{ {annotations} }}\nspec:\n  {spec}\n"
        ),
    );
}

#[tokio::test]
async fn suspend_takes_one_server_away_and_brings_it_back() {
    let rig = Stdio::new(Script::default().tools(&["echo"]));
    let stage = Stage::start(&[]).await;
    let peers = Peers::attach(&stage).await;
    stage.declared.server("s", &format!("{}\nsuspend: true", rig.spec("")));
    stage.evenkeel.wait_for("s", "Ready", "False", "Suspended").await;
    assert_eq!(rig.processes().len(), 0);
    stage.attach("s", &rig.spec("")).await;
    let uid = stage.server("s").await["metadata"]["uid"].clone();
    let agent = stage.agent(Era::Legacy).await;
    agent.text("s_echo", "{}").await;

    stage.declared.server("s", &format!("{}\nsuspend: true", rig.spec("")));
    stage.evenkeel.wait_for("s", "Ready", "False", "Suspended").await;
    stage.evenkeel.wait_for("s", "Attached", "False", "Detached").await;
    assert!(stage.evenkeel.condition("s", "Stalled").await.is_none());
    let text = told(&agent.call("s_echo", "{}").await.unwrap());
    assert!(text.contains("default/s") && text.contains("suspended") && text.contains("Do not"), "{text}");
    eventually("its process is gone", async || rig.alive().is_empty().then_some(())).await;

    stage.attach("s", &rig.spec("")).await;
    agent.text("s_echo", "{}").await;
    assert_eq!(stage.server("s").await["metadata"]["uid"], uid);
    assert_eq!(rig.processes().len(), 2);
    peers.are_untouched(&stage).await;
}

#[tokio::test]
async fn a_lost_server_fails_its_calls_at_once_and_new_ones_wait_for_it() {
    let rig = Stdio::new(Script::new("s", RigEra::Modern).tools(&["echo", "sleep"]));
    let stage = Stage::start(&[]).await;
    let peers = Peers::attach(&stage).await;
    stage.attach("s", &format!("{}\nretry: {{ initial: 100ms, max: 100ms }}", rig.spec(""))).await;
    let process = rig.alive().pop().unwrap();
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
    rig.edit(|script| script.stdio.start_delay_ms = 10_000);
    process.tell(Command::Stderr("out of memory, sorry".into())).await;
    process.tell(Command::Exit(41)).await;
    for call in calls {
        let text = told(&within("a call in flight fails", call).await.unwrap().unwrap());
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
    assert!(agent.tools().await.contains(&"s_echo".to_owned()));
    eventually("the attempt is under way", async || (rig.processes().len() == 2).then_some(())).await;
    agent.text("s_echo", "{}").await;
    stage.evenkeel.attached("s").await;
    assert_eq!(stage.server("s").await["status"]["restarts"], 1);
    let calls = rig.alive()[0].counters().await.calls();
    assert_eq!(calls, 1, "what had been dispatched is not sent again");
    peers.are_untouched(&stage).await;
}

#[tokio::test]
async fn a_lost_server_is_withdrawn_after_its_grace() {
    let mut rig = Http::start(Script::new("s", RigEra::Legacy).tools(&["echo"])).await;
    let stage = Stage::start(&[(
        "s",
        &format!("{}\ngracePeriod: 1s\nretry: {{ initial: 200ms, max: 200ms }}", rig.spec()),
    )])
    .await;
    stage.evenkeel.attached("s").await;
    let [mut legacy, mut modern] = stage.watchers(&["s_echo"]).await;
    rig.stop().await;
    legacy.sees(&[]).await;
    modern.sees(&[]).await;
    let text = told(&legacy.agent.call("s_echo", "{}").await.unwrap());
    assert!(text.contains("default/s") && text.contains("later"), "{text}");
    rig.resume().await;
    legacy.sees(&["s_echo"]).await;
    modern.sees(&["s_echo"]).await;
    modern.agent.text("s_echo", "{}").await;
}

#[tokio::test]
async fn a_forgotten_session_is_opened_again_and_nobody_is_told_of_a_change() {
    let rig = Http::start(Script::new("s", RigEra::Legacy).tools(&["echo"])).await;
    let stage = Stage::start(&[("s", &format!("{}\n{NEVER}", rig.spec()))]).await;
    stage.evenkeel.attached("s").await;
    let [mut legacy, _] = stage.watchers(&["s_echo"]).await;
    rig.tell(Command::ForgetSessions { quietly: false });
    eventually("calls work again", async || {
        legacy.agent.call("s_echo", "{}").await.ok().filter(|result| !result.contains("isError")).map(drop)
    })
    .await;
    assert_eq!(rig.counters().sessions_opened, 2, "one new session for all");
    assert_eq!(legacy.heard(), Vec::<String>::new());

    // Once more, soon after, it counts as a failure like any other.
    rig.tell(Command::ForgetSessions { quietly: false });
    legacy.agent.call("s_echo", "{}").await.unwrap();
    stage.evenkeel.wait_for("s", "Ready", "False", "ConnectFailed").await;
    assert!(stage.server("s").await["status"]["nextRetryTime"].is_string());
}

#[tokio::test]
async fn a_call_in_flight_finishes_within_the_drain_of_its_server_and_no_later() {
    let patient = Http::start(Script::new("patient", RigEra::Legacy).tools(&["sleep"])).await;
    let hasty = Http::start(Script::new("hasty", RigEra::Modern).tools(&["sleep"])).await;
    let other = Http::start(Script::default()).await;
    let stage = Stage::start(&[
        ("patient", &patient.spec()),
        ("hasty", &format!("{}\ntimeouts: {{ drain: 500ms }}", hasty.spec())),
        ("other", &other.spec()),
    ])
    .await;
    for name in ["patient", "hasty", "other"] {
        stage.evenkeel.attached(name).await;
    }
    let finishes = begun(stage.agent(Era::Legacy).await, "patient_sleep", r#"{"ms":4000}"#, &patient).await;
    let cut = begun(stage.agent(Era::Legacy).await, "hasty_sleep", r#"{"ms":600000}"#, &hasty).await;
    stage.declared.remove("patient.yaml");
    stage.declared.remove("hasty.yaml");
    assert!(within("a call that ends in time", finishes).await.unwrap().unwrap().contains("slept"));
    let text = told(&within("a call that does not", cut).await.unwrap().unwrap());
    assert!(text.contains("default/hasty") && text.contains("removed"), "{text}");
    assert!(text.contains("did not end within 0.5 s"), "{text}");
    eventually("both sessions are ended", async || {
        (patient.counters().sessions == 0 && hasty.counters().in_flight == 0).then_some(())
    })
    .await;
    assert_eq!(hasty.counters().cancelled, 1, "the server is told");
}

/// Waits until a request for a look is said to be done.
async fn done(stage: &Stage, name: &str) -> Value {
    eventually("the request is said to be done", async || {
        let server = stage.server(name).await;
        (server["status"]["lastHandledReconcileAt"] == "2026-11-21T12:00:00Z").then_some(server)
    })
    .await
}

#[tokio::test]
async fn a_requested_look_retries_what_failed_and_lists_what_is_healthy() {
    let failing =
        Http::start(Script::new("f", RigEra::Legacy).on("POST", Rule::always(Then::status(503)))).await;
    let mut quiet = Script::new("q", RigEra::Legacy).tools(&["echo"]);
    quiet.quiet = true;
    let healthy = Stdio::new(quiet);
    let failing_spec = format!("{}\n{NEVER}", failing.spec());
    let stage = Stage::start(&[("f", &failing_spec), ("h", &healthy.spec(""))]).await;
    stage.evenkeel.wait_for("f", "Ready", "False", "ConnectFailed").await;
    stage.evenkeel.attached("h").await;
    let process = healthy.alive().pop().unwrap();
    let lists = process.counters().await.lists();
    let mut quiet = Script::new("q", RigEra::Legacy).tools(&["echo", "odd"]);
    quiet.quiet = true;
    process.play(quiet).await;
    failing.edit(|script| *script = Script::new("f", RigEra::Legacy).on("tools/list", Rule::delay(700)));

    request_a_look(&stage, "f", "2026-11-21T12:00:00Z", &failing_spec);
    let server = done(&stage, "f").await;
    let ready = &server["status"]["conditions"][0];
    assert_eq!(
        (&ready["type"], &ready["reason"]),
        (&"Ready".into(), &"Attached".into()),
        "done is done: {server}"
    );
    let [mut watcher, _] = stage.watchers(&["f_echo", "f_report", "h_echo"]).await;
    request_a_look(&stage, "h", "2026-11-21T12:00:00Z", &healthy.spec(""));
    watcher.sees(&["f_echo", "f_report", "h_echo", "h_odd"]).await;
    // The status follows the list.
    let server = done(&stage, "h").await;
    assert_eq!(server["metadata"]["generation"], 1);
    assert_eq!(healthy.processes().len(), 1, "not reconnected");
    assert_eq!(process.counters().await.lists(), lists + 1);
}

#[tokio::test]
async fn a_server_that_wants_to_be_left_alone_says_so_and_can_be_overruled() {
    let busy = Rule::times(1, Then::status_with(429, "Retry-After", "3600"));
    let rig = Http::start(Script::default().tools(&["echo"]).on("tools/call", busy)).await;
    let stage = Stage::start(&[("s", &rig.spec())]).await;
    stage.evenkeel.attached("s").await;
    let agent = stage.agent(Era::Modern).await;
    told(&agent.call("s_echo", "{}").await.unwrap());
    let asked = rig.counters().lists();
    let says_so = async || {
        let trouble = stage.evenkeel.wait_for("s", "Reconciling", "True", "ProgressingWithRetry").await;
        assert!(trouble.message.contains("no request before"), "{trouble:?}");
    };
    says_so().await;
    request_a_look(&stage, "s", "2026-11-21T12:00:00Z", &rig.spec());
    done(&stage, "s").await;
    says_so().await;
    assert_eq!(rig.counters().lists(), asked, "it is left alone");

    request(&stage, "s", "evenkeel.dev/reconnect-requested-at: now", &rig.spec());
    eventually("nothing is wrong any more", async || {
        stage.evenkeel.condition("s", "Reconciling").await.is_none().then_some(())
    })
    .await;
    stage.evenkeel.attached("s").await;
    agent.text("s_echo", "{}").await;
}

#[tokio::test]
async fn a_burst_of_notices_lists_again_once_and_a_failed_list_keeps_the_last() {
    for era in [RigEra::Legacy, RigEra::Modern] {
        let slow = Rule { delay_ms: 700, ..Rule::default() };
        let rig = Http::start(Script::new("s", era).tools(&["echo"])).await;
        let stage = Stage::start(&[("s", &rig.spec())]).await;
        stage.evenkeel.attached("s").await;
        eventually("the notice stream is open", async || (rig.counters().streams == 1).then_some(())).await;
        let [mut watcher, _] = stage.watchers(&["s_echo"]).await;
        let (before, base) = (rig.counters().lists(), rig.counters().in_flight);
        rig.edit(|script| {
            *script = script.clone().tools(&["echo", "odd"]).on("tools/list", slow);
        });
        for _ in 0..50 {
            rig.tell(Command::Notify("notifications/tools/list_changed".into()));
        }
        watcher.sees(&["s_echo", "s_odd"]).await;
        eventually("nothing more is listed", async || {
            let now = rig.counters();
            (now.lists() > before && now.in_flight == base).then_some(())
        })
        .await;
        let lists = rig.counters().lists() - before;
        assert!(lists <= 3, "{era:?}: {lists} lists for one burst");

        rig.edit(|script| {
            script.on.clear();
            *script =
                script.clone().tools(&["echo"]).on("tools/list", Rule::always(Then::error(-32603, "boom")));
        });
        let failure = stage.evenkeel.wait_for("s", "Degraded", "True", "ListUnavailable").await;
        assert!(failure.message.contains("tools/list") && failure.message.contains("boom"), "{failure:?}");
        assert_eq!(watcher.agent.tools().await, ["s_echo", "s_odd"]);
        stage.evenkeel.attached("s").await;
        // It is asked again without another notice.
        rig.edit(|script| script.on.clear());
        watcher.sees(&["s_echo"]).await;
        eventually("all is said to be well", async || {
            stage.evenkeel.condition("s", "Degraded").await.is_none().then_some(())
        })
        .await;
    }
}
