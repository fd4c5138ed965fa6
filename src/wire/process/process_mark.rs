//! How processes are found that left their group (`setsid`): each child gets a variable in its environment, and what
//! it starts has it too. Where `/proc` shows that (Linux); elsewhere none is found.

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

/// The variable that every child inherits, and passes on.
const MARK_VARIABLE: &str = "EVENKEEL_GUARD";
/// How long such processes have between SIGTERM and SIGKILL.
const TERM_TIMEOUT: Duration = Duration::from_secs(1);
/// The time between two looks at what is left.
const SCAN_INTERVAL: Duration = Duration::from_millis(50);
/// So many looks after that, and what SIGKILL did not end is left. Not a time: evenkeel itself may stand still for as long.
const MAX_KILL_SCANS: u32 = 40;

/// The marks of one evenkeel's children. Cheap to clone.
#[derive(Clone, Debug)]
pub(super) struct ProcessMarks(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    /// What all of them begin with.
    prefix: String,
    next_number: AtomicU64,
    scans_requested: AtomicU64,
    /// What the last look found, and which looks that were asked for it stands for.
    last_scan: Mutex<(u64, Arc<[MarkedProcess]>)>,
}

/// The mark of one child and of what it starts.
#[derive(Debug)]
pub(in crate::wire) struct ProcessMark {
    marks: ProcessMarks,
    value: String,
}

type MarkedProcess = (Pid, String);

impl ProcessMarks {
    pub(super) fn new() -> Self {
        let own = format!("{}/", uuid::Uuid::new_v4());
        let (given, looks) = (AtomicU64::new(0), AtomicU64::new(0));
        Self(Arc::new(Inner {
            prefix: own,
            next_number: given,
            scans_requested: looks,
            last_scan: Mutex::new((0, Arc::from([]))),
        }))
    }

    /// What every mark begins with.
    pub(super) fn prefix(&self) -> &str {
        &self.0.prefix
    }

    /// A mark for one more child.
    pub(super) fn next_mark(&self) -> ProcessMark {
        let number = self.0.next_number.fetch_add(1, Ordering::Relaxed);
        ProcessMark { marks: self.clone(), value: format!("{}{number}", self.0.prefix) }
    }

    /// All marked processes. One look serves all who asked before it began: many children may end at once.
    async fn scan(&self) -> Arc<[MarkedProcess]> {
        let asked = self.0.scans_requested.fetch_add(1, Ordering::AcqRel) + 1;
        let mut found = self.0.last_scan.lock().await;
        if found.0 < asked {
            let (all, own) = (self.0.scans_requested.load(Ordering::Acquire), self.0.prefix.clone());
            let processes = tokio::task::spawn_blocking(move || marked_processes(&own)).await;
            *found = (all, processes.unwrap_or_default().into());
        }
        found.1.clone()
    }
}

impl ProcessMark {
    /// The variable for the child's environment, and its value.
    pub(super) fn env_var(&self) -> (&'static str, &str) {
        (MARK_VARIABLE, &self.value)
    }

    /// Ends what bears the mark, now that the child and its group have ended: by SIGTERM, and soon by SIGKILL.
    pub(super) async fn kill_marked(&self) {
        let (begun, mut known, mut kills) = (Instant::now(), HashSet::new(), 0);
        while kills < MAX_KILL_SCANS {
            let found = self.marks.scan().await;
            let left: Vec<Pid> =
                found.iter().filter(|(_, mark)| *mark == self.value).map(|(pid, _)| *pid).collect();
            if left.is_empty() {
                return;
            }
            let late = begun.elapsed() > TERM_TIMEOUT;
            kills += u32::from(late);
            for pid in left {
                if known.insert(pid) || late {
                    debug!(pid = pid.as_raw_nonzero(), "a process left the group of its server; it is ended");
                    // It may have ended since.
                    let _ = kill_process(pid, if late { Signal::KILL } else { Signal::TERM });
                }
            }
            sleep(SCAN_INTERVAL).await;
        }
    }
}

/// The processes whose mark begins so, each with its mark. Blocks.
#[expect(clippy::disallowed_methods, reason = "called where blocking is right")]
pub(super) fn marked_processes(own: &str) -> Vec<MarkedProcess> {
    let begin = format!("{MARK_VARIABLE}={own}");
    let mark = |process: &DirEntry| {
        // Those of other users cannot be read, and are not ours.
        let environment = std::fs::read(process.path().join("environ")).ok()?;
        let variable = environment.split(|byte| *byte == 0).find(|one| one.starts_with(begin.as_bytes()))?;
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
