use std::time::Duration;

use tokio::time::Instant;

/// A call that goes on making progress ends all the same after so many times its limit, and after a day
/// (2025-11-25, basic/lifecycle, timeouts: a maximum must hold regardless of progress).
const PROGRESS: u32 = 10;
const MAXIMUM: Duration = Duration::from_hours(24);

/// When a call ends for want of an answer.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct CallDeadline {
    limit: Duration,
    until: Instant,
    last: Instant,
    progressed: bool,
}

impl CallDeadline {
    /// Of a call that begins now and has `limit` for its answer, or for its next progress.
    pub(super) fn new(now: Instant, limit: Duration) -> Self {
        let most = limit.saturating_mul(PROGRESS).min(MAXIMUM.max(limit));
        Self { limit, until: now + limit, last: now + most, progressed: false }
    }

    /// The call made progress: it has its limit again.
    pub(super) fn progress(&mut self, now: Instant) {
        self.until = (now + self.limit).min(self.last);
        self.progressed = true;
    }

    /// The instant at which it is over.
    pub(super) fn until(self) -> Instant {
        self.until
    }

    /// What is told of a call that is over: the end of "MCP server x …".
    pub(super) fn missed(self) -> String {
        let seconds = self.limit.as_secs_f64();
        if !self.progressed {
            format!("did not answer within {seconds} s")
        } else if self.until < self.last {
            format!("neither answered nor made progress for {seconds} s")
        } else {
            let most = self.limit.saturating_mul(PROGRESS).min(MAXIMUM.max(self.limit));
            format!("made progress, but did not answer within {} s", most.as_secs_f64())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn progress_gives_time_again_within_a_maximum() {
        let start = Instant::now();
        let after = |seconds| start + Duration::from_secs(seconds);
        let mut deadline = CallDeadline::new(start, Duration::from_secs(10));
        assert_eq!((deadline.until(), &*deadline.missed()), (after(10), "did not answer within 10 s"));
        deadline.progress(after(9));
        let silent = "neither answered nor made progress for 10 s";
        assert_eq!((deadline.until(), &*deadline.missed()), (after(19), silent));
        deadline.progress(after(99));
        let endless = "made progress, but did not answer within 100 s";
        assert_eq!((deadline.until(), &*deadline.missed()), (after(100), endless));

        let mut day = CallDeadline::new(start, Duration::from_hours(20));
        day.progress(start + Duration::from_hours(19));
        assert_eq!(day.until(), start + MAXIMUM);
        assert!(day.missed().ends_with("86400 s"));
    }
}
