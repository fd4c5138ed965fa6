use std::time::Duration;

use ring::rand::{SecureRandom, SystemRandom};

/// The bounds of the delays between attempts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Delays {
    /// The first delay.
    pub initial: Duration,
    /// The longest delay.
    pub max: Duration,
}

/// Counts consecutive failures and computes the delay before the next attempt: exponential, jittered and capped.
///
/// All retries follow this rule. One-off operations (a request, a write) reset the failures on success with
/// [`Backoff::reset`]. Long-lived operations (a connection, a stream, a watch) reset them only after they lasted for a
/// stable time, with [`Backoff::record_end`], so that an operation which starts well but ends immediately still backs
/// off.
///
/// ```
/// use std::time::Duration;
/// use evenkeel::net::{Backoff, Delays};
///
/// let delays = Delays { initial: Duration::from_secs(1), max: Duration::from_secs(3) };
/// let mut backoff = Backoff::default();
/// let mut next = || backoff.record_failure(delays, 0.0, None).as_secs();
/// assert_eq!([next(), next(), next()], [1, 2, 3]);
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Backoff {
    failures: u32,
}

impl Backoff {
    /// Counts a failure and returns the delay before the next attempt.
    ///
    /// The delay doubles from `initial` up to `max`. `jitter`, a random number from 0 to 1, reduces it by up to a half,
    /// so that peers that failed at the same time do not retry at the same time. `floor` is the minimum delay that the
    /// other side asked for (Retry-After); it takes precedence over `max`.
    pub fn record_failure(&mut self, delays: Delays, jitter: f64, floor: Option<Duration>) -> Duration {
        let doublings = self.failures.min(32);
        self.failures = self.failures.saturating_add(1);
        let uncapped = delays.initial.saturating_mul(1_u32.checked_shl(doublings).unwrap_or(u32::MAX));
        let delay = uncapped.min(delays.max).mul_f64(1.0 - jitter.clamp(0.0, 1.0) / 2.0);
        delay.max(floor.unwrap_or_default())
    }

    /// Resets the failures: after a success, a changed spec or a request by a person.
    pub fn reset(&mut self) {
        self.failures = 0;
    }

    /// Records the end of a long-lived operation and resets the earlier failures if it `lasted` at least `stable` since
    /// its successful start. If the end itself is a failure, the caller counts it with [`Backoff::record_failure`].
    pub fn record_end(&mut self, lasted: Duration, stable: Duration) {
        if lasted >= stable {
            self.reset();
        }
    }

    /// Returns the number of consecutive failures.
    pub fn failures(self) -> u32 {
        self.failures
    }
}

/// Returns a random number from 0 to 1, for [`Backoff::record_failure`] and for times that must not coincide.
///
/// Returns 0 if the system random number generator fails; the delay then has no jitter.
pub fn jitter() -> f64 {
    let mut bytes = [0; 4];
    let _ = SystemRandom::new().fill(&mut bytes);
    f64::from(u32::from_be_bytes(bytes)) / f64::from(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const DELAYS: Delays = Delays { initial: Duration::from_secs(1), max: Duration::from_secs(10) };

    #[test]
    fn delays_double_up_to_the_cap() {
        let mut backoff = Backoff::default();
        let delays: Vec<_> = (0..6).map(|_| backoff.record_failure(DELAYS, 0.0, None).as_secs()).collect();
        assert_eq!((delays, backoff.failures()), (vec![1, 2, 4, 8, 10, 10], 6));
        backoff.reset();
        assert_eq!(backoff.record_failure(DELAYS, 0.0, None), DELAYS.initial);
        let mut backoff = Backoff { failures: u32::MAX };
        assert_eq!(backoff.record_failure(DELAYS, 0.0, None), DELAYS.max, "never overflows");
    }

    #[test]
    fn jitter_halves_at_most_and_retry_after_wins() {
        let minute = Some(Duration::from_mins(1));
        for (failures, jitter, floor, millis) in [
            (0, 0.0, None, 1_000),
            (0, 0.5, None, 750),
            (0, 1.0, None, 500),
            (0, 7.0, None, 500),
            (0, -1.0, None, 1_000),
            (9, 1.0, None, 5_000),
            (0, 1.0, minute, 60_000),
            (9, 0.0, minute, 60_000),
            (9, 0.0, Some(Duration::from_secs(1)), 10_000),
        ] {
            let delay = Backoff { failures }.record_failure(DELAYS, jitter, floor);
            assert_eq!(delay, Duration::from_millis(millis), "{failures} {jitter} {floor:?}");
        }
        let delay = Backoff::default().record_failure(DELAYS, jitter(), None);
        assert!(delay >= DELAYS.initial / 2 && delay <= DELAYS.initial, "{delay:?}");
    }

    #[test]
    fn failures_are_reset_only_after_a_stable_run() {
        let stable = Duration::from_secs(30);
        for (lasted, failures) in [(0, 3), (29, 3), (30, 0), (3_600, 0)] {
            let mut backoff = Backoff { failures: 3 };
            backoff.record_end(Duration::from_secs(lasted), stable);
            assert_eq!(backoff.failures(), failures, "{lasted} s");
        }
    }
}
