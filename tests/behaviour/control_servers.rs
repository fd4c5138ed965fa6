//! Servers that nobody has a reason to disturb, of each era over each transport, and the proof that nobody did.

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

/// What stays the same as long as a server is untouched.
#[derive(Clone, Debug, PartialEq, Eq)]
struct ServerSnapshot {
    name: &'static str,
    pids: Vec<u32>,
    handshakes: (u64, u64),
    sessions: (u64, u64),
    lists: u64,
    streams: (u64, u64, u64),
}

/// What the peers offer, in the order of the list.
pub const TOOLS: [&str; 4] =
    ["http-legacy_echo", "http-modern_echo", "stdio-legacy_echo", "stdio-modern_echo"];

impl ControlServers {
    /// Attaches them.
    pub async fn attach(stage: &EvenkeelFixture) -> Self {
        let script = |name, era| Script::new(name, era).tools(&["echo"]);
        let stdio = vec![
            ("stdio-legacy", FakeStdioServer::new(script("stdio-legacy", ServerEra::Legacy))),
            ("stdio-modern", FakeStdioServer::new(script("stdio-modern", ServerEra::Modern))),
        ];
        let http = vec![
            ("http-legacy", FakeHttpServer::start(script("http-legacy", ServerEra::Legacy)).await),
            ("http-modern", FakeHttpServer::start(script("http-modern", ServerEra::Modern)).await),
        ];
        let mut peers = Self { stdio, http, baseline: Vec::new() };
        let specs = peers.stdio.iter().map(|(name, rig)| (*name, rig.spec("")));
        let specs = specs.chain(peers.http.iter().map(|(name, rig)| (*name, rig.spec())));
        for (name, spec) in specs {
            // Checks of health would be counted as openings.
            stage.declared.write_server(name, &format!("{spec}\nhealth: {{ interval: 0s }}"));
        }
        let begun = Instant::now();
        for name in ["stdio-legacy", "stdio-modern", "http-legacy", "http-modern"] {
            stage.evenkeel.wait_until_attached(name).await;
        }
        eventually("the notice streams of the peers are open", async || {
            peers.http.iter().all(|(_, rig)| rig.counters().streams == 1).then_some(())
        })
        .await;
        peers.baseline = peers.snapshots().await;
        // Where a stream takes a second to open, the lists are read before it, and once more after it.
        let is_slow = begun.elapsed() > Duration::from_secs(1);
        eventually("nothing is listed any more", async || {
            if is_slow {
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
            let now = peers.snapshots().await;
            let before = std::mem::replace(&mut peers.baseline, now);
            (before == peers.baseline).then_some(())
        })
        .await;
        for ServerSnapshot { name, handshakes: openings, .. } in &peers.baseline {
            let expected = u64::from(name.ends_with("legacy"));
            assert_eq!(openings.0, expected, "{name} is initialised once, if it is of that era");
        }
        peers
    }

    /// Fails if any of them has a new process or session, was opened or listed again, or does not answer.
    pub async fn assert_untouched(&self, stage: &EvenkeelFixture) {
        assert_eq!(self.snapshots().await, self.baseline);
        let agent = stage.agent(crate::support::Era::Legacy).await;
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
            assert_eq!(alive.len(), rig.processes().len(), "{name} lives");
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
