use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use tokio::time::{Instant, sleep_until};

use super::{LinkError, Sign};
use crate::resource::{Problem, Reason};

/// Until when a server wants to be left alone (Retry-After). Cheap to clone; one for all connections to it, so that
/// a new one knows what was said to the one before.
#[derive(Clone, Debug, Default)]
pub struct Pause(
    /// In milliseconds after [`START`]; 0 if it never asked.
    Arc<AtomicU64>,
);

static START: LazyLock<Instant> = LazyLock::new(Instant::now);

impl Pause {
    /// The server wants no request for so long.
    pub(super) fn ask(&self, wait: Duration) {
        let end = START.elapsed() + wait;
        self.0.fetch_max(
            u64::try_from(end.as_millis()).unwrap_or(u64::MAX).saturating_add(1),
            Ordering::Relaxed,
        );
    }

    /// When it ends; `None` if there is none.
    pub fn until(&self) -> Option<Instant> {
        match self.0.load(Ordering::Relaxed) {
            0 => None,
            end => Some(*START + Duration::from_millis(end)).filter(|end| *end > Instant::now()),
        }
    }

    /// The same as why nothing is sent, for people.
    pub fn problem(&self) -> Option<Problem> {
        let wait = self.until()?.duration_since(Instant::now());
        let end = Timestamp::now().saturating_add(SignedDuration::try_from(wait).ok()?).ok()?;
        let end = end.strftime("%T UTC");
        let message = format!("the server asked for no request before {end} (Retry-After)");
        Some(Problem::new(Reason::ConnectFailed, message))
    }

    /// The same as the error of a request that is not sent for it.
    pub(super) fn refusal(&self) -> Option<LinkError> {
        let Problem { reason, message } = self.problem()?;
        let mut error = LinkError::new(reason, message);
        error.retry_after = self.until().map(|until| until.duration_since(Instant::now()));
        error.sign = Sign::Pause;
        Some(error)
    }

    /// Waits for the end.
    pub async fn over(&self) {
        // It may be prolonged.
        while let Some(until) = self.until() {
            sleep_until(until).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_longest_wish_holds() {
        let pause = Pause::default();
        assert!(pause.until().is_none() && pause.refusal().is_none());
        pause.over().await;
        let begun = Instant::now();
        for seconds in [3, 60, 1] {
            pause.ask(Duration::from_secs(seconds));
        }
        let error = pause.clone().refusal().unwrap();
        assert!(error.retry_after.unwrap() > Duration::from_secs(59));
        assert_eq!(error.sign, Sign::Pause);
        pause.over().await;
        assert!(begun.elapsed() >= Duration::from_mins(1) && pause.problem().is_none());
    }
}
