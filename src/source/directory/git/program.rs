//! Running the `git` program: reading only, and within a bound.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use tokio::process::Command;
use tokio::runtime::Handle;
use tokio::time::timeout;
use tracing::debug;

/// What is asked of git takes no longer.
const GIT_TIMEOUT: Duration = Duration::from_secs(5);

/// Waits for what is asked of git; `None` if that takes too long. Blocks, in a runtime.
pub fn block_on_with_timeout<T>(asked: impl Future<Output = T>) -> Option<T> {
    let runtime = Handle::try_current().ok()?;
    runtime.block_on(async { timeout(GIT_TIMEOUT, asked).await }).ok()
}

/// What git says, reading only: nothing is locked, fetched, or run by its configuration.
pub async fn git(root: &Path, args: &[&str]) -> Option<String> {
    let mut command = Command::new("git");
    command
        .args(["--no-optional-locks", "--no-pager"])
        .args(
            ["core.fsmonitor=false", "core.quotePath=false", "log.showSignature=false"]
                .iter()
                .flat_map(|set| ["-c", set]),
        )
        .args(args)
        .current_dir(root)
        .env("GIT_ALLOW_PROTOCOL", "")
        .env("GIT_NO_LAZY_FETCH", "1")
        .stdin(Stdio::null())
        .kill_on_drop(true);
    match command.output().await {
        Ok(output) if output.status.success() => Some(String::from_utf8_lossy(&output.stdout).into_owned()),
        Ok(output) => {
            debug!("git in {}: {}", root.display(), String::from_utf8_lossy(&output.stderr).trim());
            None
        }
        Err(error) => {
            debug!("git cannot be run: {error}");
            None
        }
    }
}
