//! Edits of declarations, while agents come, call and go.

use std::fmt::Debug;
use std::str::FromStr;
use std::time::{Duration, Instant};

use crate::agents::SoakAgents;
use crate::fleet::SoakFleet;
use crate::support::ProcessUsage;

const AGENTS: usize = 3;
/// With this many edits during a session of an agent, 20 minutes of an edit every 250 ms are some 1,700 sessions.
const EDITS_PER_SESSION: u32 = 8;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes minutes"]
async fn churn_ends_where_it_began() {
    let seconds: u64 = variable("SOAK_SECONDS", 1_200);
    let interval = Duration::from_millis(variable("SOAK_EDIT_MS", 250));
    let rounds: usize = variable("SOAK_ROUNDS", 1);
    let [http, stdio] = [variable("SOAK_HTTP_SERVERS", 300), variable("SOAK_STDIO_SERVERS", 12)];

    let mut fleet = SoakFleet::start(http, stdio).await;
    let names = fleet.names();
    let pid = fleet.evenkeel.pid();
    let before = ProcessUsage::of_idle(pid).await;
    println!("at the start: {before} (process {pid})");
    let mut after = before;
    for round in 1..=rounds {
        let pause = interval * EDITS_PER_SESSION;
        let agents = SoakAgents::start(AGENTS, &fleet.evenkeel.url(), &names, pause);
        let started_at = Instant::now();
        let mut ticks = tokio::time::interval(interval);
        let (mut edits, mut next_report) = (0, Duration::ZERO);
        while started_at.elapsed() < Duration::from_secs(seconds) {
            ticks.tick().await;
            // A step that shares no factor with usual numbers of servers: neighbours in time are none in name.
            fleet.edit(edits * 97 % names.len());
            edits += 1;
            if started_at.elapsed() >= next_report {
                next_report += Duration::from_secs(seconds.div_ceil(8));
                println!("round {round}, {edits} edits: {}", ProcessUsage::of(pid));
            }
        }
        let (sessions, calls) = agents.stop().await;
        println!(
            "round {round}: {edits} edits, {sessions} sessions, {calls} calls: {}",
            ProcessUsage::of(pid)
        );
        fleet.wait_until_quiet(before.counts.descriptors).await;
        after = ProcessUsage::of_idle(pid).await;
        println!("round {round}, quiet again: {after}");
    }
    assert_eq!(after.counts, before.counts);
}

/// Returns an environment variable as a number, or the default.
fn variable<T: FromStr<Err: Debug>>(name: &str, default: T) -> T {
    std::env::var(name).map_or(default, |text| text.parse().unwrap())
}
