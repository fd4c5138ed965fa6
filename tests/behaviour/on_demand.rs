//! `OnDemand`: what is offered without a connection, and what becomes of that when it cannot be had.

use std::time::Duration;

use crate::fixture::{EvenkeelFixture, NO_RETRY, error_text};
use crate::rig::{Action, FakeHttpServer, FakeStdioServer, Rule, Script, ServerEra};
use crate::support::{Era, eventually};

const ON_DEMAND: &str = "activation: OnDemand\ntimeouts: { idle: 10s }";

/// A stage with an HTTP server that was attached in an earlier run, and is offered from memory.
async fn start_idle(rig: &FakeHttpServer, more: &str) -> EvenkeelFixture {
    let mut stage = EvenkeelFixture::start(&[("s", &format!("{}\n{ON_DEMAND}\n{more}", rig.spec()))]).await;
    stage.evenkeel.wait_until_attached("s").await;
    // A catalog is written down a moment after it was learned, and at a regular end in any case.
    assert!(stage.evenkeel.terminate().await.success());
    stage.evenkeel.restart().await;
    stage.evenkeel.wait_for("s", "Ready", "True", "Idle").await;
    stage
}

#[tokio::test]
async fn on_demand_server_is_listed_without_a_process_and_started_by_a_call() {
    let rig = FakeStdioServer::new(Script::default());
    let spec = format!("{}\nactivation: OnDemand\ntimeouts: {{ idle: 10s }}", rig.spec(""));
    let mut stage = EvenkeelFixture::start(&[("s", &spec)]).await;
    stage.evenkeel.wait_until_attached("s").await;
    let agent = stage.agent(Era::Legacy).await;
    agent.call_text("s_echo", "{}").await;
    // A catalog is written down a moment after it was learned, and at a regular end in any case.
    assert!(stage.evenkeel.terminate().await.success());
    eventually("its process is gone", async || rig.live_processes().is_empty().then_some(())).await;
    stage.evenkeel.restart().await;
    stage.evenkeel.wait_for("s", "Ready", "True", "Idle").await;
    assert_eq!(agent.tool_names().await, ["s_echo", "s_report"]);
    assert_eq!(stage.server("s").await["status"]["tools"], 2);
    assert_eq!(rig.processes().len(), 1, "none was started for that");

    agent.call_text("s_echo", "{}").await;
    stage.evenkeel.wait_until_attached("s").await;
    assert_eq!(rig.live_processes().len(), 1);
    stage.evenkeel.wait_for("s", "Ready", "True", "Idle").await;
    eventually("an idle process is let go", async || rig.live_processes().is_empty().then_some(())).await;
    stage.agent(Era::Modern).await.call_text("s_echo", "{}").await;
    assert_eq!(rig.processes().len(), 3);
}

#[tokio::test]
async fn filter_applies_to_cached_tools() {
    let rig = FakeHttpServer::start(Script::default().tools(&["echo", "odd"])).await;
    let stage = start_idle(&rig, "").await;
    let seen = rig.counters().initializes();
    let [mut watcher, _] = stage.watchers(&["s_echo", "s_odd"]).await;
    stage
        .declared
        .write_server("s", &format!("{}\n{ON_DEMAND}\nexpose: {{ tools: {{ deny: [odd] }} }}", rig.spec()));
    watcher.wait_for_tools(&["s_echo"]).await;
    stage.evenkeel.wait_for("s", "Ready", "True", "Idle").await;
    assert_eq!(rig.counters().initializes(), seen, "it was not connected for that");
}

#[tokio::test]
async fn failed_on_demand_connection_withdraws_tools_after_grace_period() {
    let rig = FakeHttpServer::start(Script::default()).await;
    let stage = start_idle(&rig, &format!("gracePeriod: 1s\n{NO_RETRY}")).await;
    let [mut watcher, _] = stage.watchers(&["s_echo", "s_report"]).await;
    rig.edit_script(|script| *script = script.clone().on("POST", Rule::always(Action::status(503))));
    let text = error_text(&watcher.agent.call("s_echo", "{}").await.unwrap());
    assert!(text.contains("503"), "{text}");
    watcher.wait_for_tools(&[]).await;
    stage.evenkeel.wait_for("s", "Ready", "False", "ConnectFailed").await;
}

#[tokio::test]
async fn failed_replacement_is_not_reported_as_idle() {
    let (rig, failing) = (
        FakeHttpServer::start(Script::new("s", ServerEra::Legacy)).await,
        Script::new("f", ServerEra::Legacy),
    );
    let failing = FakeHttpServer::start(failing.on("POST", Rule::always(Action::status(503)))).await;
    let stage = EvenkeelFixture::start(&[("s", &format!("{}\n{ON_DEMAND}", rig.spec()))]).await;
    stage.evenkeel.wait_until_attached("s").await;
    let agent = stage.agent(Era::Modern).await;
    agent.call_text("s_echo", "{}").await;
    stage.declared.write_server("s", &format!("{}\n{ON_DEMAND}\n{NO_RETRY}", failing.spec()));
    stage.evenkeel.wait_for("s", "Ready", "False", "ConnectFailed").await;
    // Longer than it may be idle: the one before is all there is.
    tokio::time::sleep(Duration::from_secs(12)).await;
    stage.evenkeel.wait_for("s", "Ready", "False", "ConnectFailed").await;
    stage.evenkeel.wait_for("s", "Attached", "True", "ServingPreviousGeneration").await;
    agent.call_text("s_echo", "{}").await;
    assert_eq!(rig.counters().initializes(), 1);
}
