//! What a call costs: directly, through the floor and through evenkeel, in turns, so that what else happens
//! on the machine happens to all three.

use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};

use super::{Plan, micros};
use crate::report::{Report, Row};
use crate::rig::agent::{Agent, Call, Target};
use crate::rig::directory::{Directory, tool};
use crate::rig::process::{Evenkeel, Helper, Usage};
use crate::rig::samples::Samples;
use crate::rig::{Era, Result};

const CALLERS: usize = 32;
const CALLS_PER_ROUND: usize = 250;

/// A way to the server.
struct Way {
    target: Target,
    tool: String,
    /// Whose CPU is counted.
    usage: Usage,
}

/// Measures calls in both eras.
pub async fn run(plan: &Plan, report: &mut Report) -> Result<()> {
    let upstream = Helper::start(&["upstream"]).await?;
    let floor = Helper::start(&["floor", "--upstream", &upstream.address.to_string()]).await?;
    let directory = Directory::new(upstream.address).await?;
    for era in Era::BOTH {
        directory.declare(era.name(), 0).await?;
    }
    let mut evenkeel = Evenkeel::start(&plan.program, &directory).await?;
    evenkeel.usable(Era::Legacy, 2, Duration::from_secs(30)).await?;

    for era in Era::BOTH {
        let path = format!("/{era}/0/mcp");
        let way = |helper: &Helper, usage| Way {
            target: Target { address: helper.address, path: path.clone(), era },
            tool: "echo".to_owned(),
            usage,
        };
        let ways = [
            way(&upstream, upstream.usage),
            way(&floor, floor.usage),
            Way { target: evenkeel.target(era), tool: tool(era, 0), usage: evenkeel.usage },
        ];
        one_caller(plan, era, &ways, report).await?;
        many_callers(plan, era, &ways, report).await?;
    }
    evenkeel.stop().await
}

async fn one_caller(plan: &Plan, era: Era, ways: &[Way; 3], report: &mut Report) -> Result<()> {
    let mut callers = Vec::new();
    for way in ways {
        let agent = Agent::connect(&way.target).await?;
        let call = agent.call(&way.tool);
        callers.push((agent, call));
    }
    let mut samples = [const { Vec::new() }; 3];
    // The first round warms up.
    for round in 0..=plan.latency_rounds {
        for turn in 0..callers.len() {
            let at = (round + turn) % callers.len();
            let (Some((agent, call)), Some(samples)) = (callers.get_mut(at), samples.get_mut(at)) else {
                continue;
            };
            let calls = agent.carry_out_many(call, CALLS_PER_ROUND);
            let taken = timeout(Duration::from_mins(1), calls).await??;
            if round > 0 {
                samples.push(taken);
            }
        }
    }
    let [direct, floor, evenkeel] = samples.map(|rounds| Percentiles::of(&rounds));
    let [over_floor, over_evenkeel] = [&floor, &evenkeel].map(|way| way.minus(&direct));
    report.add(
        Row::new("latency p50 / p99, 1 caller", "µs")
            .era(era)
            .direct(direct.overall)
            .floor(floor.overall)
            .evenkeel(evenkeel.overall),
    );
    report.add(
        Row::new("added to direct, p50 / p99, 1 caller", "µs")
            .era(era)
            .floor(over_floor)
            .evenkeel(over_evenkeel)
            .target("≤ 50 / 120"),
    );
    let ratio =
        |way: &Percentiles| way.overall.iter().zip(direct.overall).map(|(a, b)| a / b).collect::<Vec<_>>();
    report.add(
        Row::new("ratio to direct, p50 / p99, 1 caller", "×")
            .era(era)
            .floor(ratio(&floor))
            .evenkeel(ratio(&evenkeel)),
    );
    Ok(())
}

/// The p50 and p99 of one way in µs: over all rounds, and of each.
struct Percentiles {
    overall: [f64; 2],
    rounds: Vec<[f64; 2]>,
}

impl Percentiles {
    fn of(rounds: &[Samples]) -> Self {
        let pair = |samples: &Samples| [0.5, 0.99].map(|share| micros(samples.percentile(share)));
        let mut all = Samples::default();
        rounds.iter().cloned().for_each(|round| all.append(round));
        Self { overall: pair(&all), rounds: rounds.iter().map(pair).collect() }
    }

    /// The median over the rounds of what this way took more than the other one in the same round.
    fn minus(&self, other: &Self) -> [f64; 2] {
        let pairs = self.rounds.iter().zip(&other.rounds);
        let (mut middle, mut tail): (Vec<f64>, Vec<f64>) =
            pairs.map(|([p50, p99], [other_p50, other_p99])| (p50 - other_p50, p99 - other_p99)).unzip();
        [&mut middle, &mut tail].map(|differences| {
            differences.sort_unstable_by(f64::total_cmp);
            differences.get(differences.len() / 2).copied().unwrap_or_default()
        })
    }
}

async fn many_callers(plan: &Plan, era: Era, ways: &[Way; 3], report: &mut Report) -> Result<()> {
    let mut crowds = Vec::new();
    for way in ways {
        let mut callers = Vec::new();
        for _ in 0..CALLERS {
            let agent = Agent::connect(&way.target).await?;
            let call = agent.call(&way.tool);
            callers.push((agent, call));
        }
        crowds.push((way, callers, Load::default()));
    }
    for round in 0..=plan.throughput_rounds {
        for (way, callers, load) in &mut crowds {
            let taken = crowd(way, callers).await?;
            if round > 0 {
                load.add(taken);
            }
        }
    }
    let loads: Vec<Load> = crowds.into_iter().map(|(_, _, load)| load).collect();
    let row = |measure: &str, unit, figures: &dyn Fn(&Load) -> Vec<f64>| {
        let mut cells = loads.iter().map(figures);
        let mut cell = || cells.next().unwrap_or_default();
        Row::new(measure, unit).era(era).direct(cell()).floor(cell()).evenkeel(cell())
    };
    report.add(row("calls per second, 32 callers", "1/s", &|load| vec![load.rate()]));
    report.add(row("latency p50 / p99, 32 callers", "µs", &|load| {
        [0.5, 0.99].map(|share| micros(load.samples.percentile(share))).to_vec()
    }));
    report.add(
        row("CPU per call, 32 callers (direct: of the server itself)", "µs", &|load| {
            vec![load.cpu_per_call()]
        })
        .target("≤ 25"),
    );
    Ok(())
}

/// What many callers did together.
#[derive(Default)]
struct Load {
    samples: Samples,
    time: Duration,
    cpu: Duration,
}

impl Load {
    fn add(&mut self, other: Self) {
        self.samples.append(other.samples);
        self.time += other.time;
        self.cpu += other.cpu;
    }

    fn rate(&self) -> f64 {
        self.samples.len() as f64 / self.time.as_secs_f64()
    }

    fn cpu_per_call(&self) -> f64 {
        micros(self.cpu) / self.samples.len() as f64
    }
}

/// All callers call for a second.
async fn crowd(way: &Way, callers: &mut Vec<(Agent, Call)>) -> Result<Load> {
    let (begin, cpu) = (Instant::now(), way.usage.cpu()?);
    let end = begin + Duration::from_secs(1);
    let mut tasks = JoinSet::new();
    for (mut agent, mut call) in callers.drain(..) {
        tasks.spawn(async move {
            let mut samples = Samples::default();
            while Instant::now() < end {
                samples.push(agent.carry_out(&mut call).await?);
            }
            Result::Ok((agent, call, samples))
        });
    }
    let mut load = Load::default();
    while let Some(caller) = timeout(Duration::from_mins(1), tasks.join_next()).await? {
        let (agent, call, samples) = caller??;
        load.samples.append(samples);
        callers.push((agent, call));
    }
    load.time = begin.elapsed();
    load.cpu = way.usage.cpu()?.saturating_sub(cpu);
    Ok(load)
}
