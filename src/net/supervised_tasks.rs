use std::fmt;
use std::pin::pin;
use std::sync::Arc;

use tokio::sync::watch;
use tokio_util::task::TaskTracker;

use super::restart::catch_panic;

/// The long-lived tasks of one part of the process that cannot be started again after a panic. A panic is not lost:
/// [`SupervisedTasks::wait`] returns it. Cheap to clone.
#[derive(Clone, Debug)]
pub struct SupervisedTasks {
    tracker: TaskTracker,
    panic: Arc<watch::Sender<Option<String>>>,
}

impl Default for SupervisedTasks {
    fn default() -> Self {
        Self { tracker: TaskTracker::new(), panic: Arc::new(watch::channel(None).0) }
    }
}

impl SupervisedTasks {
    /// Starts a task. `name` is for the error message.
    pub fn spawn(
        &self,
        name: impl fmt::Display + Send + 'static,
        task: impl Future<Output = ()> + Send + 'static,
    ) {
        let panic = self.panic.clone();
        self.tracker.spawn(async move {
            let mut task = pin!(task);
            if let Err(message) = catch_panic(task.as_mut()).await {
                panic.send_if_modified(|first| {
                    let is_first = first.is_none();
                    first.get_or_insert_with(|| format!("{name} panicked: {message}"));
                    is_first
                });
                // What the task owns stays open until the process ends: that tasks of other parts end because of it
                // must not be reported first.
                std::future::pending::<()>().await;
            }
        });
    }

    /// Returns the tracker, for blocking work that a task waits for.
    pub fn tracker(&self) -> &TaskTracker {
        &self.tracker
    }

    /// Waits until all tasks have ended. No more may be started by others than these tasks.
    ///
    /// # Errors
    ///
    /// Returns the first panic at once, while other tasks still run.
    pub async fn wait(&self) -> Result<(), String> {
        self.tracker.close();
        let mut panics = self.panic.subscribe();
        let first = async {
            match panics.wait_for(Option::is_some).await.ok().and_then(|panic| panic.clone()) {
                Some(panic) => panic,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            panic = first => Err(panic),
            () = self.tracker.wait() => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn fail(message: &str) {
        tokio::task::yield_now().await;
        panic!("{message}");
    }

    #[tokio::test]
    async fn panic_is_returned_while_other_tasks_run() {
        let tasks = SupervisedTasks::default();
        tasks.spawn("the patient task", std::future::pending());
        let nested = tasks.clone();
        tasks.spawn("the parent", async move {
            nested.spawn("the watch of a", fail("out of order"));
        });
        assert_eq!(tasks.wait().await, Err("the watch of a panicked: out of order".into()));
        tasks.spawn("a later task", fail("again"));
        tokio::task::yield_now().await;
        assert_eq!(tasks.wait().await, Err("the watch of a panicked: out of order".into()));
    }

    #[tokio::test]
    async fn tasks_that_end_are_no_error() {
        let tasks = SupervisedTasks::default();
        tasks.spawn("the task", async {});
        assert_eq!(tasks.wait().await, Ok(()));
    }
}
