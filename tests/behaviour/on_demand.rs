//! `OnDemand`: tools that are listed without a connection, and connections that fail when a call needs them.

use std::time::Duration;

use crate::fixture::{EvenkeelFixture, NO_RETRY, error_text};
use crate::rig::{Action, FakeHttpServer, FakeStdioServer, Rule, Script, ServerEra};
use crate::support::{Era, eventually};

const ON_DEMAND: &str = "activation: OnDemand\ntimeouts: { idle: 10s }";

/// Returns a fixture with an HTTP server that was attached in an earlier run, and is now listed from the cache.
async fn start_idle(rig: &FakeHttpServer, more: &str) -> EvenkeelFixture {
    let mut fixture = EvenkeelFixture::start(&[("s", &format!("{}\n{ON_DEMAND}\n{more}", rig.spec()))]).await;
    fixture.evenkeel.wait_until_attached("s").await;
    // A catalog is stored shortly after it was read, and at a regular shutdown in any case.
    assert!(fixture.evenkeel.terminate().await.success());
    fixture.evenkeel.restart().await;
    fixture.evenkeel.wait_for("s", "Ready", "True", "Idle").await;
    fixture
}

#[tokio::test]
async fn on_demand_server_is_listed_without_a_process_and_started_by_a_call() {
    let rig = FakeStdioServer::new(Script::default());
    let spec = format!("{}\nactivation: OnDemand\ntimeouts: {{ idle: 10s }}", rig.spec(""));
    let mut fixture = EvenkeelFixture::start(&[("s", &spec)]).await;
    fixture.evenkeel.wait_until_attached("s").await;
    let agent = fixture.agent(Era::Legacy).await;
    agent.call_text("s_echo", "{}").await;
    // A catalog is stored shortly after it was read, and at a regular shutdown in any case.
    assert!(fixture.evenkeel.terminate().await.success());
    eventually("the process has exited", async || rig.live_processes().is_empty().then_some(())).await;
    fixture.evenkeel.restart().await;
    fixture.evenkeel.wait_for("s", "Ready", "True", "Idle").await;
    assert_eq!(agent.tool_names().await, ["s_echo", "s_report"]);
    assert_eq!(fixture.server("s").await["status"]["tools"], 2);
    assert_eq!(rig.processes().len(), 1, "no process was started for the listing");

    agent.call_text("s_echo", "{}").await;
    fixture.evenkeel.wait_until_attached("s").await;
    assert_eq!(rig.live_processes().len(), 1);
    fixture.evenkeel.wait_for("s", "Ready", "True", "Idle").await;
    eventually("the idle process is stopped", async || rig.live_processes().is_empty().then_some(())).await;
    fixture.agent(Era::Modern).await.call_text("s_echo", "{}").await;
    assert_eq!(rig.processes().len(), 3);
}

#[tokio::test]
async fn filter_applies_to_cached_tools() {
    let rig = FakeHttpServer::start(Script::default().tools(&["echo", "odd"])).await;
    let fixture = start_idle(&rig, "").await;
    let initializes = rig.counters().initializes();
    let [mut watcher, _] = fixture.watchers(&["s_echo", "s_odd"]).await;
    fixture
        .declared
        .write_server("s", &format!("{}\n{ON_DEMAND}\nexpose: {{ tools: {{ deny: [odd] }} }}", rig.spec()));
    watcher.wait_for_tools(&["s_echo"]).await;
    fixture.evenkeel.wait_for("s", "Ready", "True", "Idle").await;
    assert_eq!(rig.counters().initializes(), initializes, "the filter does not connect the server");
}

#[tokio::test]
async fn failed_on_demand_connection_withdraws_tools_after_grace_period() {
    let rig = FakeHttpServer::start(Script::default()).await;
    let fixture = start_idle(&rig, &format!("gracePeriod: 1s\n{NO_RETRY}")).await;
    let [mut watcher, _] = fixture.watchers(&["s_echo", "s_report"]).await;
    rig.edit_script(|script| *script = script.clone().on("POST", Rule::always(Action::status(503))));
    let text = error_text(&watcher.agent.call("s_echo", "{}").await.unwrap());
    assert!(text.contains("503"), "{text}");
    watcher.wait_for_tools(&[]).await;
    fixture.evenkeel.wait_for("s", "Ready", "False", "ConnectFailed").await;
}

#[tokio::test]
async fn failed_replacement_is_not_reported_as_idle() {
    let (rig, failing) = (
        FakeHttpServer::start(Script::new("s", ServerEra::Legacy)).await,
        Script::new("f", ServerEra::Legacy),
    );
    let failing = FakeHttpServer::start(failing.on("POST", Rule::always(Action::status(503)))).await;
    let fixture = EvenkeelFixture::start(&[("s", &format!("{}\n{ON_DEMAND}", rig.spec()))]).await;
    fixture.evenkeel.wait_until_attached("s").await;
    let agent = fixture.agent(Era::Modern).await;
    agent.call_text("s_echo", "{}").await;
    fixture.declared.write_server("s", &format!("{}\n{ON_DEMAND}\n{NO_RETRY}", failing.spec()));
    fixture.evenkeel.wait_for("s", "Ready", "False", "ConnectFailed").await;
    // Longer than the idle timeout: the previous connection is kept, because there is no other.
    tokio::time::sleep(Duration::from_secs(12)).await;
    fixture.evenkeel.wait_for("s", "Ready", "False", "ConnectFailed").await;
    fixture.evenkeel.wait_for("s", "Attached", "True", "ServingPreviousGeneration").await;
    agent.call_text("s_echo", "{}").await;
    assert_eq!(rig.counters().initializes(), 1);
}
