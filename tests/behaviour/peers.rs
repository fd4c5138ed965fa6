//! Servers that nobody has a reason to disturb, of each era over each transport, and the proof that nobody did.

use std::time::{Duration, Instant};

use crate::rig::{Counters, Era as RigEra, Http, Process, Script, Stdio};
use crate::stage::Stage;
use crate::support::eventually;

/// Four attached servers with one tool each.
pub struct Peers {
    stdio: Vec<(&'static str, Stdio)>,
    http: Vec<(&'static str, Http)>,
    before: Vec<Trace>,
}

/// What stays the same as long as a server is untouched.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Trace {
    name: &'static str,
    pids: Vec<u32>,
    openings: (u64, u64),
    sessions: (u64, u64),
    lists: u64,
    streams: (u64, u64, u64),
}

/// What the peers offer, in the order of the list.
pub const TOOLS: [&str; 4] =
    ["http-legacy_echo", "http-modern_echo", "stdio-legacy_echo", "stdio-modern_echo"];

impl Peers {
    /// Attaches them.
    pub async fn attach(stage: &Stage) -> Self {
        let script = |name, era| Script::new(name, era).tools(&["echo"]);
        let stdio = vec![
            ("stdio-legacy", Stdio::new(script("stdio-legacy", RigEra::Legacy))),
            ("stdio-modern", Stdio::new(script("stdio-modern", RigEra::Modern))),
        ];
        let http = vec![
            ("http-legacy", Http::start(script("http-legacy", RigEra::Legacy)).await),
            ("http-modern", Http::start(script("http-modern", RigEra::Modern)).await),
        ];
        let mut peers = Self { stdio, http, before: Vec::new() };
        let specs = peers.stdio.iter().map(|(name, rig)| (*name, rig.spec("")));
        let specs = specs.chain(peers.http.iter().map(|(name, rig)| (*name, rig.spec())));
        for (name, spec) in specs {
            // Checks of health would be counted as openings.
            stage.declared.server(name, &format!("{spec}\nhealth: {{ interval: 0s }}"));
        }
        let begun = Instant::now();
        for name in ["stdio-legacy", "stdio-modern", "http-legacy", "http-modern"] {
            stage.evenkeel.attached(name).await;
        }
        eventually("the notice streams of the peers are open", async || {
            peers.http.iter().all(|(_, rig)| rig.counters().streams == 1).then_some(())
        })
        .await;
        peers.before = peers.traces().await;
        // Where a stream takes a second to open, the lists are read before it, and once more after it.
        let is_slow = begun.elapsed() > Duration::from_secs(1);
        eventually("nothing is listed any more", async || {
            if is_slow {
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
            let now = peers.traces().await;
            let before = std::mem::replace(&mut peers.before, now);
            (before == peers.before).then_some(())
        })
        .await;
        for Trace { name, openings, .. } in &peers.before {
            let expected = u64::from(name.ends_with("legacy"));
            assert_eq!(openings.0, expected, "{name} is initialised once, if it is of that era");
        }
        peers
    }

    /// Fails if any of them has a new process or session, was opened or listed again, or does not answer.
    pub async fn are_untouched(&self, stage: &Stage) {
        assert_eq!(self.traces().await, self.before);
        let agent = stage.agent(crate::support::Era::Legacy).await;
        for tool in TOOLS {
            agent.text(tool, "{}").await;
        }
    }

    async fn traces(&self) -> Vec<Trace> {
        let mut traces = Vec::new();
        for (name, rig) in &self.stdio {
            let alive = rig.alive();
            let counters = match alive.first() {
                Some(process) => process.counters().await,
                None => Counters::default(),
            };
            let pids = rig.processes().iter().map(Process::pid).collect();
            assert_eq!(alive.len(), rig.processes().len(), "{name} lives");
            traces.push(trace(name, pids, &counters));
        }
        for (name, rig) in &self.http {
            traces.push(trace(name, Vec::new(), &rig.counters()));
        }
        traces
    }
}

fn trace(name: &'static str, pids: Vec<u32>, counters: &Counters) -> Trace {
    assert_eq!(counters.complaints, Vec::<String>::new(), "{name}");
    Trace {
        name,
        pids,
        openings: (counters.initializes(), counters.discovers()),
        sessions: (counters.sessions_opened, counters.sessions),
        lists: counters.lists(),
        streams: (counters.of("GET"), counters.of("subscriptions/listen"), counters.of("DELETE")),
    }
}
