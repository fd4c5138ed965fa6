//! Control servers of each era over each transport, and the check that a test did not disturb them.

use std::time::{Duration, Instant};

use crate::fixture::EvenkeelFixture;
use crate::rig::{Counters, FakeHttpServer, FakeServerProcess, FakeStdioServer, Script, ServerEra};
use crate::support::eventually;

/// Four attached servers with one tool each.
pub struct ControlServers {
    stdio: Vec<(&'static str, FakeStdioServer)>,
    http: Vec<(&'static str, FakeHttpServer)>,
    baseline: Vec<ServerSnapshot>,
}

/// The properties of a server that stay the same as long as it is not disturbed.
#[derive(Clone, Debug, PartialEq, Eq)]
struct ServerSnapshot {
    name: &'static str,
    pids: Vec<u32>,
    handshakes: (u64, u64),
    sessions: (u64, u64),
    lists: u64,
    streams: (u64, u64, u64),
}

/// The tools of the control servers, in list order.
pub const TOOLS: [&str; 4] =
    ["http-legacy_echo", "http-modern_echo", "stdio-legacy_echo", "stdio-modern_echo"];

impl ControlServers {
    /// Declares the servers and waits until they are attached and idle.
    pub async fn attach(fixture: &EvenkeelFixture) -> Self {
        let script = |name, era| Script::new(name, era).tools(&["echo"]);
        let stdio = vec![
            ("stdio-legacy", FakeStdioServer::new(script("stdio-legacy", ServerEra::Legacy))),
            ("stdio-modern", FakeStdioServer::new(script("stdio-modern", ServerEra::Modern))),
        ];
        let http = vec![
            ("http-legacy", FakeHttpServer::start(script("http-legacy", ServerEra::Legacy)).await),
            ("http-modern", FakeHttpServer::start(script("http-modern", ServerEra::Modern)).await),
        ];
        let mut controls = Self { stdio, http, baseline: Vec::new() };
        let specs = controls.stdio.iter().map(|(name, rig)| (*name, rig.spec("")));
        let specs = specs.chain(controls.http.iter().map(|(name, rig)| (*name, rig.spec())));
        for (name, spec) in specs {
            // Health checks would be counted as handshakes.
            fixture.declared.write_server(name, &format!("{spec}\nhealth: {{ interval: 0s }}"));
        }
        let started_at = Instant::now();
        for name in ["stdio-legacy", "stdio-modern", "http-legacy", "http-modern"] {
            fixture.evenkeel.wait_until_attached(name).await;
        }
        eventually("the notification streams of the control servers are open", async || {
            controls.http.iter().all(|(_, rig)| rig.counters().streams == 1).then_some(())
        })
        .await;
        controls.baseline = controls.snapshots().await;
        // If a stream takes a second to open, the lists are read before it opens and again after it.
        let is_slow = started_at.elapsed() > Duration::from_secs(1);
        eventually("no more lists are read", async || {
            if is_slow {
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
            let now = controls.snapshots().await;
            let previous = std::mem::replace(&mut controls.baseline, now);
            (previous == controls.baseline).then_some(())
        })
        .await;
        for ServerSnapshot { name, handshakes, .. } in &controls.baseline {
            let expected = u64::from(name.ends_with("legacy"));
            assert_eq!(handshakes.0, expected, "{name} is initialized once if it is a legacy server");
        }
        controls
    }

    /// Fails if a control server has a new process or session, got another handshake or list request, or does not
    /// respond.
    pub async fn assert_untouched(&self, fixture: &EvenkeelFixture) {
        assert_eq!(self.snapshots().await, self.baseline);
        let agent = fixture.agent(crate::support::Era::Legacy).await;
        for tool in TOOLS {
            agent.call_text(tool, "{}").await;
        }
    }

    async fn snapshots(&self) -> Vec<ServerSnapshot> {
        let mut traces = Vec::new();
        for (name, rig) in &self.stdio {
            let alive = rig.live_processes();
            let counters = match alive.first() {
                Some(process) => process.counters().await,
                None => Counters::default(),
            };
            let pids = rig.processes().iter().map(FakeServerProcess::pid).collect();
            assert_eq!(alive.len(), rig.processes().len(), "all processes of {name} are alive");
            traces.push(snapshot(name, pids, &counters));
        }
        for (name, rig) in &self.http {
            traces.push(snapshot(name, Vec::new(), &rig.counters()));
        }
        traces
    }
}

fn snapshot(name: &'static str, pids: Vec<u32>, counters: &Counters) -> ServerSnapshot {
    assert_eq!(counters.complaints, Vec::<String>::new(), "{name}");
    ServerSnapshot {
        name,
        pids,
        handshakes: (counters.initializes(), counters.discovers()),
        sessions: (counters.sessions_opened, counters.sessions),
        lists: counters.tool_lists(),
        streams: (counters.count("GET"), counters.count("subscriptions/listen"), counters.count("DELETE")),
    }
}
