use std::any::Any;
use std::fmt;
use std::panic::AssertUnwindSafe;
use std::time::Duration;

use futures_util::FutureExt;
use tokio::time::{Instant, sleep};

use super::backoff::{Backoff, Delays, jitter};

/// The delays before a task that panicked is started again.
const RESTART_DELAYS: Delays = Delays { initial: Duration::from_millis(100), max: Duration::from_mins(1) };
/// The lifetime of a task after which its panic resets the backoff.
const STABLE_AFTER: Duration = Duration::from_mins(1);

/// The delays between the starts of a task that panics: they grow while its panics follow each other closely.
#[derive(Debug)]
pub struct RestartBackoff {
    delays: Delays,
    backoff: Backoff,
    /// When the task was last started, or is to be started.
    started_at: Instant,
}

impl RestartBackoff {
    /// Returns the backoff of a task that starts now.
    pub fn new(delays: Delays) -> Self {
        Self { delays, backoff: Backoff::default(), started_at: Instant::now() }
    }

    /// Counts a panic and returns the delay before the next start.
    pub fn record_panic(&mut self) -> Duration {
        let now = Instant::now();
        self.backoff.record_end(now.saturating_duration_since(self.started_at), STABLE_AFTER);
        let delay = self.backoff.record_failure(self.delays, jitter(), None);
        self.started_at = now + delay;
        delay
    }

    /// Returns the number of panics since the last stable run.
    pub fn panics(&self) -> u32 {
        self.backoff.failures()
    }
}

/// Runs a long-lived task, and starts it again with a backoff whenever it panics. Completes when the task returns.
///
/// `start` is called for each run. What must outlive a panic belongs to the closure; it may be in the middle of a
/// change when the next run begins. `name` is for the log. Cancel safe if the task is.
pub async fn restart_on_panic<Task: Future>(
    name: impl fmt::Display,
    mut start: impl FnMut() -> Task,
) -> Task::Output {
    let mut backoff = RestartBackoff::new(RESTART_DELAYS);
    loop {
        match catch_panic(async { start().await }).await {
            Ok(output) => return output,
            Err(panic) => {
                let delay = backoff.record_panic();
                tracing::error!(
                    "{name} panicked: {panic}; starting it again in {delay:.1?}; please report this"
                );
                sleep(delay).await;
            }
        }
    }
}

/// Runs a task. The error is the message of its panic.
pub async fn catch_panic<Task: Future>(task: Task) -> Result<Task::Output, String> {
    AssertUnwindSafe(task).catch_unwind().await.map_err(|panic| panic_message(&*panic))
}

fn panic_message(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("no message").to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn task_that_panics_twice_runs_a_third_time_after_growing_delays() {
        let start = Instant::now();
        let mut starts = Vec::new();
        let result = restart_on_panic("the task", || {
            starts.push(start.elapsed());
            let run = starts.len();
            async move {
                assert!(run != 1, "the first panic");
                tokio::task::yield_now().await;
                assert!(run != 2, "panic number {run}");
                run
            }
        });
        assert_eq!(result.await, 3);
        let delays: Vec<_> =
            starts.windows(2).map(|pair| pair[1].as_millis() - pair[0].as_millis()).collect();
        assert!((50..=101).contains(&delays[0]) && (100..=201).contains(&delays[1]), "{delays:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn panic_after_a_stable_time_restarts_soon() {
        let start = Instant::now();
        let mut run = 0;
        restart_on_panic("the task", || {
            run += 1;
            let is_last = run == 8;
            async move {
                sleep(STABLE_AFTER).await;
                assert!(is_last, "not the last run");
            }
        })
        .await;
        assert!(start.elapsed() < STABLE_AFTER * 8 + RESTART_DELAYS.initial * 8, "{:?}", start.elapsed());
    }

    #[tokio::test]
    async fn panic_message_is_returned() {
        let number = 7;
        assert_eq!(
            catch_panic(async { assert!(number == 0, "number {number}") }).await,
            Err("number 7".into())
        );
        assert_eq!(catch_panic(async { assert!(number == 0, "fixed") }).await, Err("fixed".into()));
        assert_eq!(catch_panic(async { number }).await, Ok(7));
    }
}
