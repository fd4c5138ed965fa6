use rustix::process::{Pid, Signal, kill_process_group};

/// Gives the process group that a process leads.
pub(super) fn process_group(pid: u32) -> Option<Pid> {
    i32::try_from(pid).ok().and_then(Pid::from_raw)
}

/// Sends a signal to the process group that a process leads, if there still is one.
pub(super) fn signal_group(pid: u32, signal: Signal) {
    if let Some(group) = process_group(pid) {
        // ESRCH: the group is gone, which is what we want.
        let _ = kill_process_group(group, signal);
    }
}
