//! What evenkeel costs and how fast it is, measured in one run beside a direct connection to the same
//! server and, for calls, beside the least that any proxy costs on the machine.
//!
//! `cargo bench --bench gateway` prints a table and writes the same figures as JSON; `docs/benchmarks.md`
//! explains them. All traffic stays on the loopback, all counts and times are bounded, and every process
//! that is started is ended.

#![expect(clippy::cast_precision_loss, reason = "no count comes near 2^53")]

mod measure;
mod report;
mod rig;

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, ValueEnum};
use tokio::net::TcpListener;

use measure::{Plan, calls, fleet, hang, sessions};
use report::Report;
use rig::Result;

/// Measures evenkeel beside a direct connection.
#[derive(Parser)]
struct Args {
    /// More rounds, and a fleet of 10,000.
    #[arg(long)]
    full: bool,
    /// Only these parts.
    #[arg(long, value_enum)]
    only: Vec<Part>,
    /// The program to measure.
    #[arg(long, default_value = env!("CARGO_BIN_EXE_evenkeel"))]
    evenkeel: PathBuf,
    /// Given by `cargo bench`.
    #[arg(long, hide = true)]
    bench: bool,
    /// Be one of the processes that the measures need.
    #[arg(long, value_enum, hide = true)]
    role: Option<Role>,
    /// Where the floor passes everything on to.
    #[arg(long, hide = true, default_value = "127.0.0.1:0")]
    upstream: SocketAddr,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Part {
    Calls,
    Hang,
    Fleet,
    Sessions,
}

#[derive(Clone, Copy, ValueEnum)]
enum Role {
    Upstream,
    Floor,
}

fn main() -> Result<ExitCode> {
    let args = Args::parse();
    raise_file_limit();
    // One thread is enough for all but the floor, which has what evenkeel has: one for each core.
    let mut runtime = match args.role {
        Some(Role::Floor) => tokio::runtime::Builder::new_multi_thread(),
        _ => tokio::runtime::Builder::new_current_thread(),
    };
    let runtime = runtime.enable_all().build()?;
    match args.role {
        Some(role) => {
            let serving = runtime.block_on(serve(role, args.upstream));
            // The read of stdin may never end.
            runtime.shutdown_background();
            serving.map(|()| ExitCode::SUCCESS)
        }
        None => runtime.block_on(run(args)),
    }
}

#[expect(clippy::print_stdout, reason = "a helper tells its address")]
async fn serve(role: Role, upstream: SocketAddr) -> Result<()> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
    println!("{}", listener.local_addr()?);
    let parent_gone = async { tokio::io::copy(&mut tokio::io::stdin(), &mut tokio::io::sink()).await };
    tokio::select! {
        _ = parent_gone => Ok(()),
        ended = async {
            match role {
                Role::Upstream => rig::upstream::serve(listener).await,
                Role::Floor => rig::floor::serve(listener, upstream).await,
            }
        } => ended,
    }
}

#[expect(clippy::print_stdout, clippy::print_stderr, reason = "the report, and how far it is")]
async fn run(args: Args) -> Result<ExitCode> {
    if !args.bench {
        println!("run it with: cargo bench --bench gateway");
        return Ok(ExitCode::SUCCESS);
    }
    let size = |servers, additions, touches| fleet::Size { servers, additions, touches };
    let mut plan = Plan {
        program: args.evenkeel,
        latency_rounds: 40,
        throughput_rounds: 3,
        fleets: vec![size(0, 0, 0), size(100, 30, 0), size(1_000, 10, 10)],
        sessions: 500,
        starts: 5,
    };
    if args.full {
        plan.latency_rounds = 200;
        plan.throughput_rounds = 10;
        plan.fleets.push(size(10_000, 10, 10));
        plan.starts = 20;
    }
    let mut report = Report::new(machine().await);
    for part in Part::value_variants() {
        if !args.only.is_empty() && !args.only.contains(part) {
            continue;
        }
        eprintln!("measuring: {part:?}");
        let measured = match part {
            Part::Calls => calls::run(&plan, &mut report).await,
            Part::Hang => hang::run(&plan, &mut report).await,
            Part::Fleet => fleet::run(&plan, &mut report).await,
            Part::Sessions => sessions::run(&plan, &mut report).await,
        };
        if let Err(error) = measured {
            report.fail(format!("{part:?}: {error}"));
        }
    }
    let json = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("gateway.json");
    tokio::fs::write(&json, serde_json::to_vec_pretty(&report.json())?).await?;
    println!("{report}");
    println!("The same as JSON: {}", json.display());
    Ok(if report.failed() { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// What the figures were taken on.
async fn machine() -> String {
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

/// A fleet of thousands needs as many sockets.
fn raise_file_limit() {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    let raised = rustix::process::Rlimit { current: limit.maximum, maximum: limit.maximum };
    // If it cannot be raised, the largest fleet will say so.
    let _ = setrlimit(Resource::Nofile, raised);
}
