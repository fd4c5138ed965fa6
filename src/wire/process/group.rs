use rustix::process::{Pid, Signal, kill_process_group};

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
