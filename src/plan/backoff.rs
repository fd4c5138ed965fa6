use std::time::Duration;

use crate::resource::Retry;

/// The delays between attempts: exponential, jittered, capped.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Backoff {
    failures: u32,
}

/// When to try again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Delay {
    /// How long to wait.
    pub wait: Duration,
    /// The number of the attempt that follows, from 2.
    pub attempt: u32,
}

impl Backoff {
    /// Counts a failure and gives the delay before the next attempt.
    ///
    /// `jitter` is a random number from 0 to 1: the delay is the exponential one, cut by up to a half, so
    /// that servers which failed together do not come back together. `floor` is what the server asked for
    /// (Retry-After); it wins over `retry.max`.
    pub fn fail(&mut self, retry: &Retry, jitter: f64, floor: Option<Duration>) -> Delay {
        let doublings = self.failures.min(32);
        self.failures = self.failures.saturating_add(1);
        let full = retry.initial.get().saturating_mul(1_u32.checked_shl(doublings).unwrap_or(u32::MAX));
        let capped = full.min(retry.max.get());
        let wait = capped.mul_f64(1.0 - jitter.clamp(0.0, 1.0) / 2.0);
        Delay { wait: wait.max(floor.unwrap_or_default()), attempt: self.failures.saturating_add(1) }
    }

    /// Forgets the failures: after a stable time, a changed spec or a request.
    pub fn reset(&mut self) {
        self.failures = 0;
    }

    /// Failures in a row.
    pub fn failures(self) -> u32 {
        self.failures
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resource::RetryDelay;

    fn retry() -> Retry {
        Retry { initial: RetryDelay::parse("1s").unwrap(), max: RetryDelay::parse("10s").unwrap() }
    }

    #[test]
    fn delays_double_up_to_the_cap() {
        let mut backoff = Backoff::default();
        let waits: Vec<_> = (0..6).map(|_| backoff.fail(&retry(), 0.0, None).wait.as_secs()).collect();
        assert_eq!(waits, [1, 2, 4, 8, 10, 10]);
        backoff.reset();
        assert_eq!(backoff.fail(&retry(), 0.0, None), Delay { wait: Duration::from_secs(1), attempt: 2 });
    }

    #[test]
    fn jitter_cuts_at_most_half() {
        for jitter in [0.0, 0.3, 1.0] {
            let wait = Backoff::default().fail(&retry(), jitter, None).wait;
            assert!(wait >= Duration::from_millis(500) && wait <= Duration::from_secs(1), "{wait:?}");
        }
    }

    #[test]
    fn what_the_server_asks_for_wins() {
        let floor = Duration::from_mins(1);
        assert_eq!(Backoff::default().fail(&retry(), 1.0, Some(floor)).wait, floor);
    }

    #[test]
    fn never_overflows() {
        let mut backoff = Backoff { failures: u32::MAX };
        assert_eq!(backoff.fail(&retry(), 0.0, None).wait, Duration::from_secs(10));
    }
}
