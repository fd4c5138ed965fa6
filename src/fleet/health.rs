use std::convert::Infallible;
use std::future::pending;
use std::time::Duration;

use tokio::time::{Instant, sleep, timeout};
use tracing::debug;

use crate::resource::{HealthCheck, Reason};
use crate::upstream::UpstreamHandle;
use crate::wire::{Connection, ConnectionError, FailureSource, HealthRequest, ProtocolViolation};

/// The timeout of a check if no interval is configured.
const DEFAULT_CHECK_TIMEOUT: Duration = Duration::from_secs(30);

/// The health checks of one connection. They end it after as many failures in a row as the declaration allows.
///
/// No check is sent while messages arrive, while a call is in flight (for the call timeout at most), or while a
/// Retry-After is in force. A response that casts doubt on the connection triggers a check at once; the connection ends
/// if the server rejects that request too or no longer has the session. A server that has never answered a `ping` is asked
/// for a list instead.
pub(super) struct HealthChecks {
    connection: Connection,
    calls: UpstreamHandle,
    checks: HealthCheck,
    call_timeout: Duration,
    silence: SilenceTracker,
    request: HealthRequest,
    ping_answered: bool,
}

impl HealthChecks {
    pub(super) fn new(
        connection: Connection,
        calls: UpstreamHandle,
        checks: HealthCheck,
        call_timeout: Duration,
    ) -> Self {
        let silence = SilenceTracker { since: Instant::now(), failures: 0 };
        let request = HealthRequest::Ping;
        Self { connection, calls, checks, call_timeout, silence, request, ping_answered: false }
    }

    /// Runs the checks. Never returns: the connection itself reports its loss.
    ///
    /// The first check is delayed by `offset` (0 to 1) of an interval more, so that servers attached together are not
    /// checked together.
    pub(super) async fn run(&mut self, offset: f64) -> Infallible {
        let interval = self.checks.interval.get();
        let mut delay = interval.mul_f64(1.0 + offset);
        loop {
            let requested = tokio::select! {
                () = sleep(delay), if !interval.is_zero() => false,
                () = self.connection.health_check_requested() => true,
            };
            delay = interval;
            // Boxed only while it runs, to keep the idle task small.
            if (requested || self.needs_check())
                && let Some(error) = Box::pin(self.check()).await
            {
                self.connection.mark_ended(error);
                return pending().await;
            }
        }
    }

    fn needs_check(&mut self) -> bool {
        let Self { connection, calls, .. } = self;
        let (received, busy) = (connection.received_since_last_check(), calls.idle_for().is_none());
        self.silence.should_check(Instant::now(), received, busy, self.call_timeout)
            && connection.retry_after_problem().is_none()
    }

    /// Checks the server once. Returns the error that ends the connection, if there is one.
    async fn check(&mut self) -> Option<ConnectionError> {
        let Self { connection, request, .. } = self;
        let interval = self.checks.interval.get();
        let check_timeout = if interval.is_zero() { DEFAULT_CHECK_TIMEOUT } else { interval };
        let mut result = timeout(check_timeout, connection.check_health(*request)).await;
        self.ping_answered |= *request == HealthRequest::Ping && matches!(result, Ok(Ok(())));
        // Some servers do not implement `ping`, though it is required.
        if !self.ping_answered && *request == HealthRequest::Ping {
            let list_result = timeout(check_timeout, connection.check_health(HealthRequest::List)).await;
            if let Ok(Ok(())) = list_result {
                *request = HealthRequest::List;
                connection.record_violation(ProtocolViolation::PingUnanswered);
                result = list_result;
            }
        }
        let why = match result {
            Ok(Ok(())) => return None,
            Ok(Err(error))
                if error.failure_source == FailureSource::Session
                    || error.problem.reason.requires_user_action() =>
            {
                return Some(error);
            }
            // It shows nothing about the server.
            Ok(Err(error)) if error.failure_source == FailureSource::LocalLimit => {
                debug!(%error, "a health check could not be sent");
                return None;
            }
            Ok(Err(error)) => error.problem.message,
            Err(_) => format!("no response within {} s", check_timeout.as_secs()),
        };
        // A message that arrived during the check proves that the server is alive.
        if !self.needs_check() {
            return None;
        }
        self.silence.failures += 1;
        let failures = self.silence.failures;
        debug!(failures, why, "a health check failed");
        (failures >= self.checks.failures).then(|| {
            let message =
                format!("{failures} health checks in a row failed (spec.health); last error: {why}");
            ConnectionError::new(Reason::Unhealthy, message)
        })
    }
}

/// The time since the last message from a server, and the failed checks since then.
struct SilenceTracker {
    since: Instant,
    failures: u8,
}

impl SilenceTracker {
    /// Returns true if a check is due. While a call is in flight a server may be silent for the call timeout; after
    /// that the call has timed out, and other calls queued behind it do not extend the time.
    fn should_check(&mut self, now: Instant, received: bool, busy: bool, call_timeout: Duration) -> bool {
        if received {
            *self = Self { since: now, failures: 0 };
            return false;
        }
        !busy || now.duration_since(self.since) > call_timeout
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn busy_server_may_be_silent_for_the_call_timeout() {
        let start = Instant::now();
        let mut silence = SilenceTracker { since: start, failures: 0 };
        for (second, received, busy, expected) in [
            (5, false, false, true),
            (10, false, true, false),
            (60, false, true, false),
            // The call in flight has timed out; another is queued behind it.
            (61, false, true, true),
            (65, false, false, true),
            (70, true, true, false),
            (75, false, true, false),
            (80, false, false, true),
        ] {
            let now = start + Duration::from_secs(second);
            assert_eq!(
                silence.should_check(now, received, busy, Duration::from_mins(1)),
                expected,
                "at {second} s"
            );
        }
        silence.failures = 2;
        assert!(!silence.should_check(start, true, false, Duration::ZERO));
        assert_eq!(silence.failures, 0, "a message resets the failure count");
    }
}
