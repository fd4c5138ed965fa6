//! Measures what a fleet costs: from nothing to all attached, the memory that it takes, and what one more server
//! or one rewritten file costs when it is there.

use tokio::time::{Duration, sleep};

use super::controller_setup::ControllerSetup;
use super::{BenchPlan, micros, millis, millis_of_nanos};
use crate::report::{BenchSubject, Comparand, Measure, Report};
use crate::rig::process::Memory;
use crate::rig::{Era, Result};

/// Long enough for a change to be looked at twice.
const TOUCH_INTERVAL: Duration = Duration::from_millis(450);

/// Says how many servers there are, and what is done once they are attached.
#[derive(Clone, Copy)]
pub struct FleetSize {
    pub servers: usize,
    /// Servers that are added, one by one.
    pub additions: usize,
    /// Files that are replaced by equal ones.
    pub touches: usize,
}

/// Measures one round of every fleet in both eras.
pub async fn run(plan: &BenchPlan, round: usize, report: &mut Report) -> Result<()> {
    for era in Era::ALL {
        let mut base = Vec::new();
        for size in &plan.fleets {
            measure_fleet(plan, round, era, *size, &mut base, report).await?;
        }
    }
    Ok(())
}

/// Measures one fleet. The first one fills `base`, from which memory per server is counted.
async fn measure_fleet(
    plan: &BenchPlan,
    round: usize,
    era: Era,
    size: FleetSize,
    base: &mut Vec<(BenchSubject, Memory)>,
    report: &mut Report,
) -> Result<()> {
    let subjects = ControllerSetup::all_subjects(plan);
    let mut sites = Vec::new();
    for turn in BenchPlan::rotation(round, subjects.len()) {
        let Some(subject) = subjects.get(turn) else { continue };
        let (site, took) = ControllerSetup::start(*subject, era, size.servers, 0).await?;
        report.add(&cold_start(era, size.servers), site.subject, [millis(took)]);
        if size.servers > 0 {
            let cpu = micros(site.usage().cpu_times()?.total()) / size.servers as f64;
            report.add(&cold_start_cpu(era, size.servers), site.subject, [cpu]);
        }
        sites.push(site);
    }
    for site in &sites {
        let memory = site.usage().settled_memory().await?;
        report_memory(era, size.servers, site.subject, memory, base, report);
    }
    if size.additions > 0 {
        measure_additions(era, size, &mut sites, report).await?;
    }
    if size.touches > 0 {
        measure_touches(era, size, &mut sites, report).await?;
    }
    for site in sites {
        site.stop().await?;
    }
    Ok(())
}

fn cold_start(era: Era, servers: usize) -> Measure {
    let measure = Measure::new(format!("start to {servers} servers listed"), era, "ms");
    match servers {
        // The start of a process alone is too short to be compared.
        0 => measure,
        1_000 => measure.target("≤ 250").compared(Comparand::RatioToFloor),
        10_000 => measure.target("≤ 2000").compared(Comparand::RatioToFloor),
        _ => measure.compared(Comparand::RatioToFloor),
    }
}

fn cold_start_cpu(era: Era, servers: usize) -> Measure {
    Measure::new(format!("… CPU per server, of {servers}"), era, "µs").compared(Comparand::RatioToFloor)
}

fn report_memory(
    era: Era,
    servers: usize,
    subject: BenchSubject,
    memory: Memory,
    base: &mut Vec<(BenchSubject, Memory)>,
    report: &mut Report,
) {
    let known = base.iter().find(|(known, _)| *known == subject).map(|(_, memory)| *memory);
    let Some(base) = known else {
        base.push((subject, memory));
        let [resident, anonymous] = memory.mib();
        let name = |kind| format!("memory with {servers} servers, {kind}");
        let measure = Measure::new(name("resident"), era, "MiB").target("≤ 12").compared(Comparand::Value);
        report.add(&measure, subject, [resident]);
        report.add(&Measure::new(name("anonymous"), era, "MiB"), subject, [anonymous]);
        return;
    };
    let [resident, anonymous] = memory.per_item(&base, servers);
    let name = |kind| format!("memory per server, of {servers}, {kind}");
    let measure = Measure::new(name("resident"), era, "KiB").target("≤ 32").compared(Comparand::Value);
    report.add(&measure, subject, [resident]);
    report.add(&Measure::new(name("anonymous"), era, "KiB"), subject, [anonymous]);
}

/// Renames files of new servers into place, at each site in turn, under an open session.
async fn measure_additions(
    era: Era,
    size: FleetSize,
    sites: &mut [ControllerSetup],
    report: &mut Report,
) -> Result<()> {
    let servers = size.servers;
    let measure = |name: &str| Measure::new(format!("{name}, {servers} servers"), era, "ms");
    let total = measure("file in place to notice").compared(Comparand::RatioToFloor);
    let found = measure("… of which: file to the server's first request");
    let handshake = measure("… of which: the server's handshake");
    let published = measure("… of which: its list to the notice");
    let own = measure("… without the handshake").target(if servers == 100 { "≤ 10" } else { "≤ 15" });
    let measures = [total, found, handshake, published, own];
    for site in sites.iter_mut() {
        site.listen().await?;
    }
    let mut times: Vec<[Vec<f64>; 5]> = sites.iter().map(|_| Default::default()).collect();
    let mut more = 0;
    for addition in 0..size.additions {
        let number = servers + addition;
        for turn in BenchPlan::rotation(addition, sites.len()) {
            let (Some(site), Some(times)) = (sites.get_mut(turn), times.get_mut(turn)) else { continue };
            let renamed = site.directory.declare(era.name(), number).await?;
            let came = site.wait_for_change().await?;
            let counts = site.upstream.counts().await?;
            more += site.wait_for_quiet().await?;
            site.expect_tool(era, number).await?;
            let handshake = counts.last_listed - counts.last_opened;
            let parts = [
                came - renamed,
                counts.last_opened - renamed,
                handshake,
                came - counts.last_listed,
                came - renamed - handshake,
            ];
            for (times, nanos) in times.iter_mut().zip(parts) {
                times.push(millis_of_nanos(nanos));
            }
        }
    }
    for (site, times) in sites.iter().zip(times) {
        for (measure, times) in measures.iter().zip(times) {
            report.add(measure, site.subject, times);
        }
    }
    // Evenkeel waits for 200 ms of quiet and looks a second time before it removes a server.
    let removal = measure("file removed to notice");
    for site in sites.iter_mut() {
        let before = site.directory.remove(era.name(), servers)?;
        let came = site.wait_for_change().await?;
        more += site.wait_for_quiet().await?;
        report.add(&removal, site.subject, [millis_of_nanos(came - before)]);
    }
    if more > 0 {
        return Err(format!("{more} notices beyond one for each change, {servers} servers").into());
    }
    Ok(())
}

/// Replaces files by equal ones, at all sites at once: nothing may come of it but a look at the directory.
async fn measure_touches(
    era: Era,
    size: FleetSize,
    sites: &mut [ControllerSetup],
    report: &mut Report,
) -> Result<()> {
    let servers = size.servers;
    let pauses = u32::try_from(size.touches)?;
    let readings = |sites: &[ControllerSetup]| {
        sites.iter().map(|site| site.usage().cpu_times()).collect::<Result<Vec<_>>>()
    };
    let idle_before = readings(sites)?;
    sleep(TOUCH_INTERVAL * pauses).await;
    let before = readings(sites)?;
    let mut requests = Vec::new();
    for site in sites.iter() {
        requests.push(site.upstream.counts().await?.requests);
    }
    for number in 0..size.touches {
        for site in sites.iter() {
            site.directory.declare(era.name(), number).await?;
        }
        sleep(TOUCH_INTERVAL).await;
    }
    let after = readings(sites)?;
    let cpu = Measure::new(format!("CPU per file replaced by an equal one, {servers} servers"), era, "ms")
        .target(if servers == 10_000 { "≤ 20" } else { "" })
        .compared(Comparand::RatioToFloor);
    let reached =
        Measure::new(format!("… requests that reached servers, {servers} servers"), era, "").target("0");
    let notified = Measure::new(format!("… notices, {servers} servers"), era, "").target("0");
    let readings = idle_before.iter().zip(&before).zip(&after);
    for ((site, requests), ((idle_before, before), after)) in sites.iter_mut().zip(requests).zip(readings) {
        let spent = after.since(before).saturating_sub(before.since(idle_before));
        let more = site.upstream.counts().await?.requests - requests;
        let notices = site.wait_for_quiet().await?;
        report.add(&cpu, site.subject, [millis(spent) / f64::from(pauses)]);
        report.add(&reached, site.subject, [more as f64]);
        report.add(&notified, site.subject, [notices as f64]);
    }
    Ok(())
}
