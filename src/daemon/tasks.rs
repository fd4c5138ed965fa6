use std::collections::HashMap;
use std::io;

use tokio::task::{Id, JoinError, JoinSet};
use tokio_util::sync::CancellationToken;

use super::error::DaemonError;

/// The tasks that make up a running evenkeel. All run until they are told to stop: one that ends before is a
/// bug or a broken machine, and is never passed over in silence.
#[derive(Debug, Default)]
pub(super) struct Tasks {
    set: JoinSet<io::Result<()>>,
    names: HashMap<Id, &'static str>,
    stop: CancellationToken,
}

impl Tasks {
    /// What every task stops on.
    pub fn stop_token(&self) -> CancellationToken {
        self.stop.clone()
    }

    /// Starts a task.
    pub fn spawn(&mut self, name: &'static str, task: impl Future<Output = io::Result<()>> + Send + 'static) {
        let id = self.set.spawn(task).id();
        self.names.insert(id, name);
    }

    /// Waits for a task that ends although it was not told to.
    pub async fn first_failure(&mut self) -> DaemonError {
        match self.join_next().await {
            Some((name, why)) => DaemonError(format!("{name} ended: {why}")),
            None => std::future::pending().await,
        }
    }

    /// Tells all tasks to stop and waits until they have.
    pub async fn shutdown(&mut self) {
        self.stop.cancel();
        while let Some((name, why)) = self.join_next().await {
            tracing::debug!(task = name, %why, "ended");
        }
    }

    /// The names of the tasks that are still running.
    pub fn running_names(&self) -> String {
        let mut names: Vec<_> = self.names.values().copied().collect();
        names.sort_unstable();
        names.join(", ")
    }

    async fn join_next(&mut self) -> Option<(&'static str, String)> {
        let ended = self.set.join_next_with_id().await?;
        let (id, why) = match ended {
            Ok((id, Ok(()))) => (id, "it had nothing more to do".to_owned()),
            Ok((id, Err(error))) => (id, error.to_string()),
            Err(error) => (JoinError::id(&error), error.to_string()),
        };
        Some((self.names.remove(&id).unwrap_or("a task"), why))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn task_that_ends_early_is_named_and_others_stop() {
        let mut tasks = Tasks::default();
        let stop = tasks.stop_token();
        tasks.spawn("the patient one", async move {
            stop.cancelled().await;
            Ok(())
        });
        tasks.spawn("the broken one", async { Err(io::Error::other("no room left")) });
        let failure = tasks.first_failure().await.to_string();
        assert_eq!(failure, "the broken one ended: no room left");
        assert_eq!(tasks.running_names(), "the patient one");
        tasks.shutdown().await;
        assert_eq!(tasks.running_names(), "");
    }
}
