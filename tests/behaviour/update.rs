//! Replacing, losing, suspending and letting go of a connection: what serves meanwhile, and what callers are told.

use crate::peers::Peers;
use crate::rig::{Command, Era as RigEra, Http, Rule, Script, Stdio, Then};
use crate::stage::{Stage, told};
use crate::support::{Agent, Era, eventually, within};

/// No second attempt on its own account.
const NEVER: &str = "retry: { initial: 1h, max: 1h }";

/// Declares a server with an annotation that asks for a look.
fn request_a_look(stage: &Stage, name: &str, at: &str, spec: &str) {
    let spec = spec.replace('\n', "\n  ");
    stage.declared.write(
        &format!("{name}.yaml"),
        &format!(
            "apiVersion: evenkeel.dev/v1alpha1\nkind: McpServer\nmetadata:\n  name: {name}\n  annotations: {{ evenkeel.dev/reconcile-requested-at: \"{at}\" }}\nspec:\n  {spec}\n"
        ),
    );
}

/// A call that takes as long as it is let, begun and at work.
async fn begun(
    agent: Agent,
    tool: &str,
    arguments: &str,
    rig: &Http,
) -> tokio::task::JoinHandle<Result<String, String>> {
    let before = rig.counters().in_flight;
    let (tool, arguments) = (tool.to_owned(), arguments.to_owned());
    let call = tokio::spawn(async move { agent.call(&tool, &arguments).await });
    eventually("the call is at work", async || (rig.counters().in_flight > before).then_some(())).await;
    call
}

#[tokio::test]
async fn a_replacement_that_fails_leaves_the_old_connection_serving() {
    let rig = Stdio::new(Script::default());
    let stage = Stage::start(&[]).await;
    let peers = Peers::attach(&stage).await;
    let soon = "retry: { initial: 100ms, max: 200ms }";
    stage.attach("s", &format!("{}\n{soon}", rig.spec(""))).await;
    let old = rig.alive().pop().unwrap();
    rig.edit(|script| script.stdio.exit_at_start = Some(9));
    stage.declared.server("s", &format!("{}\n{soon}", rig.spec(", env: [{ name: A, value: b }]")));
    let attached = stage.evenkeel.wait_for("s", "Attached", "True", "ServingPreviousGeneration").await;
    assert!(attached.message.contains("generation 1") && attached.message.contains('2'), "{attached:?}");
    let ready = eventually("the failure is told, and what may help", async || {
        let ready = stage.evenkeel.condition("s", "Ready").await?;
        (ready.status == "False" && ready.message.contains("spec.update to Recreate")).then_some(ready)
    })
    .await;
    assert!(ready.message.contains('9'), "{ready:?}");
    let status = stage.server("s").await["status"].clone();
    assert_eq!((&status["attachedGeneration"], &status["observedGeneration"]), (&1.into(), &2.into()));
    for era in Era::ALL {
        stage.agent(era).await.text("s_echo", "{}").await;
    }
    assert!(old.is_alive());

    rig.edit(|script| script.stdio.exit_at_start = None);
    stage.generation_attached("s", 2).await;
    within("the old one ends", old.gone()).await;
    peers.are_untouched(&stage).await;
}

#[tokio::test]
async fn a_replaced_connection_ends_when_its_calls_have_ended() {
    let (one, two) = (
        Http::start(Script::new("one", RigEra::Legacy).tools(&["sleep"])).await,
        Http::start(Script::new("two", RigEra::Legacy).tools(&["sleep"])).await,
    );
    let stage = Stage::start(&[("s", &one.spec())]).await;
    stage.evenkeel.attached("s").await;
    let call = begun(stage.agent(Era::Legacy).await, "s_sleep", r#"{"ms":1500}"#, &one).await;
    stage.declared.server("s", &two.spec());
    stage.generation_attached("s", 2).await;
    stage.agent(Era::Modern).await.text("s_sleep", r#"{"ms":1}"#).await;
    assert_eq!(two.counters().calls(), 1);
    assert!(call.await.unwrap().unwrap().contains("slept"));
    eventually("the old session is ended", async || (one.counters().sessions == 0).then_some(())).await;
}

#[tokio::test]
async fn recreate_ends_the_old_process_before_the_new_one_starts() {
    let mut script = Script::default();
    script.stdio.ignore_eof = true;
    let rig = Stdio::new(script);
    let stage = Stage::start(&[]).await;
    stage.attach("s", &format!("{}\nupdate: Recreate", rig.spec(""))).await;
    let old = rig.alive().pop().unwrap();
    // The new one would say hello while the old one is still there, if it were started too early.
    rig.edit(|script| script.stdio.ignore_eof = false);
    stage.declared.server("s", &format!("{}\nupdate: Recreate", rig.spec(", env: [{ name: A, value: b }]")));
    eventually("there is a new process", async || (rig.processes().len() == 2).then_some(())).await;
    assert!(!old.is_alive(), "the old one was gone by then");
    stage.generation_attached("s", 2).await;

    // One that fails leaves nothing callable.
    rig.edit(|script| script.stdio.exit_at_start = Some(9));
    stage
        .declared
        .server("s", &format!("{}\nupdate: Recreate\n{NEVER}", rig.spec(", env: [{ name: A, value: c }]")));
    stage.evenkeel.wait_for("s", "Ready", "False", "Exited").await;
    let status = stage.server("s").await["status"].clone();
    assert_eq!(status["observedGeneration"], 3);
    assert!(status["attachedGeneration"].is_null(), "{status}");
    let agent = stage.agent(Era::Legacy).await;
    assert_eq!(agent.tools().await, Vec::<String>::new());
    told(&agent.call("s_echo", "{}").await.unwrap());
}

#[tokio::test]
async fn recreate_waits_for_what_a_cancelled_or_failed_attempt_started() {
    for (then, what) in [(Then::Hang, "cancelled"), (Then::error(-32600, "no"), "failed")] {
        let script = || Script::new("alone", RigEra::Legacy);
        let mut slow = script().on("initialize", Rule::always(then));
        slow.stdio.ignore_eof = true;
        let rig = Stdio::new(slow);
        let spec = |value| {
            let retry = "update: Recreate\nretry: { initial: 100ms, max: 100ms }\ntimeouts: { connect: 10m }";
            format!("{}\n{retry}", rig.spec(&format!(", env: [{{ name: A, value: {value} }}]")))
        };
        let stage = Stage::start(&[("s", &spec("a"))]).await;
        let first = eventually("the first attempt is under way", async || rig.alive().pop()).await;
        rig.edit(|good| *good = Script { control: good.control.take(), ..script() });
        stage.declared.server("s", &spec("b"));
        eventually("there is another process", async || (rig.processes().len() >= 2).then_some(())).await;
        assert!(!first.is_alive(), "{what}: two of it ran side by side");
        stage.generation_attached("s", 2).await;
        assert_eq!(rig.alive().len(), 1, "{what}");
    }
}

#[tokio::test]
async fn the_latest_declaration_wins_over_an_attempt_in_flight() {
    let hung = Stdio::new(Script::default().on("server/discover", Rule::always(Then::Hang)));
    let good = Stdio::new(Script::default());
    let stage = Stage::start(&[("s", &format!("{}\ntimeouts: {{ connect: 10m }}", hung.spec("")))]).await;
    let process = eventually("the first attempt is under way", async || hung.alive().pop()).await;
    stage.declared.server("s", &good.spec(""));
    stage.generation_attached("s", 2).await;
    within("what the first attempt opened is gone", process.gone()).await;
    assert_eq!(stage.agent(Era::Legacy).await.tools().await, ["s_echo", "s_report"]);
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
    while process.counters().await.in_flight < 2 + 1 {
        // Two calls and the subscription.
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    // The next one takes its time to start.
    rig.edit(|script| script.stdio.start_delay_ms = 1500);
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
    let stage = Stage::start(&[("s", &rig.spec())]).await;
    stage.evenkeel.attached("s").await;
    let [mut legacy, _] = stage.watchers(&["s_echo"]).await;
    rig.tell(Command::ForgetSessions);
    eventually("calls work again", async || {
        legacy.agent.call("s_echo", "{}").await.ok().filter(|result| !result.contains("isError")).map(drop)
    })
    .await;
    assert_eq!(rig.counters().sessions_opened, 2, "one new session for all");
    assert_eq!(legacy.heard(), Vec::<String>::new());
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
    let finishes = begun(stage.agent(Era::Legacy).await, "patient_sleep", r#"{"ms":2000}"#, &patient).await;
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

#[tokio::test]
async fn on_demand_is_offered_without_a_process_and_connected_by_a_call() {
    let rig = Stdio::new(Script::default());
    let spec = format!("{}\nactivation: OnDemand\ntimeouts: {{ idle: 10s }}", rig.spec(""));
    let mut stage = Stage::start(&[("s", &spec)]).await;
    stage.evenkeel.attached("s").await;
    let agent = stage.agent(Era::Legacy).await;
    agent.text("s_echo", "{}").await;
    // A catalog is written down a moment after it was learned, and at a regular end in any case.
    assert!(stage.evenkeel.terminate().await.success());
    eventually("its process is gone", async || rig.alive().is_empty().then_some(())).await;
    stage.evenkeel.start_again().await;
    stage.evenkeel.wait_for("s", "Ready", "True", "Idle").await;
    assert_eq!(agent.tools().await, ["s_echo", "s_report"]);
    assert_eq!(stage.server("s").await["status"]["tools"], 2);
    assert_eq!(rig.processes().len(), 1, "none was started for that");

    agent.text("s_echo", "{}").await;
    stage.evenkeel.attached("s").await;
    assert_eq!(rig.alive().len(), 1);
    stage.evenkeel.wait_for("s", "Ready", "True", "Idle").await;
    eventually("an idle process is let go", async || rig.alive().is_empty().then_some(())).await;
    stage.agent(Era::Modern).await.text("s_echo", "{}").await;
    assert_eq!(rig.processes().len(), 3);
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
    failing.edit(|script| script.on.clear());

    request_a_look(&stage, "f", "2026-11-21T12:00:00Z", &failing_spec);
    stage.evenkeel.attached("f").await;
    let [mut watcher, _] = stage.watchers(&["f_echo", "f_report", "h_echo"]).await;
    request_a_look(&stage, "h", "2026-11-21T12:00:00Z", &healthy.spec(""));
    watcher.sees(&["f_echo", "f_report", "h_echo", "h_odd"]).await;
    // The status follows the list.
    let server = eventually("the request is said to be done", async || {
        let server = stage.server("h").await;
        (server["status"]["lastHandledReconcileAt"] == "2026-11-21T12:00:00Z").then_some(server)
    })
    .await;
    assert_eq!(server["metadata"]["generation"], 1);
    assert_eq!(healthy.processes().len(), 1, "not reconnected");
    assert_eq!(process.counters().await.lists(), lists + 1);
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
        let name = "the list could not be read again";
        eventually("the failure is logged", async || stage.evenkeel.said().contains(name).then_some(()))
            .await;
        assert_eq!(watcher.agent.tools().await, ["s_echo", "s_odd"]);
        stage.evenkeel.attached("s").await;
        rig.edit(|script| script.on.clear());
        rig.tell(Command::Notify("notifications/tools/list_changed".into()));
        watcher.sees(&["s_echo"]).await;
    }
}
