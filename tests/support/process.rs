//! A program that does not outlive the test program, however that ends.

use std::fs::File;
use std::path::Path;
use std::process::{Child, Command, Stdio};

/// A running program. Killed when dropped. If the test program ends without dropping it (a static, a `kill -9`), a
/// small shell sees its pipe close, kills the program and removes the scratch directory.
pub struct GuardedProcess {
    child: Child,
    watchdog: Child,
}

impl GuardedProcess {
    /// Starts a program. What it says goes to `log`.
    pub fn start(command: &mut Command, log: &Path, scratch: &Path) -> Self {
        let log = File::options().create(true).append(true).open(log).unwrap();
        let child = command
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap_or_else(|error| panic!("{command:?}: {error}"));
        let keeper = Command::new("sh")
            .args(["-c", r#"read -r _; kill -9 "$1"; sleep 1; rm -rf -- "$2""#, "keeper"])
            .arg(child.id().to_string())
            .arg(scratch)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        Self { child, watchdog: keeper }
    }

    /// True while it has not ended.
    pub fn is_running(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }
}

impl Drop for GuardedProcess {
    fn drop(&mut self) {
        // The keeper goes first: once the program is waited for, its process id may be another's.
        let _ = self.watchdog.kill();
        let _ = self.watchdog.wait();
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
