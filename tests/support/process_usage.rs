//! The memory, descriptors, threads and children of a process, as Linux reports them.

use std::fmt;
use std::fs;
use std::time::Duration;

/// How long a process is watched. Longer than a thread for blocking work waits for more.
const IDLE_PERIOD: Duration = Duration::from_secs(25);

/// The resources of a process at one instant.
#[derive(Clone, Copy, Debug)]
pub struct ProcessUsage {
    /// The resident anonymous memory, in KiB: heap, stacks and buffers, without the program's file.
    pub anonymous_kib: u64,
    /// The counts of everything else.
    pub counts: ProcessCounts,
}

/// The counts that must be exactly as before when a process is idle again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProcessCounts {
    pub descriptors: usize,
    pub threads: usize,
    pub children: usize,
}

impl ProcessUsage {
    /// Reads the usage of a running process.
    pub fn of(pid: u32) -> Self {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let entries = |folder: &str| fs::read_dir(format!("/proc/{pid}/{folder}")).unwrap();
        let number = |field: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(field)).expect("the field is there");
            line.trim_matches([':', '\t', ' ']).trim_end_matches(" kB").parse().unwrap()
        };
        // Each thread lists the children that it started. A thread may end while it is read.
        let children = entries("task")
            .filter_map(|thread| fs::read_to_string(thread.ok()?.path().join("children")).ok())
            .map(|children| children.split_whitespace().count())
            .sum();
        let threads = entries("task").count();
        let counts = ProcessCounts { descriptors: entries("fd").count(), threads, children };
        Self { anonymous_kib: number("RssAnon"), counts }
    }

    /// Watches a process that has nothing to do for a while, and returns the least of each kind: a periodic scan of the
    /// declarations needs a thread for a moment.
    pub async fn of_idle(pid: u32) -> Self {
        let mut least = Self::of(pid);
        for _ in 0..IDLE_PERIOD.as_secs() {
            tokio::time::sleep(Duration::from_secs(1)).await;
            let now = Self::of(pid);
            least = Self {
                anonymous_kib: least.anonymous_kib.min(now.anonymous_kib),
                counts: ProcessCounts {
                    descriptors: least.counts.descriptors.min(now.counts.descriptors),
                    threads: least.counts.threads.min(now.counts.threads),
                    children: least.counts.children.min(now.counts.children),
                },
            };
        }
        least
    }
}

impl fmt::Display for ProcessUsage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ProcessCounts { descriptors, threads, children } = self.counts;
        let [whole, tenth] = [self.anonymous_kib / 1024, self.anonymous_kib % 1024 * 10 / 1024];
        write!(
            f,
            "{whole}.{tenth} MiB anonymous, {descriptors} descriptors, {threads} threads, {children} children"
        )
    }
}
