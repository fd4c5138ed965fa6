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

/// How long process groups have between SIGTERM and SIGKILL once evenkeel is gone.
const TERM_TIMEOUT: Duration = Duration::from_secs(1);
/// The delays before a guard is started that takes the place of one which did not last.
const RESTART_DELAYS: Delays = Delays { initial: Duration::from_millis(100), max: Duration::from_secs(10) };
/// A guard that lasted so long began well.
const STABLE_AFTER: Duration = Duration::from_secs(10);
/// The time between two looks at what is left.
const SCAN_INTERVAL: Duration = Duration::from_millis(50);
/// So many looks, and what SIGKILL did not end is left.
const MAX_SCANS: u32 = 100;

/// A small process that ends our children's process groups when evenkeel dies without doing so.
///
/// It holds the read end of a pipe; the kernel closes the write end with evenkeel, however that ends.
/// Parent-death signals would not do: they follow the spawning thread and miss grandchildren. Promises that
/// a killed guard is replaced at once. What left its group (`setsid`), or was started in the very moment in
/// which evenkeel was killed, is known by a mark in its environment, where `/proc` shows that (Linux).
#[derive(Clone, Debug)]
pub struct ProcessGuard(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    program: PathBuf,
    args: Vec<String>,
    /// Of this evenkeel and no other.
    marks: ProcessMarks,
    state: Mutex<GuardState>,
}

#[derive(Debug, Default)]
struct GuardState {
    /// The write end; `None` while there is no guard.
    pipe: Option<File>,
    groups: BTreeSet<u32>,
}

impl ProcessGuard {
    /// Starts the guard: `program` with `args` must call [`watch`] on its stdin. The future replaces it
    /// whenever it ends; it must be driven for as long as evenkeel runs.
    pub fn start(program: PathBuf, args: Vec<String>) -> std::io::Result<(Self, impl Future<Output = ()>)> {
        let marks = ProcessMarks::new();
        let guard = Self(Arc::new(Inner { program, args, marks, state: Mutex::default() }));
        let mut child = guard.spawn()?;
        let keeper = guard.clone();
        let keep = async move {
            let mut backoff = Backoff::default();
            loop {
                let started = Instant::now();
                let ended = child.wait().await;
                warn!(?ended, "the guard process ended; starting another");
                keeper.0.state.lock().pipe = None;
                backoff.record_end(started.elapsed(), STABLE_AFTER);
                child = loop {
                    let wait = backoff.record_failure(RESTART_DELAYS, jitter(), None);
                    // At once, unless the last one did not last either.
                    if backoff.failures() > 1 {
                        sleep(wait).await;
                    }
                    match keeper.spawn() {
                        Ok(child) => break child,
                        Err(error) => warn!(%error, "the guard process could not be started"),
                    }
                };
            }
        };
        Ok((guard, keep))
    }

    fn spawn(&self) -> std::io::Result<Child> {
        let mut child = Command::new(&self.0.program)
            .args(&self.0.args)
            .env_clear()
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            // Out of reach of Ctrl-C in the terminal.
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

    /// What tells which processes are ours, and of one child.
    pub(in crate::wire) fn next_mark(&self) -> ProcessMark {
        self.0.marks.next_mark()
    }

    /// Puts a process group under guard.
    pub(in crate::wire) fn add_group(&self, group: u32) {
        let mut state = self.0.state.lock();
        state.groups.insert(group);
        state.send_line(format_args!("+{group}\n"));
    }

    /// Takes out a process group that has ended.
    pub(in crate::wire) fn remove_group(&self, group: u32) {
        let mut state = self.0.state.lock();
        state.groups.remove(&group);
        state.send_line(format_args!("-{group}\n"));
    }
}

impl GuardState {
    /// A few bytes into a pipe that is always read: written at once, so that no moment is lost.
    fn send_line(&mut self, line: std::fmt::Arguments<'_>) {
        let written = self.pipe.as_mut().map(|pipe| pipe.write_all(line.to_string().as_bytes()));
        if let Some(Err(error)) = written {
            // Its successor is told everything.
            debug!(%error, "the guard process does not listen");
        }
    }
}

/// The guard's own work: keeps the list of process groups, and ends them when `input` closes.
pub fn guard_children(input: impl BufRead) {
    let (mut groups, mut mark) = (BTreeSet::new(), String::new());
    for line in input.lines().map_while(Result::ok) {
        match line.split_at_checked(1) {
            Some(("=", told)) => told.clone_into(&mut mark),
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
    let mut known = HashSet::new();
    for look in 1..=MAX_SCANS {
        // One that evenkeel was just starting is not there yet: looking comes after a pause.
        sleep_blocking(SCAN_INTERVAL);
        let late = SCAN_INTERVAL * look > TERM_TIMEOUT;
        let marked = marked_processes(&mark);
        groups.retain(|pid| process_group(*pid).is_some_and(|group| test_kill_process_group(group).is_ok()));
        if marked.is_empty() && groups.is_empty() {
            return;
        }
        for (pid, _) in marked {
            let first = known.insert(pid);
            if first || late {
                // It may have ended since.
                let _ = kill_process(pid, if late { Signal::KILL } else { Signal::TERM });
            }
        }
        if late {
            for group in &groups {
                signal_group(*group, Signal::KILL);
            }
        }
    }
}

#[expect(clippy::disallowed_methods, reason = "the guard is a process of its own, without a runtime")]
fn sleep_blocking(time: Duration) {
    std::thread::sleep(time);
}
