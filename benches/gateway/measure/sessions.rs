//! What an agent costs that is connected and does nothing.

use std::time::Duration;

use super::Plan;
use crate::report::{Report, Row};
use crate::rig::agent::Agent;
use crate::rig::directory::Directory;
use crate::rig::process::{Evenkeel, Helper};
use crate::rig::{Era, Result};

const SERVERS: usize = 20;

/// Measures idle agents of both eras.
pub async fn run(plan: &Plan, report: &mut Report) -> Result<()> {
    for era in Era::BOTH {
        let upstream = Helper::start(&["upstream"]).await?;
        let directory = Directory::new(upstream.address).await?;
        directory.declare_many(era, SERVERS).await?;
        let mut evenkeel = Evenkeel::start(&plan.program, &directory).await?;
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
        let each = after.each(&before, plan.sessions);
        report.add(
            Row::new(format!("memory per idle session with its stream, of {}", plan.sessions), "KiB")
                .era(era)
                .evenkeel(each)
                .target("≤ 40"),
        );
        drop(open);
        evenkeel.stop().await?;
    }
    Ok(())
}
