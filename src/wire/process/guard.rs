use std::collections::{BTreeSet, HashSet};
use std::fs::File;
use std::io::{BufRead, ErrorKind, Write};
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use rustix::process::{Signal, kill_process, test_kill_process_group};
use tokio::net::unix::pipe;
use tokio::process::{Child, Command};
use tokio::sync::Notify;
use tokio::time::{Instant, sleep, timeout};
use tracing::{debug, warn};

use super::group::{process_group, signal_group};
use super::group_reports::GroupReports;
use super::process_mark::{ProcessMark, ProcessMarks, marked_processes};
use crate::net::{Backoff, Delays, jitter};

/// The time between SIGTERM and SIGKILL to the process groups after the death of evenkeel.
const TERM_TIMEOUT: Duration = Duration::from_secs(1);
/// The delays before a guard that exited early is replaced.
const RESTART_DELAYS: Delays = Delays { initial: Duration::from_millis(100), max: Duration::from_secs(10) };
/// The lifetime of a guard after which its exit resets the backoff.
const STABLE_AFTER: Duration = Duration::from_secs(10);
/// The time after which a guard that reads nothing, although its pipe is full, is killed and replaced.
const GUARD_READ_TIMEOUT: Duration = Duration::from_secs(10);
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
///
/// Never waits for the guard: a child is started even if the guard reads nothing and its pipe is full. The rest is
/// written as soon as there is room, and a guard that reads nothing for `GUARD_READ_TIMEOUT` is replaced.
#[derive(Clone, Debug)]
pub struct ProcessGuard(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    program: PathBuf,
    args: Vec<String>,
    read_timeout: Duration,
    /// The marks of this evenkeel instance.
    marks: ProcessMarks,
    state: Mutex<GuardState>,
    /// Notified when the pipe is full.
    pipe_full: Notify,
}

#[derive(Debug, Default)]
struct GuardState {
    /// `None` while there is no guard.
    pipe: Option<GuardPipe>,
    reports: GroupReports,
}

/// The write end of the pipe to the guard, which never blocks.
#[derive(Debug)]
struct GuardPipe {
    /// For writes from any thread at any time.
    file: File,
    /// A second handle of the pipe, for waiting until it has room.
    sender: Arc<pipe::Sender>,
}

/// Writes only if the runtime knows that the pipe has room. Otherwise it waits for room from then on.
struct ReadyPipe<'a>(&'a pipe::Sender);

impl Write for ReadyPipe<'_> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.try_write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl ProcessGuard {
    /// Starts the guard: `program` with `args` must call [`guard_children`] on its stdin. The returned future replaces
    /// the guard whenever it ends, and must be polled for as long as evenkeel runs.
    pub fn start(program: PathBuf, args: Vec<String>) -> std::io::Result<(Self, impl Future<Output = ()>)> {
        Self::start_with(program, args, GUARD_READ_TIMEOUT)
    }

    fn start_with(
        program: PathBuf,
        args: Vec<String>,
        read_timeout: Duration,
    ) -> std::io::Result<(Self, impl Future<Output = ()>)> {
        let inner = Inner {
            program,
            args,
            read_timeout,
            marks: ProcessMarks::new(),
            state: Mutex::default(),
            pipe_full: Notify::new(),
        };
        let guard = Self(Arc::new(inner));
        let mut child = guard.spawn()?;
        let handle = guard.clone();
        let replace = async move {
            let mut backoff = Backoff::default();
            loop {
                let started = Instant::now();
                handle.serve(&mut child).await;
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
        // Non-blocking from here on.
        let sender = pipe::Sender::from_owned_fd(stdin.into_owned_fd()?)?;
        let file = File::from(sender.as_fd().try_clone_to_owned()?);
        let mut state = self.0.state.lock();
        state.pipe = Some(GuardPipe { file, sender: Arc::new(sender) });
        state.reports.begin(self.0.marks.prefix());
        self.write_reports(&mut state);
        Ok(child)
    }

    /// Waits until the guard ends, and writes what it did not know of when its pipe was full.
    async fn serve(&self, child: &mut Child) {
        let ended = tokio::select! {
            ended = child.wait() => ended,
            () = self.write_unsent() => {
                let seconds = self.0.read_timeout.as_secs();
                warn!("the guard process has read nothing for {seconds} s; it is killed");
                // It must be dead before its pipe closes: it would take that for the end of evenkeel.
                child.kill().await.and(child.wait().await)
            }
        };
        warn!(?ended, "the guard process exited; starting another");
    }

    /// Writes the rest whenever the pipe has room again. Completes if it has none for the read timeout. Cancel safe.
    async fn write_unsent(&self) {
        'full: loop {
            self.0.pipe_full.notified().await;
            let pipe = self.0.state.lock().pipe.as_ref().map(|pipe| pipe.sender.clone());
            let Some(pipe) = pipe else { continue };
            while let Ok(ready) = timeout(self.0.read_timeout, pipe.writable()).await {
                // An error means that the runtime is shutting down.
                if ready.is_err() || !is_full(self.0.state.lock().reports.write_to(ReadyPipe(&pipe))) {
                    continue 'full;
                }
            }
            return;
        }
    }

    fn write_reports(&self, state: &mut GuardState) {
        if let Some(pipe) = &state.pipe
            && is_full(state.reports.write_to(&pipe.file))
        {
            self.0.pipe_full.notify_one();
        }
    }

    /// Returns the mark for one more child.
    pub(in crate::wire) fn next_mark(&self) -> ProcessMark {
        self.0.marks.next_mark()
    }

    /// Adds a process group to the guard. Never waits.
    pub(in crate::wire) fn add_group(&self, group: u32) {
        let mut state = self.0.state.lock();
        state.reports.add(group);
        self.write_reports(&mut state);
    }

    /// Removes a process group that has ended. Never waits.
    pub(in crate::wire) fn remove_group(&self, group: u32) {
        let mut state = self.0.state.lock();
        state.reports.remove(group);
        self.write_reports(&mut state);
    }
}

/// Returns true if the pipe has no room for the rest.
fn is_full(written: std::io::Result<()>) -> bool {
    let Err(error) = written else { return false };
    let is_full = error.kind() == ErrorKind::WouldBlock;
    if !is_full {
        // The next guard gets the full list.
        debug!(%error, "cannot write to the guard process");
    }
    is_full
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
        for pid in marked {
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

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    /// More groups than fit into a pipe.
    const GROUPS: std::ops::Range<u32> = 1_000_000..1_020_000;

    fn shell(script: &str, read_timeout: Duration) -> (ProcessGuard, impl Future<Output = ()> + use<>) {
        ProcessGuard::start_with("/bin/sh".into(), vec!["-c".into(), script.into()], read_timeout).unwrap()
    }

    #[tokio::test]
    async fn guard_that_reads_nothing_blocks_no_caller() {
        let (guard, _replace) = shell("exec sleep 60", GUARD_READ_TIMEOUT);
        let (sender, receiver) = mpsc::channel();
        // A thread of its own: a failure of this test must not block its runtime.
        std::thread::spawn(move || {
            GROUPS.for_each(|group| guard.add_group(group));
            GROUPS.for_each(|group| guard.remove_group(group));
            sender.send(()).unwrap();
        });
        assert_eq!(receiver.recv_timeout(Duration::from_secs(20)), Ok(()));
    }

    #[tokio::test]
    async fn guard_that_reads_late_gets_the_rest_and_one_that_never_reads_is_replaced() {
        for (first_guard, read_timeout) in
            [("sleep 1", Duration::from_secs(30)), ("exec sleep 60", Duration::from_millis(200))]
        {
            let folder = tempfile::tempdir().unwrap();
            let path = |name: &str| folder.path().join(name).display().to_string();
            let (first, groups) = (path("first"), path("groups"));
            let script = format!("if mkdir {first}; then {first_guard}; fi; exec cat >> {groups}");
            let (guard, replace) = shell(&script, read_timeout);
            let replace = tokio::spawn(replace);
            GROUPS.for_each(|group| guard.add_group(group));
            let last = format!("+{}\n", GROUPS.end - 1);
            let text = timeout(Duration::from_secs(20), async {
                loop {
                    let text = tokio::fs::read_to_string(&groups).await.unwrap_or_default();
                    if text.ends_with(&last) {
                        break text;
                    }
                    sleep(Duration::from_millis(20)).await;
                }
            });
            let text = text.await.expect(first_guard);
            let mut lines = text.lines();
            assert!(lines.next().unwrap().starts_with('='), "{first_guard}");
            assert!(lines.eq(GROUPS.map(|group| format!("+{group}"))), "{first_guard}");
            replace.abort();
        }
    }
}
