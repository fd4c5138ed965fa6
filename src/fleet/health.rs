use std::convert::Infallible;
use std::future::pending;
use std::time::Duration;

use tokio::time::{Instant, sleep, timeout};
use tracing::debug;

use crate::resource::{HealthCheck, Reason};
use crate::upstream::UpstreamHandle;
use crate::wire::{Connection, ConnectionError, FailureSource};

/// How long a check may take where there is no interval.
const DEFAULT_CHECK_TIMEOUT: Duration = Duration::from_secs(30);

/// Asks a silent server for a sign of life, again and again; gives the connection up after as many
/// failures in a row as the declaration allows. Servers that say anything are not asked, nor are those that
/// are at work on a call, which may take `call`, or want to be left alone. One whose response casts doubt on the
/// connection is asked at once, and given up if it rejects that request too or no longer knows the session.
///
/// Never ends, since there is nothing to do with its end: the connection itself tells that it is lost.
///
/// `offset` (0 to 1) of an interval passes first, so that servers attached together are not asked together.
pub(super) async fn run_health_checks(
    link: Connection,
    calls: UpstreamHandle,
    checks: HealthCheck,
    call: Duration,
    offset: f64,
) -> Infallible {
    let interval = checks.interval.get();
    let patience = if interval.is_zero() { DEFAULT_CHECK_TIMEOUT } else { interval };
    let mut silence = SilenceTracker { since: Instant::now(), failures: 0 };
    let suspicious = |silence: &mut SilenceTracker| {
        let (heard, busy) = (link.received_since_last_check(), calls.idle_for().is_none());
        silence.should_check(Instant::now(), heard, busy, call) && link.retry_after_problem().is_none()
    };
    let mut wait = interval.mul_f64(1.0 + offset);
    loop {
        let doubted = tokio::select! {
            () = sleep(wait), if !interval.is_zero() => false,
            () = link.health_check_requested() => true,
        };
        wait = interval;
        if !doubted && !suspicious(&mut silence) {
            continue;
        }
        // On the heap only while it runs: most of the time there is nothing to hold.
        let check = Box::pin(timeout(patience, link.check_health()));
        let why = match check.await {
            // The answer was heard. The connection that it came on would only wait to be too old for the next.
            Ok(Ok(())) => {
                link.close_idle_connections(interval);
                continue;
            }
            Ok(Err(error))
                if error.failure_source == FailureSource::Session
                    || error.problem.reason.requires_user_action() =>
            {
                link.mark_ended(error);
                return pending().await;
            }
            Ok(Err(error)) => error.problem.message,
            Err(_) => format!("no answer within {} s", patience.as_secs()),
        };
        if !suspicious(&mut silence) {
            continue;
        }
        silence.failures += 1;
        debug!(strikes = silence.failures, why, "a health check failed");
        if silence.failures >= checks.failures {
            let message = format!("{} health checks in a row failed; the last: {why}", silence.failures);
            link.mark_ended(ConnectionError::new(Reason::Unhealthy, message));
            return pending().await;
        }
    }
}

/// How long a server has said nothing, and what was made of it.
struct SilenceTracker {
    since: Instant,
    failures: u8,
}

impl SilenceTracker {
    /// Whether the silence is to be looked into. A server that is at work on a call may be silent for as long as a
    /// call may take; after that the call has ended for want of an answer, and others behind it are no excuse.
    fn should_check(&mut self, now: Instant, heard: bool, busy: bool, call: Duration) -> bool {
        if heard {
            *self = Self { since: now, failures: 0 };
            return false;
        }
        !busy || now.duration_since(self.since) > call
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn busy_server_may_be_silent_for_the_call_timeout() {
        let start = Instant::now();
        let mut silence = SilenceTracker { since: start, failures: 0 };
        for (second, heard, busy, asks) in [
            (5, false, false, true),
            (10, false, true, false),
            (60, false, true, false),
            // The call that was in flight has timed out; another waits behind it.
            (61, false, true, true),
            (65, false, false, true),
            (70, true, true, false),
            (75, false, true, false),
            (80, false, false, true),
        ] {
            let now = start + Duration::from_secs(second);
            assert_eq!(silence.should_check(now, heard, busy, Duration::from_mins(1)), asks, "at {second} s");
        }
        silence.failures = 2;
        assert!(!silence.should_check(start, true, false, Duration::ZERO));
        assert_eq!(silence.failures, 0, "a word in between forgets what was before");
    }
}
