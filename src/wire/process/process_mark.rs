//! Finds processes that left their group (`setsid`): each child gets an environment variable, which its descendants
//! inherit. Reads it from `/proc` (Linux); on other systems no process is found.

use std::collections::HashSet;
use std::fs::DirEntry;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use tokio::sync::Mutex;
use tokio::time::{Instant, sleep};
use tracing::debug;

use super::group::process_group;

/// The environment variable of every child, inherited by its descendants.
const MARK_VARIABLE: &str = "EVENKEEL_GUARD";
/// The time between SIGTERM and SIGKILL to such processes.
const TERM_TIMEOUT: Duration = Duration::from_secs(1);
/// The interval between scans for remaining processes.
const SCAN_INTERVAL: Duration = Duration::from_millis(50);
/// The maximum number of scans after [`TERM_TIMEOUT`]. Processes that survive SIGKILL for longer are left. A number and
/// not a time, because evenkeel itself may be suspended meanwhile.
const MAX_KILL_SCANS: u32 = 40;

/// The marks of the children of one evenkeel instance. Cheap to clone.
#[derive(Clone, Debug)]
pub(super) struct ProcessMarks(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    /// The common prefix of all marks.
    prefix: String,
    next_number: AtomicU64,
    scans_requested: AtomicU64,
    /// The result of the last scan, and the number of the latest scan request that it satisfies.
    last_scan: Mutex<(u64, Arc<[MarkedProcess]>)>,
}

/// The mark of one child and its descendants.
#[derive(Debug)]
pub(in crate::wire) struct ProcessMark {
    marks: ProcessMarks,
    value: String,
}

type MarkedProcess = (Pid, String);

impl ProcessMarks {
    pub(super) fn new() -> Self {
        let prefix = format!("{}/", uuid::Uuid::new_v4());
        let (next_number, scans_requested) = (AtomicU64::new(0), AtomicU64::new(0));
        Self(Arc::new(Inner {
            prefix,
            next_number,
            scans_requested,
            last_scan: Mutex::new((0, Arc::from([]))),
        }))
    }

    /// Returns the common prefix of all marks.
    pub(super) fn prefix(&self) -> &str {
        &self.0.prefix
    }

    /// Returns the mark for one more child.
    pub(super) fn next_mark(&self) -> ProcessMark {
        let number = self.0.next_number.fetch_add(1, Ordering::Relaxed);
        ProcessMark { marks: self.clone(), value: format!("{}{number}", self.0.prefix) }
    }

    /// Returns all marked processes. One scan serves all callers that arrived before it began, because many children
    /// may exit at once.
    async fn scan(&self) -> Arc<[MarkedProcess]> {
        let request = self.0.scans_requested.fetch_add(1, Ordering::AcqRel) + 1;
        let mut last_scan = self.0.last_scan.lock().await;
        if last_scan.0 < request {
            let (requests, prefix) = (self.0.scans_requested.load(Ordering::Acquire), self.0.prefix.clone());
            let processes = tokio::task::spawn_blocking(move || marked_processes(&prefix)).await;
            *last_scan = (requests, processes.unwrap_or_default().into());
        }
        last_scan.1.clone()
    }
}

impl ProcessMark {
    /// Returns the name and value of the environment variable for the child.
    pub(super) fn env_var(&self) -> (&'static str, &str) {
        (MARK_VARIABLE, &self.value)
    }

    /// Kills the processes that have the mark, after the child and its group have ended: by SIGTERM, then by SIGKILL.
    pub(super) async fn kill_marked(&self) {
        let (start, mut signaled, mut kill_scans) = (Instant::now(), HashSet::new(), 0);
        while kill_scans < MAX_KILL_SCANS {
            let marked = self.marks.scan().await;
            let left: Vec<Pid> =
                marked.iter().filter(|(_, mark)| *mark == self.value).map(|(pid, _)| *pid).collect();
            if left.is_empty() {
                return;
            }
            let timed_out = start.elapsed() > TERM_TIMEOUT;
            kill_scans += u32::from(timed_out);
            for pid in left {
                if signaled.insert(pid) || timed_out {
                    debug!(
                        pid = pid.as_raw_nonzero(),
                        "killing a process that left the process group of its server"
                    );
                    // The process may have ended since the scan.
                    let _ = kill_process(pid, if timed_out { Signal::KILL } else { Signal::TERM });
                }
            }
            sleep(SCAN_INTERVAL).await;
        }
    }
}

/// Returns the processes whose mark starts with `prefix`, each with its mark. Blocks.
#[expect(clippy::disallowed_methods, reason = "called only where blocking is allowed")]
pub(super) fn marked_processes(prefix: &str) -> Vec<MarkedProcess> {
    let start = format!("{MARK_VARIABLE}={prefix}");
    let mark = |process: &DirEntry| {
        // Environments of other users' processes are not readable; those are not children of evenkeel.
        let environment = std::fs::read(process.path().join("environ")).ok()?;
        let variable =
            environment.split(|byte| *byte == 0).find(|entry| entry.starts_with(start.as_bytes()))?;
        let (_, value) = std::str::from_utf8(variable).ok()?.split_once('=')?;
        Some(value.to_owned())
    };
    let processes = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    processes
        .filter_map(|process| {
            let pid = process_group(process.file_name().to_str()?.parse().ok()?)?;
            Some((pid, mark(&process)?))
        })
        .collect()
}
