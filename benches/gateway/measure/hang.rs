//! Measures when the good servers are of use while others hang from the start.

use super::controller_setup::ControllerSetup;
use super::{BenchPlan, millis};
use crate::report::{Comparand, Measure, Report};
use crate::rig::{Era, Result};

/// Says how many servers work and how many hang.
#[derive(Clone, Copy)]
pub struct HangMixture {
    pub good: usize,
    pub hanging: usize,
    /// Starts in each round.
    pub starts: usize,
    pub target: &'static str,
}

/// Measures one round of starts in both eras, each with a state directory of its own.
pub async fn run(plan: &BenchPlan, report: &mut Report) -> Result<()> {
    let subjects = ControllerSetup::all_subjects(plan);
    for era in Era::ALL {
        for &HangMixture { good, hanging, starts, target } in &plan.mixtures {
            let mut times: Vec<Vec<f64>> = subjects.iter().map(|_| Vec::new()).collect();
            for start in 0..starts {
                for turn in BenchPlan::rotation(start, subjects.len()) {
                    let (Some(subject), Some(times)) = (subjects.get(turn), times.get_mut(turn)) else {
                        continue;
                    };
                    let (mut site, mut took) = ControllerSetup::start(*subject, era, good, hanging).await?;
                    let calling = tokio::time::Instant::now();
                    for number in 0..good {
                        site.call(era, number).await?;
                    }
                    took += calling.elapsed();
                    site.stop().await?;
                    times.push(millis(took));
                }
            }
            let name = format!("start to {good} of {} called, {hanging} hanging", good + hanging);
            let measure = Measure::new(name, era, "ms").target(target).compared(Comparand::RatioToFloor);
            for ((subject, _), times) in subjects.iter().zip(times) {
                report.add(&measure, *subject, times);
            }
        }
    }
    Ok(())
}
