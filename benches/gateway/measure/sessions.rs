//! Measures the memory of connected, idle agents.

use std::time::Duration;

use super::BenchPlan;
use crate::report::{Comparand, Measure, Report};
use crate::rig::agent::Agent;
use crate::rig::directory::BenchDirectory;
use crate::rig::process::{EvenkeelProcess, HelperProcess};
use crate::rig::{Era, Result};

const SERVER_COUNT: usize = 20;

/// Measures one round of idle agents of both eras.
pub async fn run(plan: &BenchPlan, report: &mut Report) -> Result<()> {
    for era in Era::ALL {
        for (subject, program) in &plan.programs {
            let upstream = HelperProcess::start_upstream().await?;
            let directory = BenchDirectory::new(upstream.address).await?;
            directory.declare_many(era, SERVER_COUNT).await?;
            let mut evenkeel = EvenkeelProcess::start(program, &directory).await?;
            evenkeel.wait_for_tools(era, SERVER_COUNT, Duration::from_secs(30)).await?;
            let before = evenkeel.usage.settled_memory().await?;
            let mut open = Vec::new();
            for _ in 0..plan.sessions {
                let mut agent = Agent::connect(&evenkeel.target(era)).await?;
                let tool_count = agent.tool_names().await?.len();
                if tool_count != SERVER_COUNT {
                    return Err(format!("{tool_count} of {SERVER_COUNT} tools").into());
                }
                // Only the stream stays open.
                open.push(agent.notifications().await?);
            }
            let after = evenkeel.usage.settled_memory().await?;
            let [resident, _] = after.per_item(&before, plan.sessions);
            let name = format!("memory per idle session with its stream, of {}", plan.sessions);
            let measure = Measure::new(name, era, "KiB").target("≤ 40").compared(Comparand::Value);
            report.add(&measure, *subject, [resident]);
            drop(open);
            evenkeel.stop().await?;
        }
    }
    Ok(())
}
