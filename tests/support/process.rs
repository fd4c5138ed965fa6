//! A process that always ends with the test program, even if that is killed.

use std::fs::File;
use std::path::Path;
use std::process::{Child, Command, Stdio};

/// A running process. It is killed when dropped. If the test program ends without dropping it (a static, a `kill -9`),
/// the pipe to a small shell is closed; the shell then kills the process and removes the scratch directory.
pub struct GuardedProcess {
    child: Child,
    watchdog: Child,
}

impl GuardedProcess {
    /// Starts a process. Its stdout and stderr are appended to `log`.
    pub fn start(command: &mut Command, log: &Path, scratch: &Path) -> Self {
        let log = File::options().create(true).append(true).open(log).unwrap();
        let child = command
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap_or_else(|error| panic!("{command:?}: {error}"));
        let watchdog = Command::new("sh")
            .args(["-c", r#"read -r _; kill -9 "$1"; sleep 1; rm -rf -- "$2""#, "watchdog"])
            .arg(child.id().to_string())
            .arg(scratch)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        Self { child, watchdog }
    }

    /// Returns true while the process has not ended.
    pub fn is_running(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }
}

impl Drop for GuardedProcess {
    fn drop(&mut self) {
        // The watchdog ends first: once the process is waited for, its id may be reused.
        let _ = self.watchdog.kill();
        let _ = self.watchdog.wait();
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
