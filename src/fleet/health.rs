use std::convert::Infallible;
use std::future::pending;
use std::time::Duration;

use tokio::time::{Instant, sleep, timeout};
use tracing::debug;

use crate::resource::{HealthCheck, Reason};
use crate::upstream::UpstreamHandle;
use crate::wire::{Connection, ConnectionError, FailureSource};

/// How long a check may take where there is no interval.
const PATIENCE: Duration = Duration::from_secs(30);

/// Asks a silent server for a sign of life, again and again; gives the connection up after as many
/// failures in a row as the declaration allows. Servers that say anything are not asked, nor are those that
/// are at work on a call, which may take `call`, or want to be left alone. One whose response casts doubt on the
/// connection is asked at once, and given up if it rejects that request too or no longer knows the session.
///
/// Never ends, since there is nothing to do with its end: the connection itself tells that it is lost.
///
/// `offset` (0 to 1) of an interval passes first, so that servers attached together are not asked together.
pub(super) async fn watch(
    link: Connection,
    calls: UpstreamHandle,
    checks: HealthCheck,
    call: Duration,
    offset: f64,
) -> Infallible {
    let interval = checks.interval.get();
    let patience = if interval.is_zero() { PATIENCE } else { interval };
    let mut silence = Silence { since: Instant::now(), strikes: 0 };
    let suspicious = |silence: &mut Silence| {
        let (heard, busy) = (link.heard_lately(), calls.unused_for().is_none());
        silence.asks(Instant::now(), heard, busy, call) && link.paused().is_none()
    };
    let mut wait = interval.mul_f64(1.0 + offset);
    loop {
        let doubted = tokio::select! {
            () = sleep(wait), if !interval.is_zero() => false,
            () = link.doubted() => true,
        };
        wait = interval;
        if !doubted && !suspicious(&mut silence) {
            continue;
        }
        // On the heap only while it runs: most of the time there is nothing to hold.
        let check = Box::pin(timeout(patience, link.check()));
        let why = match check.await {
            // The answer was heard. The connection that it came on would only wait to be too old for the next.
            Ok(Ok(())) => {
                link.rest(interval);
                continue;
            }
            Ok(Err(error))
                if error.sign == FailureSource::Session || error.problem.reason.needs_a_person() =>
            {
                link.give_up(error);
                return pending().await;
            }
            Ok(Err(error)) => error.problem.message,
            Err(_) => format!("no answer within {} s", patience.as_secs()),
        };
        if !suspicious(&mut silence) {
            continue;
        }
        silence.strikes += 1;
        debug!(strikes = silence.strikes, why, "a health check failed");
        if silence.strikes >= checks.failures {
            let message = format!("{} health checks in a row failed; the last: {why}", silence.strikes);
            link.give_up(ConnectionError::new(Reason::Unhealthy, message));
            return pending().await;
        }
    }
}

/// How long a server has said nothing, and what was made of it.
struct Silence {
    since: Instant,
    strikes: u8,
}

impl Silence {
    /// Whether the silence is to be looked into. A server that is at work on a call may be silent for as long as a
    /// call may take; after that the call has ended for want of an answer, and others behind it are no excuse.
    fn asks(&mut self, now: Instant, heard: bool, busy: bool, call: Duration) -> bool {
        if heard {
            *self = Self { since: now, strikes: 0 };
            return false;
        }
        !busy || now.duration_since(self.since) > call
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_at_work_may_be_silent_for_as_long_as_a_call_may_take() {
        let start = Instant::now();
        let mut silence = Silence { since: start, strikes: 0 };
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
            assert_eq!(silence.asks(now, heard, busy, Duration::from_mins(1)), asks, "at {second} s");
        }
        silence.strikes = 2;
        assert!(!silence.asks(start, true, false, Duration::ZERO));
        assert_eq!(silence.strikes, 0, "a word in between forgets what was before");
    }
}
