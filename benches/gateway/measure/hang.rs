//! When 19 of 20 servers are of use while one hangs from the start.

use std::time::Duration;

use super::{Plan, millis};
use crate::report::{Report, Row};
use crate::rig::directory::{Directory, tool};
use crate::rig::process::{Evenkeel, Helper};
use crate::rig::samples::Samples;
use crate::rig::{Era, Result};

const GOOD: usize = 19;

/// Measures starts in both eras, each with a state directory of its own.
pub async fn run(plan: &Plan, report: &mut Report) -> Result<()> {
    for era in Era::BOTH {
        let mut samples = Samples::default();
        for _ in 0..plan.starts {
            let upstream = Helper::start(&["upstream"]).await?;
            let directory = Directory::new(upstream.address).await?;
            directory.declare("hang", 0).await?;
            directory.declare_many(era, GOOD).await?;
            let mut evenkeel = Evenkeel::start(&plan.program, &directory).await?;
            let (mut agent, _) = evenkeel.usable(era, GOOD, Duration::from_secs(30)).await?;
            for number in 0..GOOD {
                let mut call = agent.call(&tool(era, number));
                agent.carry_out(&mut call).await?;
            }
            samples.push(evenkeel.started.elapsed());
            evenkeel.stop().await?;
        }
        report.add(
            Row::new("start to 19 of 20 called, one hanging, p50 / slowest", "ms")
                .era(era)
                .evenkeel([0.5, 1.0].map(|share| millis(samples.percentile(share))))
                .target("≤ 100"),
        );
    }
    Ok(())
}
