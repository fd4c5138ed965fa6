use std::time::Duration;

use tokio::time::Instant;

/// A call that goes on making progress ends all the same after so many times its limit, and after a day
/// (2025-11-25, basic/lifecycle, timeouts: a maximum must hold regardless of progress).
const MAX_TIMEOUT_FACTOR: u32 = 10;
const MAX_CALL_DURATION: Duration = Duration::from_hours(24);

/// When a call ends for want of an answer.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct CallDeadline {
    timeout: Duration,
    expires_at: Instant,
    latest_expires_at: Instant,
    made_progress: bool,
}

impl CallDeadline {
    /// Of a call that begins now and has `limit` for its answer, or for its next progress.
    pub(super) fn new(now: Instant, limit: Duration) -> Self {
        let most = limit.saturating_mul(MAX_TIMEOUT_FACTOR).min(MAX_CALL_DURATION.max(limit));
        Self { timeout: limit, expires_at: now + limit, latest_expires_at: now + most, made_progress: false }
    }

    /// The call made progress: it has its limit again.
    pub(super) fn record_progress(&mut self, now: Instant) {
        self.expires_at = (now + self.timeout).min(self.latest_expires_at);
        self.made_progress = true;
    }

    /// The instant at which it is over.
    pub(super) fn expires_at(self) -> Instant {
        self.expires_at
    }

    /// What is told of a call that is over: the end of "MCP server x …".
    pub(super) fn timeout_reason(self) -> String {
        let seconds = self.timeout.as_secs_f64();
        if !self.made_progress {
            format!("did not answer within {seconds} s")
        } else if self.expires_at < self.latest_expires_at {
            format!("neither answered nor made progress for {seconds} s")
        } else {
            let most =
                self.timeout.saturating_mul(MAX_TIMEOUT_FACTOR).min(MAX_CALL_DURATION.max(self.timeout));
            format!("made progress, but did not answer within {} s", most.as_secs_f64())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn progress_extends_the_deadline_up_to_the_maximum() {
        let start = Instant::now();
        let after = |seconds| start + Duration::from_secs(seconds);
        let mut deadline = CallDeadline::new(start, Duration::from_secs(10));
        assert_eq!(
            (deadline.expires_at(), &*deadline.timeout_reason()),
            (after(10), "did not answer within 10 s")
        );
        deadline.record_progress(after(9));
        let silent = "neither answered nor made progress for 10 s";
        assert_eq!((deadline.expires_at(), &*deadline.timeout_reason()), (after(19), silent));
        deadline.record_progress(after(99));
        let endless = "made progress, but did not answer within 100 s";
        assert_eq!((deadline.expires_at(), &*deadline.timeout_reason()), (after(100), endless));

        let mut day = CallDeadline::new(start, Duration::from_hours(20));
        day.record_progress(start + Duration::from_hours(19));
        assert_eq!(day.expires_at(), start + MAX_CALL_DURATION);
        assert!(day.timeout_reason().ends_with("86400 s"));
    }
}
