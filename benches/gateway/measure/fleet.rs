//! Measures the cost of a fleet: the time until all servers are attached, the memory, and the cost of one more server
//! or of one rewritten file.

use tokio::time::{Duration, sleep};

use super::controller_setup::ControllerSetup;
use super::{BenchPlan, micros, millis, millis_of_nanos};
use crate::report::{BenchSubject, Comparand, Measure, Report};
use crate::rig::process::Memory;
use crate::rig::{Era, Result};

/// The interval between touches: long enough for two scans of a change.
const TOUCH_INTERVAL: Duration = Duration::from_millis(450);

/// The size of a fleet, and the changes after it is attached.
#[derive(Clone, Copy)]
pub struct FleetSize {
    pub servers: usize,
    /// The number of servers that are added one by one.
    pub additions: usize,
    /// The number of files that are replaced by identical ones.
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

/// Measures one fleet. The first fleet sets `base`, which is subtracted for the memory per server.
async fn measure_fleet(
    plan: &BenchPlan,
    round: usize,
    era: Era,
    size: FleetSize,
    base: &mut Vec<(BenchSubject, Memory)>,
    report: &mut Report,
) -> Result<()> {
    let subjects = ControllerSetup::all_subjects(plan);
    let mut setups = Vec::new();
    for index in BenchPlan::rotation(round, subjects.len()) {
        let Some(subject) = subjects.get(index) else { continue };
        let (setup, elapsed) = ControllerSetup::start(*subject, era, size.servers, 0).await?;
        report.add(&cold_start(era, size.servers), setup.subject, [millis(elapsed)]);
        if size.servers > 0 {
            let cpu = micros(setup.usage().cpu_times()?.total()) / size.servers as f64;
            report.add(&cold_start_cpu(era, size.servers), setup.subject, [cpu]);
        }
        setups.push(setup);
    }
    for setup in &setups {
        let memory = setup.usage().settled_memory().await?;
        report_memory(era, size.servers, setup.subject, memory, base, report);
    }
    if size.additions > 0 {
        measure_additions(era, size, &mut setups, report).await?;
    }
    if size.touches > 0 {
        measure_touches(era, size, &mut setups, report).await?;
    }
    for setup in setups {
        setup.stop().await?;
    }
    Ok(())
}

fn cold_start(era: Era, servers: usize) -> Measure {
    let measure = Measure::new(format!("start to {servers} servers listed"), era, "ms");
    match servers {
        // The start of a process without servers is too short to be compared.
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
    let base_memory = base.iter().find(|(of, _)| *of == subject).map(|(_, memory)| *memory);
    let Some(base) = base_memory else {
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

/// Renames files of new servers into place, for each controller in turn, with an open session.
async fn measure_additions(
    era: Era,
    size: FleetSize,
    setups: &mut [ControllerSetup],
    report: &mut Report,
) -> Result<()> {
    let servers = size.servers;
    let measure = |name: &str| Measure::new(format!("{name}, {servers} servers"), era, "ms");
    let total = measure("file in place to notice").compared(Comparand::RatioToFloor);
    let found = measure("… of which: file to the server's first request");
    let handshake = measure("… of which: the server's handshake");
    let published = measure("… of which: its list to the notice");
    let without_handshake =
        measure("… without the handshake").target(if servers == 100 { "≤ 10" } else { "≤ 15" });
    let measures = [total, found, handshake, published, without_handshake];
    for setup in setups.iter_mut() {
        setup.listen().await?;
    }
    let mut times: Vec<[Vec<f64>; 5]> = setups.iter().map(|_| Default::default()).collect();
    let mut extra_notifications = 0;
    for addition in 0..size.additions {
        let number = servers + addition;
        for index in BenchPlan::rotation(addition, setups.len()) {
            let (Some(setup), Some(times)) = (setups.get_mut(index), times.get_mut(index)) else { continue };
            let renamed_at = setup.directory.declare(era.name(), number).await?;
            let notified_at = setup.wait_for_change().await?;
            let counts = setup.upstream.counts().await?;
            extra_notifications += setup.wait_for_quiet().await?;
            setup.expect_tool(era, number).await?;
            let handshake = counts.last_listed - counts.last_opened;
            let parts = [
                notified_at - renamed_at,
                counts.last_opened - renamed_at,
                handshake,
                notified_at - counts.last_listed,
                notified_at - renamed_at - handshake,
            ];
            for (times, nanos) in times.iter_mut().zip(parts) {
                times.push(millis_of_nanos(nanos));
            }
        }
    }
    for (setup, times) in setups.iter().zip(times) {
        for (measure, times) in measures.iter().zip(times) {
            report.add(measure, setup.subject, times);
        }
    }
    // Evenkeel waits for 200 ms without changes and scans a second time before it removes a server.
    let removal = measure("file removed to notice");
    for setup in setups.iter_mut() {
        let removed_at = setup.directory.remove(era.name(), servers)?;
        let notified_at = setup.wait_for_change().await?;
        extra_notifications += setup.wait_for_quiet().await?;
        report.add(&removal, setup.subject, [millis_of_nanos(notified_at - removed_at)]);
    }
    if extra_notifications > 0 {
        return Err(format!(
            "{extra_notifications} notifications more than one per change, {servers} servers"
        )
        .into());
    }
    Ok(())
}

/// Replaces files by identical ones, for all controllers at once. The only effect may be a scan of the directory.
async fn measure_touches(
    era: Era,
    size: FleetSize,
    setups: &mut [ControllerSetup],
    report: &mut Report,
) -> Result<()> {
    let servers = size.servers;
    let touches = u32::try_from(size.touches)?;
    let readings = |setups: &[ControllerSetup]| {
        setups.iter().map(|setup| setup.usage().cpu_times()).collect::<Result<Vec<_>>>()
    };
    let idle_before = readings(setups)?;
    sleep(TOUCH_INTERVAL * touches).await;
    let before = readings(setups)?;
    let mut requests = Vec::new();
    for setup in setups.iter() {
        requests.push(setup.upstream.counts().await?.requests);
    }
    for number in 0..size.touches {
        for setup in setups.iter() {
            setup.directory.declare(era.name(), number).await?;
        }
        sleep(TOUCH_INTERVAL).await;
    }
    let after = readings(setups)?;
    let cpu = Measure::new(format!("CPU per file replaced by an equal one, {servers} servers"), era, "ms")
        .target(if servers == 10_000 { "≤ 20" } else { "" })
        .compared(Comparand::RatioToFloor);
    let reached =
        Measure::new(format!("… requests that reached servers, {servers} servers"), era, "").target("0");
    let notified = Measure::new(format!("… notices, {servers} servers"), era, "").target("0");
    let readings = idle_before.iter().zip(&before).zip(&after);
    for ((setup, requests), ((idle_before, before), after)) in setups.iter_mut().zip(requests).zip(readings) {
        let spent = after.since(before).saturating_sub(before.since(idle_before));
        let extra_requests = setup.upstream.counts().await?.requests - requests;
        let notifications = setup.wait_for_quiet().await?;
        report.add(&cpu, setup.subject, [millis(spent) / f64::from(touches)]);
        report.add(&reached, setup.subject, [extra_requests as f64]);
        report.add(&notified, setup.subject, [notifications as f64]);
    }
    Ok(())
}
