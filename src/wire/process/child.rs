use std::collections::HashSet;
use std::process::ExitStatus;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use tokio::process::Child;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout, timeout_at};
use tokio_util::sync::CancellationToken;
use tracing::warn;

use super::super::log::ServerLog;
use super::group::{group_exists, signal_group, wait_for_group_end};
use super::guard::ProcessGuard;
use super::process_mark::{ProcessMark, RemainingProcesses};
use super::shared_stop_timeout::SharedStopTimeout;

/// The time that a child has to exit after its stdin was closed, before SIGTERM.
const STDIN_CLOSED_TIMEOUT: Duration = Duration::from_secs(2);
/// The interval between scans for remaining processes.
const SCAN_INTERVAL: Duration = Duration::from_millis(50);
/// The longest time between two scans while only the process group is left, which is checked without a scan.
const GROUP_SCAN_INTERVAL: Duration = Duration::from_secs(1);
/// The maximum number of scans after SIGKILL. Processes that survive it for longer are left. A number and not a time,
/// because evenkeel itself may be suspended meanwhile.
const MAX_KILL_SCANS: u32 = 40;

/// A child process. It leads its own process group.
#[derive(Debug)]
pub(in crate::wire) struct ChildProcess {
    state: watch::Receiver<ChildState>,
    stop: CancellationToken,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ChildState {
    Running,
    /// It got SIGTERM, and has not exited yet.
    Terminating,
    Exited(ExitStatus),
}

/// How a child is supervised.
#[derive(Debug)]
pub(in crate::wire) struct Supervision {
    /// The program, for messages.
    pub(in crate::wire) command: String,
    /// Kills the processes if evenkeel is killed, and marks those that leave the group.
    pub(in crate::wire) guard: Option<(ProcessGuard, ProcessMark)>,
    /// The time between SIGTERM and SIGKILL.
    pub(in crate::wire) stop_timeout: SharedStopTimeout,
    /// Receives a line if processes were killed because they did not exit in time.
    pub(in crate::wire) log: ServerLog,
}

impl ChildProcess {
    /// Supervises a child. The returned future reaps it and ends its descendants: those in its process group and the
    /// marked ones that left it. It completes when none is left, and must be polled.
    ///
    /// If the child exits by itself, its descendants get SIGTERM at once. After [`Self::request_stop`] the child has
    /// [`STDIN_CLOSED_TIMEOUT`] to exit, and then the whole group gets SIGTERM. In both cases every process has the stop
    /// timeout between SIGTERM and SIGKILL, even if the child itself exits earlier: behind `sh -c` or `npx` it is another
    /// process that has to clean up.
    pub(in crate::wire) fn supervise(
        mut child: Child,
        supervision: Supervision,
    ) -> (Self, impl Future<Output = ()>) {
        let pid = child.id().unwrap_or_default();
        if let Some((guard, _)) = &supervision.guard {
            guard.add_group(pid);
        }
        let (sender, state) = watch::channel(ChildState::Running);
        let stop = CancellationToken::new();
        let stop_requested = stop.clone();
        let reap = async move {
            let mut termination =
                Termination { pid, supervision, state: sender, kill_at: None, killed: false };
            let status = match stop_requested.run_until_cancelled(child.wait()).await {
                Some(status) => status,
                None => termination.end_child(&mut child).await,
            };
            termination.state.send_replace(ChildState::Exited(status.unwrap_or_default()));
            termination.end_descendants().await;
            if let Some((guard, _)) = &termination.supervision.guard {
                guard.remove_group(pid);
            }
        };
        (Self { state, stop }, reap)
    }

    /// Waits for the exit of the child. Cancel safe.
    pub(in crate::wire) async fn exit_status(&self) -> ExitStatus {
        let is_exited = |state: &ChildState| matches!(state, ChildState::Exited(_));
        match self.state.clone().wait_for(is_exited).await.as_deref() {
            Ok(ChildState::Exited(status)) => *status,
            _ => ExitStatus::default(),
        }
    }

    /// Waits until the child exits or gets SIGTERM. Returns true if it has exited by itself. Cancel safe.
    pub(in crate::wire) async fn exits_by_itself(&self) -> bool {
        let is_running = |state: &ChildState| *state == ChildState::Running;
        let changed = self.state.clone().wait_for(|state| !is_running(state)).await.map(|state| *state);
        !matches!(changed, Ok(ChildState::Terminating))
    }

    /// Ends the child and its descendants, after its stdin was closed. Does not wait.
    pub(in crate::wire) fn request_stop(&self) {
        self.stop.cancel();
    }
}

/// The end of a child and its descendants, in progress.
struct Termination {
    pid: u32,
    supervision: Supervision,
    state: watch::Sender<ChildState>,
    /// When the process group is killed; `None` before it got SIGTERM.
    kill_at: Option<Instant>,
    /// True once processes were killed.
    killed: bool,
}

impl Termination {
    /// Waits until the child has exited after its stdin was closed, and ends it otherwise.
    async fn end_child(&mut self, child: &mut Child) -> std::io::Result<ExitStatus> {
        if let Ok(status) = timeout(STDIN_CLOSED_TIMEOUT, child.wait()).await {
            return status;
        }
        self.state.send_replace(ChildState::Terminating);
        let kill_at = self.send_term();
        if let Ok(status) = timeout_at(kill_at, child.wait()).await {
            return status;
        }
        self.send_kill();
        child.wait().await
    }

    /// Ends the descendants of the child, which has exited.
    async fn end_descendants(&mut self) {
        let (mut signaled, mut kill_scans) = (HashSet::new(), 0);
        while kill_scans < MAX_KILL_SCANS {
            let RemainingProcesses { in_group, outside } = self.remaining().await;
            if !in_group && outside.is_empty() {
                return;
            }
            let kill_at = self.kill_at.unwrap_or_else(|| self.send_term());
            let must_kill = Instant::now() >= kill_at;
            if must_kill {
                self.send_kill();
                kill_scans += 1;
            }
            for process in outside.iter().copied() {
                if signaled.insert(process) || must_kill {
                    signal_outside(process, if must_kill { Signal::KILL } else { Signal::TERM });
                }
            }
            if outside.is_empty() && !must_kill {
                let next_scan = kill_at.min(Instant::now() + GROUP_SCAN_INTERVAL);
                // Elapsed means that the next scan is due.
                let _ = timeout_at(next_scan, wait_for_group_end(self.pid)).await;
            } else {
                sleep(SCAN_INTERVAL).await;
            }
        }
    }

    async fn remaining(&self) -> RemainingProcesses {
        match &self.supervision.guard {
            Some((_, mark)) => mark.remaining(self.pid).await,
            None => RemainingProcesses { in_group: group_exists(self.pid), outside: Vec::new() },
        }
    }

    /// Sends SIGTERM to the process group. Returns when it is killed.
    fn send_term(&mut self) -> Instant {
        signal_group(self.pid, Signal::TERM);
        *self.kill_at.insert(Instant::now() + self.supervision.stop_timeout.get())
    }

    /// Sends SIGKILL to the process group.
    fn send_kill(&mut self) {
        signal_group(self.pid, Signal::KILL);
        let stop_timeout = self.supervision.stop_timeout.get();
        if !std::mem::replace(&mut self.killed, true) && !stop_timeout.is_zero() {
            let command = &self.supervision.command;
            let message = format!(
                "{command:?} did not exit within {stop_timeout:?} after SIGTERM and was killed; spec.stdio.stop sets \
                 this time"
            );
            warn!(pid = self.pid, "{message}");
            self.supervision.log.push_process_event(&message);
        }
    }
}

fn signal_outside(process: Pid, signal: Signal) {
    // The process may have ended since the scan.
    let _ = kill_process(process, signal);
}
