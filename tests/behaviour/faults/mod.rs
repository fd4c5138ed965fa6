//! Every fault of the rig, over each transport that it can happen on, with servers of each era: the reported status,
//! and the latency of calls to healthy servers meanwhile. `cargo test --test behaviour faults -- --nocapture` prints
//! the table.

mod page;
mod table;

use std::time::{Duration, Instant};

use crate::control_servers::{ControlServers, TOOLS};
use crate::fixture::EvenkeelFixture;
use crate::rig::{FakeHttpServer, FakeStdioServer, Script};
use crate::support::{Agent, Era, eventually};
use table::{AgentView, FAULTS, Fault, FaultStatus, FaultTransport};

/// The rig of a faulty server, kept while the test runs.
enum FaultyServer {
    Stdio(Box<FakeStdioServer>),
    Http(FakeHttpServer),
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn faults_are_reported_and_do_not_slow_healthy_servers() {
    let fixture = EvenkeelFixture::start(&[]).await;
    let controls = ControlServers::attach(&fixture).await;
    let agent = fixture.agent(Era::Legacy).await;
    let baseline = latencies(&agent, Instant::now() + Duration::from_secs(1)).await;

    let mut faulty = Vec::new();
    for fault in FAULTS {
        for (over, era) in fault.transports.iter().flat_map(|over| fault.eras.iter().map(|era| (*over, *era)))
        {
            let transport = if over == FaultTransport::Stdio { "stdio" } else { "http" };
            let name = format!("{}-{transport}-{era:?}", fault.name).to_lowercase();
            let script = (fault.inject)(Script::new(&name, era));
            let rig = if over == FaultTransport::Stdio {
                FaultyServer::Stdio(Box::new(FakeStdioServer::new(script)))
            } else {
                FaultyServer::Http(FakeHttpServer::start(script).await)
            };
            faulty.push((name, fault, rig));
        }
    }
    // All servers are declared at once, and each retries every second.
    for (name, _, rig) in &faulty {
        let spec = match rig {
            FaultyServer::Stdio(rig) => rig.spec(""),
            FaultyServer::Http(rig) => rig.spec(),
        };
        let limits = "timeouts: { start: 2s, connect: 2s }\nretry: { initial: 1s, max: 1s }";
        fixture.declared.write_server(name, &format!("{spec}\n{limits}"));
    }
    let url = fixture.evenkeel.url();
    let calls = tokio::spawn(async move {
        let agent = Agent::connect(Era::Legacy, &url).await;
        latencies(&agent, Instant::now() + Duration::from_secs(8)).await
    });
    let caller = fixture.agent(Era::Modern).await;
    let mut table = Vec::new();
    for (name, fault, _) in &faulty {
        table.push(report_of(&fixture, &caller, name, fault).await);
    }
    let meanwhile = calls.await.unwrap();
    println!(
        "{}\ncalls of control servers before:    {}\ncalls of control servers meanwhile: {}",
        table.join("\n"),
        latency_summary(&baseline),
        latency_summary(&meanwhile)
    );
    // A generous limit: the faulty servers use their share of the CPU.
    let [before, now] = [&baseline, &meanwhile].map(|calls| calls[calls.len() / 2]);
    assert!(now < before * 20 + Duration::from_millis(100), "a call takes {now:?} instead of {before:?}");
    // The faulty servers hang for 2 s at a time; a stall of the machine delays a call or two.
    let p90 = meanwhile[(meanwhile.len() - 1) * 9 / 10];
    assert!(
        p90 < Duration::from_secs(2),
        "calls hang together with faulty servers: {}",
        latency_summary(&meanwhile)
    );
    let listed = fixture.agent(Era::Modern).await.tool_names().await;
    for (name, fault, _) in &faulty {
        let is_attached = fault.agents != AgentView::NoTools;
        let generation = &fixture.server(name).await["status"]["attachedGeneration"];
        assert_eq!(generation.is_null(), !is_attached, "{name}");
        assert_eq!(listed.contains(&format!("{name}_echo")), is_attached, "{name}");
    }
    assert!(TOOLS.iter().all(|tool| listed.iter().any(|listed| listed == tool)), "{listed:?}");
    controls.assert_untouched(&fixture).await;
}

/// Calls the faulty server, if it is attached, waits until its status reports the fault, and returns a line with it.
async fn report_of(fixture: &EvenkeelFixture, agent: &Agent, name: &str, fault: &Fault) -> String {
    if fault.agents != AgentView::NoTools {
        fixture.evenkeel.wait_until_attached(name).await;
        let outcome = agent.call(&format!("{name}_echo"), "{}").await;
        match fault.agents {
            AgentView::CallFails(text) => {
                let answer = outcome.unwrap_or_else(|error| error);
                assert!(answer.contains(text), "{name}: {answer}");
            }
            _ => assert!(outcome.is_ok_and(|result| !result.contains("isError")), "{name}"),
        }
    }
    let (condition_type, status, reason, message_part) = match fault.status {
        FaultStatus::NotReady(reason, message_part) => ("Ready", "False", reason, message_part),
        FaultStatus::Degraded(reason, message_part) => ("Degraded", "True", reason, message_part),
        FaultStatus::Ready => {
            assert!(fixture.evenkeel.condition(name, "Degraded").await.is_none(), "{name}");
            ("Ready", "True", "Attached", "")
        }
    };
    let condition = eventually(&format!("{name}: {reason}"), async || {
        let condition = fixture.evenkeel.condition(name, condition_type).await?;
        // A server that exits repeatedly reports CrashLoop after its first reason.
        let expected = condition.reason == reason || (reason, &*condition.reason) == ("Exited", "CrashLoop");
        // On a slow machine a process may write nothing within its 2 s at the first attempt, but does at a later one.
        (condition.status == status && expected && condition.message.contains(message_part))
            .then_some(condition)
    })
    .await;
    format!("{name:32} {:16} {}", condition.reason, condition.message)
}

/// Returns the sorted latencies of a series of calls, all of which must succeed.
async fn latencies(agent: &Agent, until: Instant) -> Vec<Duration> {
    let mut latencies = Vec::new();
    while Instant::now() < until {
        for tool in TOOLS {
            let started_at = Instant::now();
            agent.call_text(tool, "{}").await;
            latencies.push(started_at.elapsed());
        }
    }
    latencies.sort();
    latencies
}

fn latency_summary(latencies: &[Duration]) -> String {
    let at = |share: usize| latencies[(latencies.len() - 1) * share / 100];
    format!("{} calls, p50 {:?}, p99 {:?}, slowest {:?}", latencies.len(), at(50), at(99), at(100))
}
