//! `OnDemand`: what is offered without a connection, and what becomes of that when it cannot be had.

use std::time::Duration;

use crate::rig::{Era as RigEra, Http, Rule, Script, Stdio, Then};
use crate::stage::{NEVER, Stage, told};
use crate::support::{Era, eventually};

const ON_DEMAND: &str = "activation: OnDemand\ntimeouts: { idle: 10s }";

/// A stage with an HTTP server that was attached in an earlier run, and is offered from memory.
async fn asleep(rig: &Http, more: &str) -> Stage {
    let mut stage = Stage::start(&[("s", &format!("{}\n{ON_DEMAND}\n{more}", rig.spec()))]).await;
    stage.evenkeel.attached("s").await;
    // A catalog is written down a moment after it was learned, and at a regular end in any case.
    assert!(stage.evenkeel.terminate().await.success());
    stage.evenkeel.start_again().await;
    stage.evenkeel.wait_for("s", "Ready", "True", "Idle").await;
    stage
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
async fn a_filter_applies_to_what_is_offered_from_memory() {
    let rig = Http::start(Script::default().tools(&["echo", "odd"])).await;
    let stage = asleep(&rig, "").await;
    let seen = rig.counters().initializes();
    let [mut watcher, _] = stage.watchers(&["s_echo", "s_odd"]).await;
    stage
        .declared
        .server("s", &format!("{}\n{ON_DEMAND}\nexpose: {{ tools: {{ deny: [odd] }} }}", rig.spec()));
    watcher.sees(&["s_echo"]).await;
    stage.evenkeel.wait_for("s", "Ready", "True", "Idle").await;
    assert_eq!(rig.counters().initializes(), seen, "it was not connected for that");
}

#[tokio::test]
async fn what_cannot_be_connected_when_it_is_called_is_withdrawn_after_its_grace() {
    let rig = Http::start(Script::default()).await;
    let stage = asleep(&rig, &format!("gracePeriod: 1s\n{NEVER}")).await;
    let [mut watcher, _] = stage.watchers(&["s_echo", "s_report"]).await;
    rig.edit(|script| *script = script.clone().on("POST", Rule::always(Then::status(503))));
    let text = told(&watcher.agent.call("s_echo", "{}").await.unwrap());
    assert!(text.contains("503"), "{text}");
    watcher.sees(&[]).await;
    stage.evenkeel.wait_for("s", "Ready", "False", "ConnectFailed").await;
}

#[tokio::test]
async fn a_server_whose_successor_cannot_be_connected_is_not_called_idle() {
    let (rig, failing) =
        (Http::start(Script::new("s", RigEra::Legacy)).await, Script::new("f", RigEra::Legacy));
    let failing = Http::start(failing.on("POST", Rule::always(Then::status(503)))).await;
    let stage = Stage::start(&[("s", &format!("{}\n{ON_DEMAND}", rig.spec()))]).await;
    stage.evenkeel.attached("s").await;
    let agent = stage.agent(Era::Modern).await;
    agent.text("s_echo", "{}").await;
    stage.declared.server("s", &format!("{}\n{ON_DEMAND}\n{NEVER}", failing.spec()));
    stage.evenkeel.wait_for("s", "Ready", "False", "ConnectFailed").await;
    // Longer than it may be idle: the one before is all there is.
    tokio::time::sleep(Duration::from_secs(12)).await;
    stage.evenkeel.wait_for("s", "Ready", "False", "ConnectFailed").await;
    stage.evenkeel.wait_for("s", "Attached", "True", "ServingPreviousGeneration").await;
    agent.text("s_echo", "{}").await;
    assert_eq!(rig.counters().initializes(), 1);
}
