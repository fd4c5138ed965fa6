//! Measures what an agent costs that is connected and does nothing.

use std::time::Duration;

use super::Plan;
use crate::report::{Compared, Measure, Report};
use crate::rig::agent::Agent;
use crate::rig::directory::Directory;
use crate::rig::process::{Evenkeel, Helper};
use crate::rig::{Era, Result};

const SERVERS: usize = 20;

/// Measures one round of idle agents of both eras.
pub async fn run(plan: &Plan, report: &mut Report) -> Result<()> {
    for era in Era::BOTH {
        for (subject, program) in &plan.programs {
            let upstream = Helper::upstream().await?;
            let directory = Directory::new(upstream.address).await?;
            directory.declare_many(era, SERVERS).await?;
            let mut evenkeel = Evenkeel::start(program, &directory).await?;
            evenkeel.usable(era, SERVERS, Duration::from_secs(30)).await?;
            let before = evenkeel.usage.settled_memory().await?;
            let mut open = Vec::new();
            for _ in 0..plan.sessions {
                let mut agent = Agent::connect(&evenkeel.target(era)).await?;
                let listed = agent.tools().await?.len();
                if listed != SERVERS {
                    return Err(format!("{listed} of {SERVERS} tools").into());
                }
                // Only the stream stays open.
                open.push(agent.notices().await?);
            }
            let after = evenkeel.usage.settled_memory().await?;
            let [resident, _] = after.each(&before, plan.sessions);
            let name = format!("memory per idle session with its stream, of {}", plan.sessions);
            let measure = Measure::new(name, era, "KiB").target("≤ 40").compared(Compared::Value);
            report.add(&measure, *subject, [resident]);
            drop(open);
            evenkeel.stop().await?;
        }
    }
    Ok(())
}
