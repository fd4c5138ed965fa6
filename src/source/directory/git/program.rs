//! Runs the `git` program: read-only, and within a time limit.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use tokio::process::Command;
use tokio::runtime::Handle;
use tokio::time::timeout;
use tracing::debug;

/// The time limit of one query.
const GIT_TIMEOUT: Duration = Duration::from_secs(5);

/// Waits for queries of git; returns `None` on timeout. Blocks; must be called in a runtime.
pub fn block_on_with_timeout<T>(queries: impl Future<Output = T>) -> Option<T> {
    let runtime = Handle::try_current().ok()?;
    runtime.block_on(async { timeout(GIT_TIMEOUT, queries).await }).ok()
}

/// Runs git read-only and returns its output: nothing is locked, fetched, or run by its configuration. Returns `None`
/// if git fails.
pub async fn run_git(root: &Path, args: &[&str]) -> Option<String> {
    let mut command = Command::new("git");
    command
        .args(["--no-optional-locks", "--no-pager"])
        .args(
            ["core.fsmonitor=false", "core.quotePath=false", "log.showSignature=false"]
                .iter()
                .flat_map(|setting| ["-c", setting]),
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
