use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until};

use super::{ConnectionError, FailureSource};
use crate::resource::{Problem, Reason};
use crate::text;

/// The time until which a server accepts no requests (Retry-After). Shared by all connections to the server, so that it
/// stays in effect for a new connection. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct RetryAfter(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    /// The end in milliseconds after [`CLOCK_BASE`]; 0 if the server never sent Retry-After.
    ends_at_ms: AtomicU64,
    /// Notified if the end moves to a later time.
    extended: Notify,
}

/// One moment on both clocks, so that an end always converts to the same wall-clock time.
static CLOCK_BASE: LazyLock<(Instant, Timestamp)> = LazyLock::new(|| (Instant::now(), Timestamp::now()));

impl RetryAfter {
    /// Sends no requests for this long from now on. Does not shorten an earlier, longer delay.
    pub(super) fn extend(&self, delay: Duration) {
        let end = CLOCK_BASE.0.elapsed() + delay;
        let end = u64::try_from(end.as_millis()).unwrap_or(u64::MAX).saturating_add(1);
        if self.0.ends_at_ms.fetch_max(end, Ordering::Relaxed) < end {
            self.0.extended.notify_one();
        }
    }

    /// Returns when requests may be sent again; `None` if they may be sent now.
    pub fn ends_at(&self) -> Option<Instant> {
        match self.0.ends_at_ms.load(Ordering::Relaxed) {
            0 => None,
            end => Some(CLOCK_BASE.0 + Duration::from_millis(end)).filter(|end| *end > Instant::now()),
        }
    }

    /// Returns a problem with the end time for status messages; `None` if requests may be sent now.
    pub fn problem(&self) -> Option<Problem> {
        let after = self.ends_at()?.duration_since(CLOCK_BASE.0);
        let end = CLOCK_BASE.1.saturating_add(SignedDuration::try_from(after).ok()?).ok()?;
        let end = text::format_time(end, Timestamp::now());
        let message = format!("the server accepts no request before {end} (Retry-After)");
        Some(Problem::new(Reason::ConnectFailed, message))
    }

    /// Returns the error of a request that is not sent because of it; `None` if requests may be sent now.
    pub(super) fn request_error(&self) -> Option<ConnectionError> {
        let Problem { reason, message } = self.problem()?;
        let mut error = ConnectionError::new(reason, message);
        error.retry_after = self.ends_at().map(|until| until.duration_since(Instant::now()));
        error.failure_source = FailureSource::RetryAfter;
        Some(error)
    }

    /// Waits until requests may be sent again. Cancel safe.
    pub(super) async fn wait_until_over(&self) {
        // The end may move while this waits.
        while let Some(until) = self.ends_at() {
            sleep_until(until).await;
        }
    }

    /// Waits until the delay begins, becomes longer or is over. Cancel safe; only one task may wait.
    pub async fn changed(&self) {
        let extended = self.0.extended.notified();
        match self.ends_at() {
            Some(until) => tokio::select! {
                () = extended => {}
                () = sleep_until(until) => {}
            },
            None => extended.await,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn latest_retry_after_wins() {
        let retry_after = RetryAfter::default();
        assert!(retry_after.ends_at().is_none() && retry_after.request_error().is_none());
        let start = Instant::now();
        for seconds in [3, 60, 1] {
            retry_after.extend(Duration::from_secs(seconds));
        }
        let error = retry_after.clone().request_error().unwrap();
        assert!(error.retry_after.unwrap() > Duration::from_secs(59));
        assert_eq!(error.failure_source, FailureSource::RetryAfter);
        let reported = retry_after.problem();
        retry_after.changed().await;
        assert_eq!((start.elapsed(), &retry_after.problem()), (Duration::ZERO, &reported), "the delay began");
        retry_after.changed().await;
        assert!(start.elapsed() >= Duration::from_mins(1) && retry_after.problem().is_none());
    }
}
