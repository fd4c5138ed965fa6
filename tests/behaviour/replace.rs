//! Replacing a connection: what serves meanwhile, and what becomes of the one before.

use crate::peers::Peers;
use crate::rig::{Era as RigEra, Http, Rule, Script, Stdio, Then};
use crate::stage::{Call, NEVER, Stage, begun, told};
use crate::support::{Era, eventually, within};

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
    let call = begun(stage.agent(Era::Legacy).await, "s_sleep", r#"{"ms":4000}"#, &one).await;
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
async fn a_declaration_that_is_taken_back_leaves_the_healthy_connection_alone() {
    let rig = Stdio::new(Script::default());
    let hung = Stdio::new(Script::default().on("server/discover", Rule::always(Then::Hang)));
    let stage = Stage::start(&[]).await;
    // Checks of health would be counted as openings.
    let spec = format!("{}\n{NEVER}\nhealth: {{ interval: 0s }}", rig.spec(""));
    stage.attach("s", &spec).await;
    let process = rig.alive().pop().unwrap();

    rig.edit(|script| script.stdio.exit_at_start = Some(9));
    stage.declared.server("s", &format!("{}\n{NEVER}", rig.spec(", env: [{ name: A, value: b }]")));
    stage.evenkeel.wait_for("s", "Ready", "False", "Exited").await;
    rig.edit(|script| script.stdio.exit_at_start = None);
    stage.declared.server("s", &spec);
    stage.generation_attached("s", 3).await;
    assert!(stage.server("s").await["status"]["nextRetryTime"].is_null());

    stage.declared.server("s", &format!("{}\ntimeouts: {{ connect: 10m }}", hung.spec("")));
    let attempt = eventually("the attempt is under way", async || hung.alive().pop()).await;
    stage.declared.server("s", &spec);
    stage.generation_attached("s", 5).await;
    within("what the attempt opened is gone", attempt.gone()).await;

    assert_eq!(rig.processes().len(), 1, "the one that failed never came so far");
    assert_eq!(process.counters().await.discovers(), 1);
    stage.agent(Era::Legacy).await.text("s_echo", "{}").await;
}

/// A server that was replaced while a call was in flight that does not end by itself.
async fn replaced_under_a_call(one: &Http, two: &Http) -> (Stage, Call) {
    let drain = "timeouts: { drain: 500ms }";
    let stage = Stage::start(&[
        ("s", &format!("{}\n{drain}", one.spec())),
        ("other", "suspend: true\nhttp: { url: \"http://localhost/\" }"),
    ])
    .await;
    stage.evenkeel.attached("s").await;
    let call = begun(stage.agent(Era::Legacy).await, "s_sleep", r#"{"ms":600000}"#, one).await;
    stage.declared.server("s", &format!("{}\n{drain}", two.spec()));
    stage.generation_attached("s", 2).await;
    (stage, call)
}

#[tokio::test]
async fn a_call_on_a_replaced_connection_ends_with_its_server() {
    let sleeper = async || Http::start(Script::new("s", RigEra::Legacy).tools(&["sleep"])).await;
    let (one, two, three) = (sleeper().await, sleeper().await, sleeper().await);

    let (stage, call) = replaced_under_a_call(&one, &two).await;
    stage.declared.remove("s.yaml");
    let text = told(&within("the drain of what is removed", call).await.unwrap().unwrap());
    assert!(text.contains("removed") && text.contains("did not end within 0.5 s"), "{text}");
    eventually("both sessions are ended", async || {
        (one.counters().sessions + two.counters().sessions == 0).then_some(())
    })
    .await;

    let (stage, call) = replaced_under_a_call(&one, &two).await;
    stage.declared.server("s", &format!("{}\nupdate: Recreate\ntimeouts: {{ drain: 500ms }}", three.spec()));
    let text = told(&within("the drain of what is made anew", call).await.unwrap().unwrap());
    assert!(text.contains("being replaced"), "{text}");
    stage.generation_attached("s", 3).await;
    assert_eq!((one.counters().sessions, two.counters().sessions), (0, 0), "nothing ran beside the new one");

    let (mut stage, call) = replaced_under_a_call(&one, &two).await;
    assert!(stage.evenkeel.terminate().await.success());
    let text = told(&within("the end of evenkeel", call).await.unwrap().unwrap());
    assert!(text.contains("shutting down"), "{text}");
    assert!(!stage.evenkeel.said().contains("did not end within"), "{}", stage.evenkeel.said());
}

#[tokio::test]
async fn a_call_waits_for_the_replacement_of_a_connection_that_is_lost_meanwhile() {
    let rig = Stdio::new(Script::default());
    let stage = Stage::start(&[("s", &rig.spec(""))]).await;
    stage.evenkeel.attached("s").await;
    let old = rig.alive().pop().unwrap();
    // For so long is it told that the server is gone.
    rig.edit(|script| script.stdio.start_delay_ms = 10_000);
    stage.declared.server("s", &rig.spec(", env: [{ name: A, value: b }]"));
    eventually("the replacement is under way", async || (rig.processes().len() == 2).then_some(())).await;
    let agent = stage.agent(Era::Legacy).await;
    old.kill();
    stage.evenkeel.wait_for("s", "Attached", "False", "Reconnecting").await;
    agent.text("s_echo", "{}").await;
    stage.generation_attached("s", 2).await;
    assert_eq!(rig.processes().len(), 2);
}

#[tokio::test]
async fn a_filter_applies_at_once_though_its_connection_cannot_be_made() {
    let rig = Http::start(Script::new("s", RigEra::Legacy).tools(&["echo", "odd"])).await;
    let failing = Script::new("f", RigEra::Legacy).on("POST", Rule::always(Then::status(503)));
    let failing = Http::start(failing).await;
    let stage = Stage::start(&[("s", &rig.spec())]).await;
    stage.evenkeel.attached("s").await;
    let [mut watcher, _] = stage.watchers(&["s_echo", "s_odd"]).await;
    // With the edit that cannot be followed, and with another after it.
    for (deny, left) in [("[odd]", &["s_echo"][..]), ("[odd, echo]", &[])] {
        let filter = format!("expose: {{ tools: {{ deny: {deny} }} }}");
        stage.declared.server("s", &format!("{}\n{NEVER}\n{filter}", failing.spec()));
        watcher.sees(left).await;
    }
    stage.evenkeel.wait_for("s", "Attached", "True", "ServingPreviousGeneration").await;
    let gone = watcher.agent.call("s_odd", "{}").await.map_or_else(|error| error, |result| told(&result));
    assert!(!gone.contains("odd said"), "{gone}");
    assert_eq!(rig.counters().calls(), 0);
}

#[tokio::test]
async fn calls_within_the_grace_wait_for_an_edited_server_too() {
    let rig = Stdio::new(Script::default().tools(&["echo"]));
    let stage = Stage::start(&[("s", &format!("{}\n{NEVER}", rig.spec("")))]).await;
    stage.evenkeel.attached("s").await;
    let agent = stage.agent(Era::Legacy).await;
    rig.edit(|script| script.stdio.exit_at_start = Some(3));
    rig.alive().pop().unwrap().kill();
    stage.evenkeel.wait_for("s", "Ready", "False", "Exited").await;
    rig.edit(|script| {
        script.stdio.exit_at_start = None;
        *script = script.clone().on("tools/list", Rule::delay(3_000));
    });
    stage.declared.server("s", &format!("{}\n{NEVER}", rig.spec(", env: [{ name: X, value: z }]")));
    eventually("the attempt is under way", async || {
        (stage.server("s").await["status"]["observedGeneration"] == 2).then_some(())
    })
    .await;
    agent.text("s_echo", "{}").await;
}
