//! When a token is renewed. Pure.

use std::time::Duration;

/// The longest time before its expiry at which a token is renewed.
const MAX_MARGIN: Duration = Duration::from_mins(5);
/// The shortest time between two renewals.
const MIN_DELAY: Duration = Duration::from_secs(5);

/// Returns the time after its receipt at which a token with this lifetime is renewed: a third of the lifetime before it
/// expires, at most five minutes. The lifetime counts from the receipt, so clocks that differ do not matter.
pub(super) fn renewal_delay(lifetime: Duration) -> Duration {
    lifetime.saturating_sub((lifetime / 3).min(MAX_MARGIN)).max(MIN_DELAY)
}

/// Returns how long ago a token was received, by the wall clock of this machine. A clock that was set back counts as none.
pub(super) fn age(received_at: u64, now: u64) -> Duration {
    Duration::from_secs(now.saturating_sub(received_at))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn token_is_renewed_before_it_expires() {
        for (lifetime, delay) in [(3600, 3300), (30, 20), (600, 400), (1, 5), (0, 5), (86_400, 86_100)] {
            assert_eq!(
                renewal_delay(Duration::from_secs(lifetime)),
                Duration::from_secs(delay),
                "{lifetime}"
            );
        }
        assert_eq!([age(100, 130), age(100, 70)], [Duration::from_secs(30), Duration::ZERO]);
    }
}
