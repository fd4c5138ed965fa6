use std::time::Duration;

use ring::rand::{SecureRandom, SystemRandom};

/// Delays between attempts: exponential, jittered and capped.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Backoff {
    failures: u32,
}

impl Backoff {
    /// Counts a failure and gives the delay before the next attempt.
    ///
    /// The delay doubles from `initial` up to `max` and is cut by up to a half by `jitter`, a random number from 0 to 1,
    /// so that peers which failed together do not come back together. `floor` is the delay that the other side asked
    /// for (Retry-After); it wins over `max`.
    pub fn fail(
        &mut self,
        initial: Duration,
        max: Duration,
        jitter: f64,
        floor: Option<Duration>,
    ) -> Duration {
        let doublings = self.failures.min(32);
        self.failures = self.failures.saturating_add(1);
        let full = initial.saturating_mul(1_u32.checked_shl(doublings).unwrap_or(u32::MAX));
        let wait = full.min(max).mul_f64(1.0 - jitter.clamp(0.0, 1.0) / 2.0);
        wait.max(floor.unwrap_or_default())
    }

    /// Forgets the failures: after a stable time, a changed spec or a request.
    pub fn reset(&mut self) {
        self.failures = 0;
    }

    /// Counts the failures in a row.
    pub fn failures(self) -> u32 {
        self.failures
    }
}

/// Gives a random number from 0 to 1, for [`Backoff::fail`] and for times that must not coincide.
///
/// Falls back to 0 where the system gives no random bytes: the delay is only not jittered.
pub fn jitter() -> f64 {
    let mut bytes = [0; 4];
    let _ = SystemRandom::new().fill(&mut bytes);
    f64::from(u32::from_be_bytes(bytes)) / f64::from(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(10));

    fn fail(backoff: &mut Backoff, jitter: f64, floor: Option<Duration>) -> Duration {
        backoff.fail(LIMITS.0, LIMITS.1, jitter, floor)
    }

    #[test]
    fn delays_double_up_to_the_cap() {
        let mut backoff = Backoff::default();
        let waits: Vec<_> = (0..6).map(|_| fail(&mut backoff, 0.0, None).as_secs()).collect();
        assert_eq!((waits, backoff.failures()), (vec![1, 2, 4, 8, 10, 10], 6));
        backoff.reset();
        assert_eq!(fail(&mut backoff, 0.0, None), Duration::from_secs(1));
    }

    #[test]
    fn jitter_cuts_at_most_half() {
        for part in [0.0, 0.3, 1.0, jitter()] {
            let wait = fail(&mut Backoff::default(), part, None);
            assert!(wait >= Duration::from_millis(500) && wait <= Duration::from_secs(1), "{wait:?}");
        }
    }

    #[test]
    fn retry_after_wins_over_the_cap() {
        let floor = Duration::from_mins(1);
        assert_eq!(fail(&mut Backoff::default(), 1.0, Some(floor)), floor);
    }

    #[test]
    fn never_overflows() {
        let mut backoff = Backoff { failures: u32::MAX };
        assert_eq!(fail(&mut backoff, 0.0, None), Duration::from_secs(10));
    }
}
