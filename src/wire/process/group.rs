use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process_group, test_kill_process_group};
use tokio::time::sleep;

/// The interval between checks whether a group has ended.
const CHECK_INTERVAL: Duration = Duration::from_millis(20);

/// Converts the id of a process that leads a process group to the id of the group.
pub(super) fn process_group(pid: u32) -> Option<Pid> {
    i32::try_from(pid).ok().and_then(Pid::from_raw)
}

/// Sends a signal to the process group that a process leads. Does nothing if the group no longer exists.
pub(super) fn signal_group(pid: u32, signal: Signal) {
    if let Some(group) = process_group(pid) {
        // ESRCH means that the group has ended already.
        let _ = kill_process_group(group, signal);
    }
}

/// Returns true if the process group that a process leads has a process, be it one that waits to be reaped.
pub(super) fn group_exists(pid: u32) -> bool {
    process_group(pid).is_some_and(|group| test_kill_process_group(group).is_ok())
}

/// Waits until the process group that a process leads no longer exists.
pub(super) async fn wait_for_group_end(pid: u32) {
    while group_exists(pid) {
        sleep(CHECK_INTERVAL).await;
    }
}
