//! Finds the processes of a server, also those that left its process group (`setsid`): each child gets an environment
//! variable, which its descendants inherit. Reads it from `/proc` (Linux); on other systems only the group is found.

use std::fs::DirEntry;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::process::Pid;
use tokio::sync::Mutex;

use super::group::{group_exists, process_group};
use super::proc_stat::ProcStat;

/// The environment variable of every child, inherited by its descendants.
const MARK_VARIABLE: &str = "EVENKEEL_GUARD";
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
    last_scan: Mutex<(u64, Arc<[LiveProcess]>)>,
}

/// The mark of one child and its descendants.
#[derive(Debug)]
pub(in crate::wire) struct ProcessMark {
    marks: ProcessMarks,
    value: String,
}

/// A process that is running, and not only waiting to be reaped.
#[derive(Debug)]
struct LiveProcess {
    pid: Pid,
    group: Option<Pid>,
    /// The mark, if it has the prefix that was searched for.
    mark: Option<String>,
}

/// The processes of a child that are left after its exit.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct RemainingProcesses {
    /// True if its process group has a live process.
    pub(super) in_group: bool,
    /// The processes that left the group.
    pub(super) outside: Vec<Pid>,
}

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

    /// Returns all live processes. One scan serves all callers that arrived before it began, because many children may
    /// exit at once.
    async fn scan(&self) -> Arc<[LiveProcess]> {
        let request = self.0.scans_requested.fetch_add(1, Ordering::AcqRel) + 1;
        let mut last_scan = self.0.last_scan.lock().await;
        if last_scan.0 < request {
            let (requests, prefix) = (self.0.scans_requested.load(Ordering::Acquire), self.0.prefix.clone());
            let processes = tokio::task::spawn_blocking(move || live_processes(&prefix)).await;
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

    /// Returns the processes of a child that has exited: those in the process group that it led, and those that left it
    /// but have the mark.
    pub(super) async fn remaining(&self, leader: u32) -> RemainingProcesses {
        let group = process_group(leader);
        if !cfg!(target_os = "linux") {
            return RemainingProcesses { in_group: group_exists(leader), outside: Vec::new() };
        }
        let mut remaining = RemainingProcesses::default();
        for process in self.marks.scan().await.iter() {
            if process.group == group {
                remaining.in_group = true;
            } else if process.mark.as_ref() == Some(&self.value) {
                remaining.outside.push(process.pid);
            }
        }
        remaining
    }
}

/// Returns the live processes whose mark starts with `prefix`. Blocks.
pub(super) fn marked_processes(prefix: &str) -> Vec<Pid> {
    let is_marked = |process: &LiveProcess| process.mark.is_some();
    live_processes(prefix).into_iter().filter(is_marked).map(|process| process.pid).collect()
}

/// Returns the live processes of the system, with the marks that start with `prefix`. Blocks.
#[expect(clippy::disallowed_methods, reason = "called only where blocking is allowed")]
fn live_processes(prefix: &str) -> Vec<LiveProcess> {
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
            let stat = ProcStat::parse(&std::fs::read(process.path().join("stat")).ok()?)?;
            (!stat.has_exited).then(|| LiveProcess { pid, group: stat.group, mark: mark(&process) })
        })
        .collect()
}
