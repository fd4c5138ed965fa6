use std::time::Duration;

use ring::rand::{SecureRandom, SystemRandom};

/// The delays between attempts at one thing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Delays {
    /// The first.
    pub initial: Duration,
    /// The longest.
    pub max: Duration,
}

/// Counts failures, and gives the delay before the next attempt: exponential, jittered and capped.
///
/// The one rule for whatever is tried again: what is done once (a request, a write) forgets its failures when it
/// succeeds, by [`Backoff::reset`]; what lasts (a connection, a stream, a watch) only when it has lasted for a stable
/// time, by [`Backoff::ended`], so that what begins well and ends at once is not begun without end.
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
    pub fn record_failure(&mut self, delays: Delays, jitter: f64, floor: Option<Duration>) -> Duration {
        let doublings = self.failures.min(32);
        self.failures = self.failures.saturating_add(1);
        let full = delays.initial.saturating_mul(1_u32.checked_shl(doublings).unwrap_or(u32::MAX));
        let wait = full.min(delays.max).mul_f64(1.0 - jitter.clamp(0.0, 1.0) / 2.0);
        wait.max(floor.unwrap_or_default())
    }

    /// Forgets the failures: after a success, a changed spec or a request.
    pub fn reset(&mut self) {
        self.failures = 0;
    }

    /// Takes note that something ended which had `lasted` so long since it began well, and forgets the failures before
    /// it if that is at least `stable`. The end itself is counted by [`Backoff::fail`], if it is a failure.
    pub fn record_end(&mut self, lasted: Duration, stable: Duration) {
        if lasted >= stable {
            self.reset();
        }
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

    const DELAYS: Delays = Delays { initial: Duration::from_secs(1), max: Duration::from_secs(10) };

    #[test]
    fn delays_double_up_to_the_cap() {
        let mut backoff = Backoff::default();
        let waits: Vec<_> = (0..6).map(|_| backoff.record_failure(DELAYS, 0.0, None).as_secs()).collect();
        assert_eq!((waits, backoff.failures()), (vec![1, 2, 4, 8, 10, 10], 6));
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
            let wait = Backoff { failures }.record_failure(DELAYS, jitter, floor);
            assert_eq!(wait, Duration::from_millis(millis), "{failures} {jitter} {floor:?}");
        }
        let wait = Backoff::default().record_failure(DELAYS, jitter(), None);
        assert!(wait >= DELAYS.initial / 2 && wait <= DELAYS.initial, "{wait:?}");
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
