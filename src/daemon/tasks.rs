use std::collections::HashMap;
use std::io;
use std::sync::{Arc, OnceLock};

use tokio::task::{Id, JoinError, JoinSet};
use tokio_util::sync::CancellationToken;

use super::error::DaemonError;
use crate::net::catch_panic;

/// The tasks of a running instance.
///
/// All run until `stop` is cancelled. One that ends before is a bug or a broken machine, and is always reported: the
/// process ends. Tasks that can be started again do so themselves ([`restart_on_panic`](crate::net::restart_on_panic)).
#[derive(Debug, Default)]
pub(super) struct Tasks {
    set: JoinSet<io::Result<()>>,
    names: HashMap<Id, &'static str>,
    /// The name of the first task that panicked, and the message.
    first_panic: Arc<OnceLock<(&'static str, String)>>,
    stop: CancellationToken,
}

impl Tasks {
    /// Returns the token on which every task stops.
    pub fn stop_token(&self) -> CancellationToken {
        self.stop.clone()
    }
    /// Starts a task with a name for error messages.
    pub fn spawn(&mut self, name: &'static str, task: impl Future<Output = io::Result<()>> + Send + 'static) {
        let first_panic = self.first_panic.clone();
        let supervised = async move {
            let mut task = Box::pin(task);
            catch_panic(task.as_mut()).await.unwrap_or_else(|panic| {
                let reason = format!("it panicked: {panic}; please report this");
                // Before what the task owns is dropped, because of which other tasks may end.
                let _ = first_panic.set((name, reason.clone()));
                Err(io::Error::other(reason))
            })
        };
        let id = self.set.spawn(supervised).id();
        self.names.insert(id, name);
    }

    /// Waits for a task that ends before shutdown. A panic is named rather than the tasks that end because of it. Never
    /// returns if there are no tasks.
    pub async fn first_failure(&mut self) -> DaemonError {
        let Some(ended) = self.join_next().await else { return std::future::pending().await };
        let (name, reason) = self.first_panic.get().cloned().unwrap_or(ended);
        DaemonError(format!("{name} ended: {reason}"))
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

    #[tokio::test]
    async fn panic_is_named_and_not_the_task_that_ends_because_of_it() {
        let (sender, mut receiver) = tokio::sync::mpsc::channel::<()>(1);
        let mut tasks = Tasks::default();
        tasks.spawn("the panicking one", async move {
            tokio::task::yield_now().await;
            assert!(sender.is_closed(), "the sender is dropped");
            Ok(())
        });
        tasks.spawn("the receiving one", async move {
            receiver.recv().await;
            Ok(())
        });
        // Both have ended before the first is looked at.
        while !tasks.set.is_empty() && tasks.first_panic.get().is_none() {
            tokio::task::yield_now().await;
        }
        for _ in 0..10 {
            tokio::task::yield_now().await;
        }
        let failure = tasks.first_failure().await.to_string();
        let expected = "the panicking one ended: it panicked: the sender is dropped; please report this";
        assert_eq!(failure, expected);
        assert_eq!(tasks.first_failure().await.to_string(), expected, "whichever is found first");
    }
}
