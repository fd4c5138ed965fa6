use std::time::Duration;

use tokio::time::Instant;

/// The maximum duration of a call with progress, as a multiple of its timeout (2025-11-25, basic/lifecycle, timeouts: a
/// maximum must be enforced regardless of progress).
const MAX_TIMEOUT_FACTOR: u32 = 10;
/// The maximum duration of a call with progress, unless its timeout alone is longer.
const MAX_CALL_DURATION: Duration = Duration::from_hours(24);

/// The time at which a call without a response ends.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct CallDeadline {
    timeout: Duration,
    expires_at: Instant,
    latest_expires_at: Instant,
    made_progress: bool,
    /// The time since which the call waits for the agent.
    paused_at: Option<Instant>,
}

impl CallDeadline {
    /// Creates the deadline of a call that begins now. Its response, or its next progress, must arrive within
    /// `timeout`.
    pub(super) fn new(now: Instant, timeout: Duration) -> Self {
        let maximum = timeout.saturating_mul(MAX_TIMEOUT_FACTOR).min(MAX_CALL_DURATION.max(timeout));
        Self {
            timeout,
            expires_at: now + timeout,
            latest_expires_at: now + maximum,
            made_progress: false,
            paused_at: None,
        }
    }

    /// Restarts the timeout after a progress notification, up to the maximum.
    pub(super) fn record_progress(&mut self, now: Instant) {
        self.expires_at = (now + self.timeout).min(self.latest_expires_at);
        self.made_progress = true;
    }

    /// Stops the time while the call waits for input of the agent.
    pub(super) fn pause(&mut self, now: Instant) {
        self.paused_at.get_or_insert(now);
    }

    /// Continues the time after [`Self::pause`].
    pub(super) fn resume(&mut self, now: Instant) {
        if let Some(paused_at) = self.paused_at.take() {
            let paused_for = now.saturating_duration_since(paused_at);
            self.expires_at += paused_for;
            self.latest_expires_at += paused_for;
        }
    }

    /// Returns the instant at which the call ends, unless it is paused.
    pub(super) fn expires_at(self) -> Instant {
        self.expires_at
    }

    /// Describes the exceeded limit, as the end of the sentence "MCP server x …".
    pub(super) fn timeout_reason(self) -> String {
        let seconds = self.timeout.as_secs_f64();
        if !self.made_progress {
            format!("did not respond within {seconds} s")
        } else if self.expires_at < self.latest_expires_at {
            format!("sent neither a response nor progress for {seconds} s")
        } else {
            let maximum =
                self.timeout.saturating_mul(MAX_TIMEOUT_FACTOR).min(MAX_CALL_DURATION.max(self.timeout));
            format!("sent progress, but no response within {} s", maximum.as_secs_f64())
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
            (after(10), "did not respond within 10 s")
        );
        deadline.record_progress(after(9));
        let no_progress = "sent neither a response nor progress for 10 s";
        assert_eq!((deadline.expires_at(), &*deadline.timeout_reason()), (after(19), no_progress));
        deadline.record_progress(after(99));
        let too_long = "sent progress, but no response within 100 s";
        assert_eq!((deadline.expires_at(), &*deadline.timeout_reason()), (after(100), too_long));

        let mut waiting = CallDeadline::new(start, Duration::from_secs(10));
        waiting.pause(after(4));
        waiting.pause(after(1_000));
        waiting.resume(after(2_004));
        waiting.resume(after(3_000));
        assert_eq!(waiting.expires_at(), after(2_010), "a person was waited for from 4 to 2004");
        waiting.record_progress(after(2_009));
        assert_eq!(waiting.expires_at(), after(2_019));

        let mut long = CallDeadline::new(start, Duration::from_hours(20));
        long.record_progress(start + Duration::from_hours(19));
        assert_eq!(long.expires_at(), start + MAX_CALL_DURATION);
        assert!(long.timeout_reason().ends_with("86400 s"));
    }
}
