//! When the good servers are of use while others hang from the start.

use std::time::Duration;

use super::{Plan, millis};
use crate::report::{Report, Row};
use crate::rig::directory::{Directory, tool};
use crate::rig::process::{Evenkeel, Helper};
use crate::rig::samples::Samples;
use crate::rig::{Era, Result};

/// Good and hanging servers, how many starts are measured of the plan's, and what is hoped for.
const MIXTURES: [(usize, usize, usize, &str); 2] = [(19, 1, 1, "≤ 100"), (900, 100, 5, "")];

/// Measures starts in both eras, each with a state directory of its own.
pub async fn run(plan: &Plan, report: &mut Report) -> Result<()> {
    for era in Era::BOTH {
        for (good, hanging, divisor, target) in MIXTURES {
            let mut samples = Samples::default();
            for _ in 0..plan.starts.div_ceil(divisor) {
                samples.push(start(plan, era, good, hanging).await?);
            }
            let all = good + hanging;
            report.add(
                Row::new(format!("start to {good} of {all} called, {hanging} hanging, p50 / slowest"), "ms")
                    .era(era)
                    .evenkeel([0.5, 1.0].map(|share| millis(samples.percentile(share))))
                    .target(target),
            );
        }
    }
    Ok(())
}

/// The time from a start until every good server was called.
async fn start(plan: &Plan, era: Era, good: usize, hanging: usize) -> Result<Duration> {
    let upstream = Helper::start(&["upstream"]).await?;
    let directory = Directory::new(upstream.address).await?;
    for number in 0..hanging {
        directory.declare("hang", number).await?;
    }
    directory.declare_many(era, good).await?;
    let mut evenkeel = Evenkeel::start(&plan.program, &directory).await?;
    let (mut agent, _) = evenkeel.usable(era, good, Duration::from_secs(30)).await?;
    for number in 0..good {
        let mut call = agent.call(&tool(era, number));
        agent.carry_out(&mut call).await?;
    }
    let taken = evenkeel.started.elapsed();
    evenkeel.stop().await?;
    Ok(taken)
}
