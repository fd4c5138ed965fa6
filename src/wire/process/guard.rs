use std::collections::{BTreeSet, HashSet};
use std::fs::File;
use std::io::{BufRead, Write};
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use rustix::process::{Signal, kill_process, test_kill_process_group};
use tokio::process::{Child, Command};
use tokio::time::{Instant, sleep};
use tracing::{debug, warn};

use super::group::{process_group, signal_group};
use super::process_mark::{ProcessMark, ProcessMarks, marked_processes};
use crate::net::{Backoff, Delays, jitter};

/// The time between SIGTERM and SIGKILL to the process groups after the death of evenkeel.
const TERM_TIMEOUT: Duration = Duration::from_secs(1);
/// The delays before a guard that exited early is replaced.
const RESTART_DELAYS: Delays = Delays { initial: Duration::from_millis(100), max: Duration::from_secs(10) };
/// The lifetime of a guard after which its exit resets the backoff.
const STABLE_AFTER: Duration = Duration::from_secs(10);
/// The interval between scans for remaining processes.
const SCAN_INTERVAL: Duration = Duration::from_millis(50);
/// The maximum number of scans. Processes that survive SIGKILL for longer are left.
const MAX_SCANS: u32 = 100;

/// A handle to the guard: a small process that kills the process groups of the children if evenkeel dies without doing
/// so.
///
/// The guard holds the read end of a pipe. The kernel closes the write end when evenkeel dies, for whatever reason.
/// Parent-death signals are not sufficient: they depend on the spawning thread and do not reach grandchildren. Promises
/// that a killed guard is replaced at once. Processes that left their group (`setsid`), or were started at the moment
/// when evenkeel was killed, are found by a mark in their environment, which `/proc` shows (Linux only).
#[derive(Clone, Debug)]
pub struct ProcessGuard(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    program: PathBuf,
    args: Vec<String>,
    /// The marks of this evenkeel instance.
    marks: ProcessMarks,
    state: Mutex<GuardState>,
}

#[derive(Debug, Default)]
struct GuardState {
    /// The write end of the pipe; `None` while there is no guard.
    pipe: Option<File>,
    groups: BTreeSet<u32>,
}

impl ProcessGuard {
    /// Starts the guard: `program` with `args` must call [`guard_children`] on its stdin. The returned future replaces
    /// the guard whenever it ends, and must be polled for as long as evenkeel runs.
    pub fn start(program: PathBuf, args: Vec<String>) -> std::io::Result<(Self, impl Future<Output = ()>)> {
        let marks = ProcessMarks::new();
        let guard = Self(Arc::new(Inner { program, args, marks, state: Mutex::default() }));
        let mut child = guard.spawn()?;
        let handle = guard.clone();
        let replace = async move {
            let mut backoff = Backoff::default();
            loop {
                let started = Instant::now();
                let ended = child.wait().await;
                warn!(?ended, "the guard process exited; starting another");
                handle.0.state.lock().pipe = None;
                backoff.record_end(started.elapsed(), STABLE_AFTER);
                child = loop {
                    let delay = backoff.record_failure(RESTART_DELAYS, jitter(), None);
                    // Without delay, unless the previous guard exited early as well.
                    if backoff.failures() > 1 {
                        sleep(delay).await;
                    }
                    match handle.spawn() {
                        Ok(child) => break child,
                        Err(error) => warn!(%error, "cannot start the guard process; retrying"),
                    }
                };
            }
        };
        Ok((guard, replace))
    }

    fn spawn(&self) -> std::io::Result<Child> {
        let mut child = Command::new(&self.0.program)
            .args(&self.0.args)
            .env_clear()
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            // A group of its own: Ctrl-C in the terminal must not reach the guard.
            .process_group(0)
            .spawn()?;
        let stdin = child.stdin.take().ok_or_else(|| std::io::Error::other("no pipe"))?;
        let mut pipe = File::from(stdin.into_owned_fd()?);
        rustix::fs::fcntl_setfl(&pipe, rustix::fs::OFlags::empty())?;
        let mut state = self.0.state.lock();
        writeln!(pipe, "={}", self.0.marks.prefix())?;
        for group in &state.groups {
            writeln!(pipe, "+{group}")?;
        }
        state.pipe = Some(pipe);
        Ok(child)
    }

    /// Returns the mark for one more child.
    pub(in crate::wire) fn next_mark(&self) -> ProcessMark {
        self.0.marks.next_mark()
    }

    /// Adds a process group to the guard.
    pub(in crate::wire) fn add_group(&self, group: u32) {
        let mut state = self.0.state.lock();
        state.groups.insert(group);
        state.send_line(format_args!("+{group}\n"));
    }

    /// Removes a process group that has ended.
    pub(in crate::wire) fn remove_group(&self, group: u32) {
        let mut state = self.0.state.lock();
        state.groups.remove(&group);
        state.send_line(format_args!("-{group}\n"));
    }
}

impl GuardState {
    /// Writes a line to the guard. Blocks only briefly: it is a few bytes, and the guard always reads.
    fn send_line(&mut self, line: std::fmt::Arguments<'_>) {
        let written = self.pipe.as_mut().map(|pipe| pipe.write_all(line.to_string().as_bytes()));
        if let Some(Err(error)) = written {
            // The next guard gets the full list.
            debug!(%error, "cannot write to the guard process");
        }
    }
}

/// Runs in the guard process: maintains the list of process groups, and kills them when `input` closes.
pub fn guard_children(input: impl BufRead) {
    let (mut groups, mut mark_prefix) = (BTreeSet::new(), String::new());
    for line in input.lines().map_while(Result::ok) {
        match line.split_at_checked(1) {
            Some(("=", prefix)) => prefix.clone_into(&mut mark_prefix),
            Some(("+", group)) => groups.extend(group.parse::<u32>()),
            Some(("-", group)) => {
                if let Ok(group) = group.parse() {
                    groups.remove(&group);
                }
            }
            _ => {}
        }
    }
    for group in &groups {
        signal_group(*group, Signal::TERM);
    }
    let mut signaled = HashSet::new();
    for scan in 1..=MAX_SCANS {
        // A process that evenkeel was just starting is not visible yet, so the scan comes after a delay.
        sleep_blocking(SCAN_INTERVAL);
        let timed_out = SCAN_INTERVAL * scan > TERM_TIMEOUT;
        let marked = marked_processes(&mark_prefix);
        groups.retain(|pid| process_group(*pid).is_some_and(|group| test_kill_process_group(group).is_ok()));
        if marked.is_empty() && groups.is_empty() {
            return;
        }
        for (pid, _) in marked {
            let is_new = signaled.insert(pid);
            if is_new || timed_out {
                // The process may have ended since the scan.
                let _ = kill_process(pid, if timed_out { Signal::KILL } else { Signal::TERM });
            }
        }
        if timed_out {
            for group in &groups {
                signal_group(*group, Signal::KILL);
            }
        }
    }
}

#[expect(clippy::disallowed_methods, reason = "the guard is a process of its own, without a runtime")]
fn sleep_blocking(duration: Duration) {
    std::thread::sleep(duration);
}
