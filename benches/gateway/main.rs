//! Measures the cost and speed of evenkeel, side by side with a minimal program that does the same on the same machine
//! (the floor), and compares the ratios with recorded ones.
//!
//! `cargo bench --bench gateway` prints a table and writes the same figures as JSON; `docs/benchmarks.md` explains
//! them. All traffic stays on the loopback, all counts and times are bounded, and every started process is ended.

#![expect(clippy::cast_precision_loss, reason = "no count comes near 2^53")]

mod measure;
mod record;
mod report;
mod rig;
mod statistics;

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, ValueEnum};
use tokio::net::TcpListener;

use measure::{BenchPlan, calls, fleet, hang, sessions};
use record::Comparison;
use report::{BenchSubject, Report};
use rig::cores::{pin, pin_load, raise_priority};
use rig::{Era, Result};

/// Measures evenkeel side by side with a minimal program that does the same.
#[derive(Parser)]
struct Args {
    /// Measure more in each round, and also a fleet of 10,000 servers.
    #[arg(long, conflicts_with_all = ["check", "record"])]
    full: bool,
    /// Measure only these parts.
    #[arg(long, value_enum)]
    only: Vec<Part>,
    /// The program to measure.
    #[arg(long, default_value = env!("CARGO_BIN_EXE_evenkeel"))]
    evenkeel: PathBuf,
    /// Another build of evenkeel, measured in alternation with the first.
    #[arg(long, conflicts_with_all = ["check", "record"])]
    against: Option<PathBuf>,
    /// Make a short run, and fail if a figure is worse than recorded by more than its tolerance.
    #[arg(long)]
    check: bool,
    /// Make the same short run, and rewrite the recorded figures.
    #[arg(long, conflicts_with_all = ["check", "only"])]
    record: bool,
    /// The file of recorded figures.
    #[arg(long, default_value = concat!(env!("CARGO_MANIFEST_DIR"), "/benches/gateway/recorded.json"))]
    recorded: PathBuf,
    /// The number of rounds.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Set by `cargo bench`.
    #[arg(long, hide = true)]
    bench: bool,
    #[command(flatten)]
    helper: HelperArgs,
}

/// Runs this program as one of the processes of a measurement.
#[derive(clap::Args)]
struct HelperArgs {
    #[arg(long, value_enum, hide = true)]
    role: Option<Role>,
    /// The address to which the floor forwards requests.
    #[arg(long, hide = true, default_value = "127.0.0.1:0")]
    upstream: SocketAddr,
    /// The directory whose servers the floor attaches.
    #[arg(long, hide = true, default_value = ".")]
    directory: PathBuf,
    #[arg(long, hide = true, value_enum, default_value = "legacy")]
    era: Era,
    /// The core of the stdio server.
    #[arg(long, hide = true)]
    core: Option<usize>,
}

/// A part of the run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
enum Part {
    Calls,
    Stdio,
    Hang,
    Fleet,
    Sessions,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Role {
    /// Fake servers over HTTP.
    Upstream,
    /// One fake server over stdin and stdout.
    StdioServer,
    /// The floor of calls: HTTP to HTTP.
    Floor,
    /// The floor of calls: HTTP to stdio.
    Bridge,
    /// The floor of the fleet.
    Controller,
}

fn main() -> Result<ExitCode> {
    let args = Args::parse();
    raise_file_limit();
    let role = args.helper.role;
    if role == Some(Role::StdioServer) {
        if let Some(core) = args.helper.core {
            pin(core)?;
        }
        rig::upstream::serve_stdio(args.helper.era)?;
        return Ok(ExitCode::SUCCESS);
    }
    // One thread is enough, except for the floors: they have one thread per core, as evenkeel has.
    let mut runtime = match role {
        Some(Role::Floor | Role::Bridge | Role::Controller) => tokio::runtime::Builder::new_multi_thread(),
        _ => tokio::runtime::Builder::new_current_thread(),
    };
    let runtime = runtime.enable_all().build()?;
    match role {
        Some(role) => {
            let serving = runtime.block_on(serve(role, args.helper));
            // The blocking read of stdin may never end.
            runtime.shutdown_background();
            serving.map(|()| ExitCode::SUCCESS)
        }
        None => runtime.block_on(run(args)),
    }
}

#[expect(clippy::print_stdout, reason = "the benchmark reads the address")]
async fn serve(role: Role, args: HelperArgs) -> Result<()> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
    println!("{}", listener.local_addr()?);
    let parent_gone = async { tokio::io::copy(&mut tokio::io::stdin(), &mut tokio::io::sink()).await };
    tokio::select! {
        _ = parent_gone => Ok(()),
        ended = async {
            match role {
                Role::Floor => rig::floor::serve(listener, args.upstream).await,
                Role::Bridge => {
                    let server = rig::directory::role_args("stdio-server", args.era, args.core);
                    rig::bridge::serve(listener, &server).await
                }
                Role::Controller => rig::controller::run(args.directory, args.era).await,
                Role::Upstream | Role::StdioServer => rig::upstream::serve(listener).await,
            }
        } => ended,
    }
}

impl Args {
    fn plan(&self) -> BenchPlan {
        let size = |servers, additions, touches| fleet::FleetSize { servers, additions, touches };
        let mixture = |good, hanging, starts, target| hang::HangMixture { good, hanging, starts, target };
        let programs =
            [(BenchSubject::Evenkeel, Some(&self.evenkeel)), (BenchSubject::Against, self.against.as_ref())];
        let mut plan = BenchPlan {
            programs: programs.into_iter().filter_map(|(of, program)| Some((of, program?.clone()))).collect(),
            rounds: self.rounds.max(1),
            latency_batches: 8,
            crowd_batches: 5,
            fleets: vec![size(0, 0, 0), size(1_000, 6, 3)],
            sessions: 500,
            mixtures: vec![mixture(19, 1, 8, "≤ 100")],
        };
        if !self.check && !self.record {
            plan.fleets.insert(1, size(100, 8, 0));
            plan.mixtures.push(mixture(900, 100, 1, ""));
        }
        if self.full {
            plan.latency_batches = 40;
            plan.crowd_batches = 12;
            plan.fleets.push(size(10_000, 4, 4));
        }
        plan
    }
}

#[expect(clippy::print_stdout, reason = "the report")]
async fn run(args: Args) -> Result<ExitCode> {
    if !args.bench {
        println!("run it with: cargo bench --bench gateway");
        return Ok(ExitCode::SUCCESS);
    }
    let plan = args.plan();
    let environment =
        [machine_description().await, pin_load(), raise_priority(), format!("{} rounds", plan.rounds)];
    let mut report = Report::new(environment.join("; "));
    let is_selected = |part: &Part| args.only.is_empty() || args.only.contains(part);
    let parts: BTreeSet<Part> = Part::value_variants().iter().copied().filter(is_selected).collect();
    measure(&plan, &parts, &mut report).await;
    let mut comparison = Comparison::default();
    if args.check && !report.has_failures() {
        let all_parts = args.only.is_empty();
        comparison = record::check(&args.recorded, &report.figures(), all_parts).await?;
        if !comparison.worse.is_empty() {
            println!(
                "{}some figures are worse; measuring these parts once more: {:?}\n",
                comparison.table, comparison.worse_parts
            );
            measure(&plan, &comparison.worse_parts, &mut report).await;
            comparison = record::check(&args.recorded, &report.figures(), all_parts).await?;
        }
    }
    let json = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("gateway.json");
    tokio::fs::write(&json, serde_json::to_vec_pretty(&report.json())?).await?;
    println!("{report}");
    println!("the same figures as JSON: {}", json.display());
    if report.has_failures() {
        return Ok(ExitCode::FAILURE);
    }
    if args.record {
        record::write(&args.recorded, &report.figures()).await?;
        println!("recorded in {}", args.recorded.display());
    }
    if args.check {
        println!("\n{comparison}");
    }
    Ok(if comparison.passed() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Measures these parts, all of them in each round. A part that fails is left out of later rounds.
#[expect(clippy::print_stderr, reason = "progress")]
async fn measure(plan: &BenchPlan, parts: &BTreeSet<Part>, report: &mut Report) {
    let mut parts = parts.clone();
    for round in 0..plan.rounds {
        for part in parts.clone() {
            let begin = tokio::time::Instant::now();
            report.begin_part(part);
            let measured = match part {
                Part::Calls => calls::http(plan, report).await,
                Part::Stdio => calls::stdio(plan, report).await,
                Part::Hang => hang::run(plan, report).await,
                Part::Fleet => fleet::run(plan, round, report).await,
                Part::Sessions => sessions::run(plan, report).await,
            };
            eprintln!("round {} of {}: {part:?}: {:.1?}", round + 1, plan.rounds, begin.elapsed());
            if let Err(error) = measured {
                report.add_failure(format!("{part:?}: {error}"));
                parts.remove(&part);
            }
        }
    }
}

/// Returns a description of the machine for the report.
async fn machine_description() -> String {
    let read = async |path| tokio::fs::read_to_string(path).await.unwrap_or_default();
    let info = read("/proc/cpuinfo").await;
    let model = info.lines().find_map(|line| line.strip_prefix("model name")).unwrap_or_default();
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let load = read("/proc/loadavg").await;
    let kernel = read("/proc/sys/kernel/osrelease").await;
    format!(
        "{cores} cores of {}, Linux {}, load before the run {}",
        model.trim_matches([' ', '\t', ':']),
        kernel.trim(),
        load.split(' ').next().unwrap_or_default(),
    )
}

/// Raises the limit of open files to its maximum: a fleet of thousands of servers needs as many sockets.
fn raise_file_limit() {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    let raised = rustix::process::Rlimit { current: limit.maximum, maximum: limit.maximum };
    // If it cannot be raised, the part with the largest fleet fails.
    let _ = setrlimit(Resource::Nofile, raised);
}
