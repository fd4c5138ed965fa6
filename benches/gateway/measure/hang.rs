//! Measures the time until the working servers are usable while others hang from the start.

use super::controller_setup::ControllerSetup;
use super::{BenchPlan, millis};
use crate::report::{Comparand, Measure, Report};
use crate::rig::{Era, Result};

/// The numbers of working and hanging servers.
#[derive(Clone, Copy)]
pub struct HangMixture {
    pub good: usize,
    pub hanging: usize,
    /// The number of starts in each round.
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
                for index in BenchPlan::rotation(start, subjects.len()) {
                    let (Some(subject), Some(times)) = (subjects.get(index), times.get_mut(index)) else {
                        continue;
                    };
                    let (mut setup, mut elapsed) =
                        ControllerSetup::start(*subject, era, good, hanging).await?;
                    let calling = tokio::time::Instant::now();
                    for number in 0..good {
                        setup.call(era, number).await?;
                    }
                    elapsed += calling.elapsed();
                    setup.stop().await?;
                    times.push(millis(elapsed));
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
