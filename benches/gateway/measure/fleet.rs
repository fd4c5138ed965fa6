//! What a fleet costs: from nothing to all attached, the memory that it takes, and what one more server or
//! one rewritten file costs when it is there.

use std::time::Duration;

use tokio::time::{sleep, timeout};

use super::{Plan, millis};
use crate::report::{Report, Row};
use crate::rig::agent::Agent;
use crate::rig::directory::{Directory, tool};
use crate::rig::process::{Evenkeel, Helper, Memory};
use crate::rig::samples::Samples;
use crate::rig::{Era, Result};

/// Longer than changes are gathered.
const QUIET: Duration = Duration::from_millis(250);

/// How many servers there are, and what is done once they are attached.
#[derive(Clone, Copy)]
pub struct Size {
    pub servers: usize,
    /// Servers that are added, one by one.
    pub additions: usize,
    /// Files that are replaced by equal ones.
    pub touches: u32,
}

/// Measures the fleets of both eras.
pub async fn run(plan: &Plan, report: &mut Report) -> Result<()> {
    for era in Era::BOTH {
        let mut base = None;
        for size in &plan.fleets {
            fleet(plan, era, *size, &mut base, report).await?;
        }
    }
    Ok(())
}

async fn fleet(
    plan: &Plan,
    era: Era,
    size: Size,
    base: &mut Option<Memory>,
    report: &mut Report,
) -> Result<()> {
    let servers = size.servers;
    let upstream = Helper::start(&["upstream"]).await?;
    let directory = Directory::new(upstream.address).await?;
    directory.declare_many(era, servers).await?;
    let mut evenkeel = Evenkeel::start(&plan.program, &directory).await?;
    // Asked at the servers, so that the asking does not slow evenkeel.
    let listed = async {
        while upstream.counts().await?.listed < servers as u64 {
            sleep(Duration::from_millis(5)).await;
        }
        Result::Ok(())
    };
    timeout(Duration::from_mins(2), listed)
        .await
        .map_err(|_| format!("{servers} servers: not attached"))??;
    let (mut agent, at) = evenkeel.usable(era, servers, Duration::from_mins(1)).await?;
    let started = millis(at - evenkeel.started);
    report.add(
        Row::new(format!("start to {servers} servers listed"), "ms").era(era).evenkeel([started]).target(
            match servers {
                1_000 => "≤ 250",
                10_000 => "≤ 2000",
                _ => "",
            },
        ),
    );

    let memory = evenkeel.usage.settled_memory().await?;
    report.add(
        Row::new(format!("memory with {servers} servers, RSS / anonymous"), "MiB")
            .era(era)
            .evenkeel(memory.mib())
            .target(if servers == 0 { "≤ 12" } else { "" }),
    );
    let base = *base.get_or_insert(memory);
    if servers > 0 {
        let each = memory.each(&base, servers);
        report.add(
            Row::new(format!("memory per server, of {servers}"), "KiB")
                .era(era)
                .evenkeel(each)
                .target("≤ 32"),
        );
    }
    if size.additions > 0 {
        additions(era, size, &upstream, &directory, &mut agent, report).await?;
    }
    if size.touches > 0 {
        touches(era, size, &upstream, &directory, &evenkeel, &agent, report).await?;
    }
    evenkeel.stop().await
}

/// Renames files of new servers into place under an open session.
async fn additions(
    era: Era,
    size: Size,
    upstream: &Helper,
    directory: &Directory,
    agent: &mut Agent,
    report: &mut Report,
) -> Result<()> {
    let mut notices = agent.notices().await?;
    notices.quiet(QUIET).await?;
    let [mut total, mut found, mut handshake, mut published, mut ours] = [const { Vec::new() }; 5];
    let mut more = 0;
    for number in size.servers..size.servers + size.additions {
        let renamed = directory.declare(era.name(), number).await?;
        let came = notices.changed(Duration::from_secs(30)).await?;
        let counts = upstream.counts().await?;
        more += notices.quiet(QUIET).await?;
        if !agent.tools().await?.contains(&tool(era, number)) {
            return Err(format!("noticed, but {} is not listed", tool(era, number)).into());
        }
        total.push(came - renamed);
        found.push(counts.last_opened - renamed);
        handshake.push(counts.last_listed - counts.last_opened);
        published.push(came - counts.last_listed);
        ours.push(came - renamed - (counts.last_listed - counts.last_opened));
    }
    let servers = size.servers;
    let mut row = |measure: &str, times: Vec<i128>, target| {
        let samples: Samples = times
            .into_iter()
            .map(|nanos| Duration::from_nanos(nanos.try_into().unwrap_or_default()))
            .collect();
        let figures = [0.5, 0.99].map(|share| millis(samples.percentile(share)));
        report.add(
            Row::new(format!("{measure}, {servers} servers"), "ms").era(era).evenkeel(figures).target(target),
        );
    };
    row("file in place to notice p50 / p99", total, "");
    row("… of which: file to the server's first request", found, "");
    row("… of which: the server's handshake", handshake, "");
    row("… of which: its list to the notice", published, "");
    row("file in place to notice without the handshake", ours, if servers == 100 { "≤ 10" } else { "≤ 15" });
    let mut removed = Vec::new();
    for number in servers..servers + size.additions {
        let before = directory.remove(era.name(), number)?;
        removed.push(notices.changed(Duration::from_secs(30)).await? - before);
        more += notices.quiet(QUIET).await?;
    }
    // A removal waits for 200 ms of quiet and a second look.
    row("file removed to notice p50 / p99", removed, "");
    if more > 0 {
        report.add(
            Row::new(format!("notices beyond one for each of them, {servers} servers"), "")
                .era(era)
                .evenkeel([more as f64]),
        );
    }
    Ok(())
}

/// Replaces files by equal ones: nothing may come of it.
async fn touches(
    era: Era,
    size: Size,
    upstream: &Helper,
    directory: &Directory,
    evenkeel: &Evenkeel,
    agent: &Agent,
    report: &mut Report,
) -> Result<()> {
    // Long enough for a change to be looked at twice.
    let pause = Duration::from_millis(600);
    let mut notices = agent.notices().await?;
    notices.quiet(QUIET).await?;
    let idle = evenkeel.usage.cpu()?;
    sleep(pause * size.touches).await;
    let idle = evenkeel.usage.cpu()?.saturating_sub(idle);

    let requests = upstream.counts().await?.requests;
    let cpu = evenkeel.usage.cpu()?;
    for number in 0..size.touches {
        directory.declare(era.name(), number as usize).await?;
        sleep(pause).await;
    }
    let cpu = evenkeel.usage.cpu()?.saturating_sub(cpu).saturating_sub(idle);
    let requests = upstream.counts().await?.requests - requests;
    let notified = notices.quiet(QUIET).await?;
    let servers = size.servers;
    report.add(
        Row::new(format!("CPU per file replaced by an equal one, {servers} servers"), "ms")
            .era(era)
            .evenkeel([millis(cpu) / f64::from(size.touches)])
            .target(if servers == 10_000 { "≤ 20" } else { "" }),
    );
    report.add(
        Row::new(format!("… requests that reached servers / notices, {servers} servers"), "")
            .era(era)
            .evenkeel([requests as f64, notified as f64])
            .target("0 / 0"),
    );
    Ok(())
}
