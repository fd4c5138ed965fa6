//! Calls one server over several routes, in short alternating batches, so that other activity on the machine affects
//! all routes alike.

use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};

use super::{BenchPlan, micros};
use crate::report::{BenchSubject, Comparand, Measure, Report};
use crate::rig::agent::{Agent, McpTarget, RenderedCall, StdioAgent};
use crate::rig::process::ProcessUsage;
use crate::rig::samples::Samples;
use crate::rig::{Era, Result};

const CALLERS: usize = 32;
const CALLS_PER_BATCH: usize = 250;
const CROWD_BATCH_DURATION: Duration = Duration::from_millis(150);
const BATCH_TIMEOUT: Duration = Duration::from_mins(1);

/// A route to the server.
pub struct CallRoute {
    pub subject: BenchSubject,
    /// The endpoint. `None` if the caller starts the server itself and uses its stdin and stdout.
    pub target: Option<McpTarget>,
    pub tool: String,
    /// The process whose CPU time is counted.
    pub usage: Option<ProcessUsage>,
}

enum Caller {
    Http(Agent, RenderedCall),
    Stdio(StdioAgent),
}

impl Caller {
    async fn connect(route: &CallRoute, era: Era) -> Result<Self> {
        let Some(target) = &route.target else {
            return Ok(Self::Stdio(StdioAgent::connect(era).await?));
        };
        let agent = Agent::connect(target).await?;
        let call = agent.prepare_call(&route.tool);
        Ok(Self::Http(agent, call))
    }

    async fn call(&mut self) -> Result<Duration> {
        match self {
            Self::Http(agent, call) => agent.run_call(call).await,
            Self::Stdio(pipe) => pipe.run_call().await,
        }
    }

    async fn call_many(&mut self, count: usize) -> Result<Samples> {
        let mut samples = Samples::default();
        for _ in 0..count {
            samples.push(self.call().await?);
        }
        Ok(samples)
    }
}

/// Measures one caller with successive calls. The figures are named after `kind`.
pub async fn one_caller(
    plan: &BenchPlan,
    era: Era,
    kind: &str,
    routes: &[CallRoute],
    report: &mut Report,
) -> Result<()> {
    let mut callers = Vec::new();
    for route in routes {
        callers.push((route.subject, Caller::connect(route, era).await?, Vec::new()));
    }
    // The first batch warms up.
    for batch in 0..=plan.latency_batches {
        for turn in BenchPlan::rotation(batch, callers.len()) {
            let Some((_, caller, batches)) = callers.get_mut(turn) else { continue };
            let samples = timeout(BATCH_TIMEOUT, caller.call_many(CALLS_PER_BATCH)).await??;
            if batch > 0 {
                batches.push([0.5, 0.99].map(|share| micros(samples.percentile(share))));
            }
        }
    }
    let p50 =
        Measure::new(format!("{kind}: latency p50, 1 caller"), era, "µs").compared(Comparand::RatioToFloor);
    let p99 = Measure::new(format!("{kind}: latency p99, 1 caller"), era, "µs");
    let added = Measure::new(format!("{kind}: added to direct, p50, 1 caller"), era, "µs");
    let direct: Option<Vec<[f64; 2]>> = callers
        .iter()
        .find(|(subject, ..)| *subject == BenchSubject::Direct)
        .map(|(.., batches)| batches.clone());
    for (subject, _, batches) in callers {
        if let Some(direct) = direct.as_ref().filter(|_| subject != BenchSubject::Direct) {
            let differences: Vec<f64> =
                batches.iter().zip(direct).map(|([route, _], [direct, _])| route - direct).collect();
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
    plan: &BenchPlan,
    era: Era,
    kind: &str,
    routes: &[CallRoute],
    report: &mut Report,
) -> Result<()> {
    let mut crowds = Vec::new();
    for route in routes {
        let mut callers = Vec::new();
        for _ in 0..CALLERS {
            callers.push(Caller::connect(route, era).await?);
        }
        crowds.push((route, callers, Vec::new()));
    }
    for batch in 0..=plan.crowd_batches {
        for turn in BenchPlan::rotation(batch, crowds.len()) {
            let Some((route, callers, batches)) = crowds.get_mut(turn) else { continue };
            let result = run_crowd(route, callers).await?;
            if batch > 0 {
                batches.push(result);
            }
        }
    }
    let name = |what: &str| format!("{kind}: {what}, {CALLERS} callers");
    let cpu = Measure::new(name("CPU per call"), era, "µs").compared(Comparand::RatioToFloor);
    let rate = Measure::new(name("calls per second"), era, "1/s");
    let p50 = Measure::new(name("latency p50"), era, "µs").compared(Comparand::RatioToFloor);
    let p99 = Measure::new(name("latency p99"), era, "µs");
    for (route, _, batches) in crowds {
        let figures = |figure: &dyn Fn(&CrowdResult) -> f64| batches.iter().map(figure).collect::<Vec<f64>>();
        report.add(&cpu, route.subject, figures(&CrowdResult::cpu_per_call));
        report.add(&rate, route.subject, figures(&CrowdResult::calls_per_second));
        report.add(&p50, route.subject, figures(&|load| micros(load.samples.percentile(0.5))));
        report.add(&p99, route.subject, figures(&|load| micros(load.samples.percentile(0.99))));
    }
    Ok(())
}

/// The result of one batch of many callers.
struct CrowdResult {
    samples: Samples,
    time: Duration,
    cpu: Duration,
}

impl CrowdResult {
    fn calls_per_second(&self) -> f64 {
        self.samples.len() as f64 / self.time.as_secs_f64()
    }

    fn cpu_per_call(&self) -> f64 {
        micros(self.cpu) / self.samples.len() as f64
    }
}

/// Runs all callers for the duration of a batch.
async fn run_crowd(route: &CallRoute, callers: &mut Vec<Caller>) -> Result<CrowdResult> {
    let usage = route.usage.ok_or("many callers need a process whose CPU time is counted")?;
    let (begin, cpu) = (Instant::now(), usage.cpu_times()?);
    let end = begin + CROWD_BATCH_DURATION;
    let mut tasks = JoinSet::new();
    for mut caller in callers.drain(..) {
        tasks.spawn(async move {
            let mut samples = Samples::default();
            while Instant::now() < end {
                samples.push(caller.call().await?);
            }
            Result::Ok((caller, samples))
        });
    }
    let mut samples = Samples::default();
    while let Some(caller) = timeout(BATCH_TIMEOUT, tasks.join_next()).await? {
        let (caller, caller_samples) = caller??;
        samples.append(caller_samples);
        callers.push(caller);
    }
    Ok(CrowdResult { samples, time: begin.elapsed(), cpu: usage.cpu_times()?.since(&cpu) })
}
