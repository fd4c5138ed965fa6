//! Evenkeel as the init process (pid 1) of a container.
//!
//! The kernel makes pid 1 the parent of every orphaned process, and only pid 1 can reap them. The init process
//! therefore reaps children and nothing else; evenkeel itself runs as its child.

use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode};

use rustix::io::Errno;
use rustix::process::{Pid, Signal, WaitOptions, WaitStatus, kill_process, wait};
use tokio::signal::unix::{SignalKind, signal};

use super::error::CommandError;
use super::runtime::block_on;
use crate::daemon::Signals;

/// True if this is the init process.
pub(super) fn is_init_process() -> bool {
    std::process::id() == 1
}

/// Runs this program again as a child with the same arguments, forwards SIGINT and SIGTERM to it and reaps all
/// processes until the child exits. Returns the exit code of the child.
pub(super) fn supervise() -> Result<ExitCode, CommandError> {
    block_on(async {
        let mut child_exits = signal(SignalKind::child()).map_err(CommandError::failed)?;
        let mut signals = Signals::new().map_err(CommandError::failed)?;
        let program = std::env::current_exe().map_err(CommandError::failed)?;
        let mut command = Command::new(program);
        // The child is in its own process group, so that it receives Ctrl-C of the terminal only once.
        let child = command.args(std::env::args_os().skip(1)).process_group(0).spawn();
        let child = child.map_err(CommandError::failed)?.id();
        let child = i32::try_from(child).ok().and_then(Pid::from_raw);
        let child = child.ok_or_else(|| CommandError::Failed("the child process has no valid pid".into()))?;
        loop {
            if let Some(status) = reap(child) {
                return Ok(exit_code(status));
            }
            tokio::select! {
                _ = child_exits.recv() => {}
                name = signals.next() => {
                    let signal = if name == "SIGINT" { Signal::INT } else { Signal::TERM };
                    // The child is not reaped yet, so the pid is still its own.
                    let _ = kill_process(child, signal);
                }
            }
        }
    })
}

/// Reaps all exited processes. Returns the exit status of the child if it is among them.
fn reap(child: Pid) -> Option<WaitStatus> {
    loop {
        match wait(WaitOptions::NOHANG) {
            Ok(Some((pid, status))) if pid == child => return Some(status),
            Ok(Some(_)) | Err(Errno::INTR) => {}
            Ok(None) | Err(_) => return None,
        }
    }
}

/// Returns the exit code as a shell does: 128 plus the signal number for a signal.
fn exit_code(status: WaitStatus) -> ExitCode {
    let code = status.exit_status().or_else(|| status.terminating_signal().map(|signal| 128 + signal));
    ExitCode::from(code.and_then(|code| u8::try_from(code).ok()).unwrap_or(1))
}
