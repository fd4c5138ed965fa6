use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until};

use super::{ConnectionError, FailureSource};
use crate::resource::{Problem, Reason};
use crate::text;

/// Until when a server wants to be left alone (Retry-After). Cheap to clone; one for all connections to it, so that
/// a new one knows what was said to the one before.
#[derive(Clone, Debug, Default)]
pub struct RetryAfter(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    /// In milliseconds after [`START`]; 0 if it never asked.
    ends_at_ms: AtomicU64,
    /// It asked for more.
    extended: Notify,
}

/// One moment on both clocks, so that an end is told the same way each time.
static CLOCK_BASE: LazyLock<(Instant, Timestamp)> = LazyLock::new(|| (Instant::now(), Timestamp::now()));

impl RetryAfter {
    /// The server wants no request for so long.
    pub(super) fn extend(&self, wait: Duration) {
        let end = CLOCK_BASE.0.elapsed() + wait;
        let end = u64::try_from(end.as_millis()).unwrap_or(u64::MAX).saturating_add(1);
        if self.0.ends_at_ms.fetch_max(end, Ordering::Relaxed) < end {
            self.0.extended.notify_one();
        }
    }

    /// When it ends; `None` if there is none.
    pub fn ends_at(&self) -> Option<Instant> {
        match self.0.ends_at_ms.load(Ordering::Relaxed) {
            0 => None,
            end => Some(CLOCK_BASE.0 + Duration::from_millis(end)).filter(|end| *end > Instant::now()),
        }
    }

    /// The same as why nothing is sent, for people.
    pub fn problem(&self) -> Option<Problem> {
        let after = self.ends_at()?.duration_since(CLOCK_BASE.0);
        let end = CLOCK_BASE.1.saturating_add(SignedDuration::try_from(after).ok()?).ok()?;
        let end = text::format_time(end, Timestamp::now());
        let message = format!("the server asked for no request before {end} (Retry-After)");
        Some(Problem::new(Reason::ConnectFailed, message))
    }

    /// The same as the error of a request that is not sent for it.
    pub(super) fn request_error(&self) -> Option<ConnectionError> {
        let Problem { reason, message } = self.problem()?;
        let mut error = ConnectionError::new(reason, message);
        error.retry_after = self.ends_at().map(|until| until.duration_since(Instant::now()));
        error.failure_source = FailureSource::RetryAfter;
        Some(error)
    }

    /// Waits for the end.
    pub(super) async fn wait_until_over(&self) {
        // It may be prolonged.
        while let Some(until) = self.ends_at() {
            sleep_until(until).await;
        }
    }

    /// Waits until it begins, becomes longer, or is over. Cancel safe; one waits at a time.
    pub async fn changed(&self) {
        let asked = self.0.extended.notified();
        match self.ends_at() {
            Some(until) => tokio::select! {
                () = asked => {}
                () = sleep_until(until) => {}
            },
            None => asked.await,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn latest_retry_after_wins() {
        let pause = RetryAfter::default();
        assert!(pause.ends_at().is_none() && pause.request_error().is_none());
        let begun = Instant::now();
        for seconds in [3, 60, 1] {
            pause.extend(Duration::from_secs(seconds));
        }
        let error = pause.clone().request_error().unwrap();
        assert!(error.retry_after.unwrap() > Duration::from_secs(59));
        assert_eq!(error.failure_source, FailureSource::RetryAfter);
        let told = pause.problem();
        pause.changed().await;
        assert_eq!((begun.elapsed(), &pause.problem()), (Duration::ZERO, &told), "it began");
        pause.changed().await;
        assert!(begun.elapsed() >= Duration::from_mins(1) && pause.problem().is_none());
    }
}
