//! Evenkeel as the first process of a container: the system gives it every process that lost its parent, and nobody
//! but it can take note of their ends. So the first process does that and no more, and evenkeel runs as its child.

use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode};

use rustix::io::Errno;
use rustix::process::{Pid, Signal, WaitOptions, WaitStatus, kill_process, wait};
use tokio::signal::unix::{SignalKind, signal};

use super::error::CommandError;
use super::runtime::block_on;
use crate::daemon::Signals;

/// True if this is the first process.
pub(super) fn is_init_process() -> bool {
    std::process::id() == 1
}

/// Runs this program once more with the same arguments, hands on the signals that end it, and takes note of the end of
/// whatever ends, until it does. Gives its exit code.
pub(super) fn supervise() -> Result<ExitCode, CommandError> {
    block_on(async {
        let mut ended = signal(SignalKind::child()).map_err(CommandError::failed)?;
        let mut signals = Signals::new().map_err(CommandError::failed)?;
        let program = std::env::current_exe().map_err(CommandError::failed)?;
        let mut command = Command::new(program);
        // In a group of its own, so that a Ctrl-C in the terminal comes once.
        let child = command.args(std::env::args_os().skip(1)).process_group(0).spawn();
        let child = child.map_err(CommandError::failed)?.id();
        let child = i32::try_from(child).ok().and_then(Pid::from_raw);
        let child = child.ok_or_else(|| CommandError::Failed("the started process has no id".into()))?;
        loop {
            if let Some(status) = reap(child) {
                return Ok(exit_code(status));
            }
            tokio::select! {
                _ = ended.recv() => {}
                name = signals.next() => {
                    let signal = if name == "SIGINT" { Signal::INT } else { Signal::TERM };
                    // It is not reaped yet, so the id is still its own.
                    let _ = kill_process(child, signal);
                }
            }
        }
    })
}

/// Takes note of all that have ended; how the child did, if it has.
fn reap(child: Pid) -> Option<WaitStatus> {
    loop {
        match wait(WaitOptions::NOHANG) {
            Ok(Some((pid, status))) if pid == child => return Some(status),
            Ok(Some(_)) | Err(Errno::INTR) => {}
            Ok(None) | Err(_) => return None,
        }
    }
}

/// As shells have it: 128 and more for a signal.
fn exit_code(status: WaitStatus) -> ExitCode {
    let code = status.exit_status().or_else(|| status.terminating_signal().map(|signal| 128 + signal));
    ExitCode::from(code.and_then(|code| u8::try_from(code).ok()).unwrap_or(1))
}
