//! Calls through several ways to one server in short batches that take turns, so that what else happens on the
//! machine happens to all of them.

use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};

use super::{Plan, micros};
use crate::report::{Compared, Measure, Report, Subject};
use crate::rig::agent::{Agent, Call, Pipe, Target};
use crate::rig::process::Usage;
use crate::rig::samples::Samples;
use crate::rig::{Era, Result};

const CALLERS: usize = 32;
const CALLS_PER_BATCH: usize = 250;
const CROWD_BATCH: Duration = Duration::from_millis(150);
const PATIENCE: Duration = Duration::from_mins(1);

/// Describes a way to the server.
pub struct Way {
    pub subject: Subject,
    /// `None`: the caller starts the server itself and speaks over its stdin and stdout.
    pub target: Option<Target>,
    pub tool: String,
    /// Whose CPU is counted.
    pub usage: Option<Usage>,
}

enum Caller {
    Http(Agent, Call),
    Stdio(Pipe),
}

impl Caller {
    async fn connect(way: &Way, era: Era) -> Result<Self> {
        let Some(target) = &way.target else {
            return Ok(Self::Stdio(Pipe::connect(era).await?));
        };
        let agent = Agent::connect(target).await?;
        let call = agent.call(&way.tool);
        Ok(Self::Http(agent, call))
    }

    async fn carry_out(&mut self) -> Result<Duration> {
        match self {
            Self::Http(agent, call) => agent.carry_out(call).await,
            Self::Stdio(pipe) => pipe.carry_out().await,
        }
    }

    async fn carry_out_many(&mut self, count: usize) -> Result<Samples> {
        let mut samples = Samples::default();
        for _ in 0..count {
            samples.push(self.carry_out().await?);
        }
        Ok(samples)
    }
}

/// Measures one caller who calls again and again. The figures are named after `kind`.
pub async fn one_caller(plan: &Plan, era: Era, kind: &str, ways: &[Way], report: &mut Report) -> Result<()> {
    let mut callers = Vec::new();
    for way in ways {
        callers.push((way.subject, Caller::connect(way, era).await?, Vec::new()));
    }
    // The first batch warms up.
    for batch in 0..=plan.latency_batches {
        for turn in Plan::turns(batch, callers.len()) {
            let Some((_, caller, batches)) = callers.get_mut(turn) else { continue };
            let taken = timeout(PATIENCE, caller.carry_out_many(CALLS_PER_BATCH)).await??;
            if batch > 0 {
                batches.push([0.5, 0.99].map(|share| micros(taken.percentile(share))));
            }
        }
    }
    let p50 =
        Measure::new(format!("{kind}: latency p50, 1 caller"), era, "µs").compared(Compared::RatioToFloor);
    let p99 = Measure::new(format!("{kind}: latency p99, 1 caller"), era, "µs");
    let added = Measure::new(format!("{kind}: added to direct, p50, 1 caller"), era, "µs");
    let direct: Option<Vec<[f64; 2]>> =
        callers.iter().find(|(subject, ..)| *subject == Subject::Direct).map(|(.., batches)| batches.clone());
    for (subject, _, batches) in callers {
        if let Some(direct) = direct.as_ref().filter(|_| subject != Subject::Direct) {
            let differences: Vec<f64> =
                batches.iter().zip(direct).map(|([way, _], [direct, _])| way - direct).collect();
            report.add(&added, subject, differences);
        }
        let (middle, tail): (Vec<f64>, Vec<f64>) = batches.into_iter().map(<(f64, f64)>::from).unzip();
        report.add(&p50, subject, middle);
        report.add(&p99, subject, tail);
    }
    Ok(())
}

/// Measures many callers at once. The figures are named after `kind`.
pub async fn many_callers(
    plan: &Plan,
    era: Era,
    kind: &str,
    ways: &[Way],
    report: &mut Report,
) -> Result<()> {
    let mut crowds = Vec::new();
    for way in ways {
        let mut callers = Vec::new();
        for _ in 0..CALLERS {
            callers.push(Caller::connect(way, era).await?);
        }
        crowds.push((way, callers, Vec::new()));
    }
    for batch in 0..=plan.crowd_batches {
        for turn in Plan::turns(batch, crowds.len()) {
            let Some((way, callers, batches)) = crowds.get_mut(turn) else { continue };
            let taken = crowd(way, callers).await?;
            if batch > 0 {
                batches.push(taken);
            }
        }
    }
    let name = |what: &str| format!("{kind}: {what}, {CALLERS} callers");
    let cpu = Measure::new(name("CPU per call"), era, "µs").compared(Compared::RatioToFloor);
    let rate = Measure::new(name("calls per second"), era, "1/s");
    let p50 = Measure::new(name("latency p50"), era, "µs").compared(Compared::RatioToFloor);
    let p99 = Measure::new(name("latency p99"), era, "µs");
    for (way, _, batches) in crowds {
        let figures = |figure: &dyn Fn(&Load) -> f64| batches.iter().map(figure).collect::<Vec<f64>>();
        report.add(&cpu, way.subject, figures(&Load::cpu_per_call));
        report.add(&rate, way.subject, figures(&Load::rate));
        report.add(&p50, way.subject, figures(&|load| micros(load.samples.percentile(0.5))));
        report.add(&p99, way.subject, figures(&|load| micros(load.samples.percentile(0.99))));
    }
    Ok(())
}

/// Holds the outcome of one batch of many callers.
struct Load {
    samples: Samples,
    time: Duration,
    cpu: Duration,
}

impl Load {
    fn rate(&self) -> f64 {
        self.samples.len() as f64 / self.time.as_secs_f64()
    }

    fn cpu_per_call(&self) -> f64 {
        micros(self.cpu) / self.samples.len() as f64
    }
}

/// Has all callers call until the time of a batch is over.
async fn crowd(way: &Way, callers: &mut Vec<Caller>) -> Result<Load> {
    let usage = way.usage.ok_or("a crowd needs a process whose CPU is counted")?;
    let (begin, cpu) = (Instant::now(), usage.cpu()?);
    let end = begin + CROWD_BATCH;
    let mut tasks = JoinSet::new();
    for mut caller in callers.drain(..) {
        tasks.spawn(async move {
            let mut samples = Samples::default();
            while Instant::now() < end {
                samples.push(caller.carry_out().await?);
            }
            Result::Ok((caller, samples))
        });
    }
    let mut samples = Samples::default();
    while let Some(caller) = timeout(PATIENCE, tasks.join_next()).await? {
        let (caller, taken) = caller??;
        samples.append(taken);
        callers.push(caller);
    }
    Ok(Load { samples, time: begin.elapsed(), cpu: usage.cpu()?.since(&cpu) })
}
