use std::collections::HashMap;
use std::io;

use tokio::task::{Id, JoinError, JoinSet};
use tokio_util::sync::CancellationToken;

use super::error::DaemonError;

/// The tasks of a running instance.
///
/// All run until `stop` is cancelled. One that ends before is a bug or a broken machine, and is always reported.
#[derive(Debug, Default)]
pub(super) struct Tasks {
    set: JoinSet<io::Result<()>>,
    names: HashMap<Id, &'static str>,
    stop: CancellationToken,
}

impl Tasks {
    /// Returns the token on which every task stops.
    pub fn stop_token(&self) -> CancellationToken {
        self.stop.clone()
    }
    /// Starts a task with a name for error messages.
    pub fn spawn(&mut self, name: &'static str, task: impl Future<Output = io::Result<()>> + Send + 'static) {
        let id = self.set.spawn(task).id();
        self.names.insert(id, name);
    }

    /// Waits for a task that ends before shutdown. Never returns if there are no tasks.
    pub async fn first_failure(&mut self) -> DaemonError {
        match self.join_next().await {
            Some((name, reason)) => DaemonError(format!("{name} ended: {reason}")),
            None => std::future::pending().await,
        }
    }

    /// Stops all tasks and waits until they have ended.
    pub async fn shutdown(&mut self) {
        self.stop.cancel();
        while let Some((name, reason)) = self.join_next().await {
            tracing::debug!(task = name, %reason, "task ended");
        }
    }

    /// Returns the names of the tasks that are still running.
    pub fn running_names(&self) -> String {
        let mut names: Vec<_> = self.names.values().copied().collect();
        names.sort_unstable();
        names.join(", ")
    }

    async fn join_next(&mut self) -> Option<(&'static str, String)> {
        let ended = self.set.join_next_with_id().await?;
        let (id, reason) = match ended {
            Ok((id, Ok(()))) => (id, "it returned before shutdown".to_owned()),
            Ok((id, Err(error))) => (id, error.to_string()),
            Err(error) => (JoinError::id(&error), error.to_string()),
        };
        Some((self.names.remove(&id).unwrap_or("a task"), reason))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn task_that_ends_early_is_named_and_others_stop() {
        let mut tasks = Tasks::default();
        let stop = tasks.stop_token();
        tasks.spawn("the waiting one", async move {
            stop.cancelled().await;
            Ok(())
        });
        tasks.spawn("the broken one", async { Err(io::Error::other("no room left")) });
        let failure = tasks.first_failure().await.to_string();
        assert_eq!(failure, "the broken one ended: no room left");
        assert_eq!(tasks.running_names(), "the waiting one");
        tasks.shutdown().await;
        assert_eq!(tasks.running_names(), "");
    }
}
