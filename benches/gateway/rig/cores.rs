//! Pins the processes to cores and raises their priority, to keep the scheduler from affecting the result. The measured
//! process runs on one core, the load and the servers on another. Pins nothing on other systems than Linux and with
//! fewer than two cores.

use std::io;
use std::sync::OnceLock;

use tokio::process::{Child, Command};

/// The nice value of all processes of the run.
const NICE_VALUE: i32 = -15;

#[derive(Clone, Copy)]
struct Cores {
    measured: usize,
    load: usize,
}

/// The cores to which processes are pinned; unset if they are not pinned.
static CORES: OnceLock<Cores> = OnceLock::new();

/// Pins the calling thread, and the processes that it starts afterwards, to the load core. Returns a description for
/// the report.
pub fn pin_load() -> String {
    let available = system::available_cores();
    let (Some(&measured), Some(&load)) = (available.first(), available.get(1)) else {
        return "not pinned (fewer than two cores, or not Linux)".to_owned();
    };
    if let Err(error) = system::pin(load) {
        return format!("not pinned ({error})");
    }
    CORES.get_or_init(|| Cores { measured, load });
    format!("measured on core {measured}, load and servers on core {load}")
}

/// Starts a process on the core of the measured process. Assumes that [`pin_load`] was called on the same thread.
pub fn spawn_measured(command: &mut Command) -> io::Result<Child> {
    let Some(cores) = CORES.get() else {
        return command.spawn();
    };
    // A process inherits the affinity of the thread that starts it, and sizes its thread pool by it.
    system::pin(cores.measured)?;
    let child = command.spawn();
    system::pin(cores.load)?;
    child
}

/// Raises the priority of this process, and of the processes that it starts afterwards: evenkeel, floors, servers and
/// load. Other processes then rarely interrupt them, and put less data into the caches. Returns a description for the
/// report. Requires root.
pub fn raise_priority() -> String {
    match rustix::process::setpriority_process(None, NICE_VALUE) {
        Ok(()) => format!("priority {NICE_VALUE}"),
        Err(_) => "priority not raised (not permitted)".to_owned(),
    }
}

/// Returns the load core, or `None` if nothing is pinned.
pub fn load_core() -> Option<usize> {
    CORES.get().map(|cores| cores.load)
}

/// Pins the calling thread to a core.
pub fn pin(core: usize) -> io::Result<()> {
    system::pin(core)
}

#[cfg(target_os = "linux")]
mod system {
    use std::io;

    use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

    pub fn available_cores() -> Vec<usize> {
        let set = sched_getaffinity(None).unwrap_or_else(|_| CpuSet::new());
        (0..CpuSet::MAX_CPU).filter(|&core| set.is_set(core)).collect()
    }

    pub fn pin(core: usize) -> io::Result<()> {
        let mut set = CpuSet::new();
        set.set(core);
        Ok(sched_setaffinity(None, &set)?)
    }
}

#[cfg(not(target_os = "linux"))]
mod system {
    use std::io;

    pub fn available_cores() -> Vec<usize> {
        Vec::new()
    }

    pub fn pin(_core: usize) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }
}
