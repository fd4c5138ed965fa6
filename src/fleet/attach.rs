use std::time::Duration;

use tokio::time::{Instant, sleep, sleep_until};
use tracing::Instrument;

use super::FleetContext;
use super::listing::read_all;
use super::new_connection::NewConnection;
use crate::plan::ConnectionTarget;
use crate::resource::{Reason, Timeouts, Transport};
use crate::wire::{self, ConnectionContext, ConnectionError, Era};

/// The longest wait for the response to the probe of a server's era.
const MAX_PROBE_TIMEOUT: Duration = Duration::from_secs(10);

/// Connects, negotiates the protocol and reads all lists.
///
/// A failure closes what was opened, on the tasks of `host`. A server whose era is not cached is contacted in the era
/// `opening_era`, or probed.
pub(super) async fn attach(
    context: &FleetContext,
    target: &ConnectionTarget,
    host: &ConnectionContext,
    opening_era: Option<Era>,
) -> Result<NewConnection, ConnectionError> {
    let (endpoint, timeouts) = (&target.endpoint, &target.spec.timeouts);
    let _attempt_gauge = context.metrics.start_attempt();
    // A silent server gets `initialize` within the same attempt.
    let is_stdio = endpoint.transport.is_stdio();
    let response_timeout = if is_stdio { timeouts.start.get() } else { timeouts.connect.get() };
    let probe_timeout = MAX_PROBE_TIMEOUT.min(response_timeout / 3);
    let cached_era = context.server_cache.era(endpoint.digest());
    let timed_attempt = Box::pin(async {
        // The wait for a slot does not count against the server's timeouts.
        let started_at = Instant::now();
        let timer = context.metrics.start_attach_timer(target);
        let attempt = async {
            let (connection, mut events) =
                wire::open(endpoint, cached_era.or(opening_era), probe_timeout, host).await?;
            context.server_cache.store_era(endpoint.digest(), connection.handshake().era);
            let list_all = async {
                events.subscribe().await?;
                let answered_at = host.process_activity.first_message_at().unwrap_or(started_at);
                let listing =
                    read_all(&connection, &target.spec, answered_at + timeouts.connect.get()).await?;
                tracing::debug!(tools = listing.lists.tools.len(), "the lists were read");
                connection.close_idle_connections(Duration::MAX);
                Ok(listing)
            };
            match list_all.await {
                Ok(listing) => Ok(NewConnection { connection, events, listing }),
                Err(error) => {
                    host.tasks.spawn(async move { connection.close().await });
                    Err(error)
                }
            }
        };
        let attempt = attempt.instrument(timer.tracing_span());
        let result = tokio::select! {
            biased;
            result = attempt => result,
            error = attach_timeout(&endpoint.transport, timeouts, host) => Err(error),
        };
        timer.finish_attach(&result);
        result
    });
    // A server that has answered before needs no download any more.
    let result = context
        .attempt_slots
        .run(&endpoint.transport, &host.process_activity, cached_era.is_none(), timed_attempt)
        .await;
    let may_be_wrong_era =
        |error: &ConnectionError| matches!(error.problem.reason, Reason::HandshakeFailed | Reason::Timeout);
    if cached_era.is_some() && result.as_ref().is_err_and(may_be_wrong_era) {
        // The server may have been upgraded to another era: the next attempt probes it.
        context.server_cache.remove_era(endpoint.digest());
    }
    result
}

/// Waits until an attempt exceeds its timeout, and returns the error. A process has `timeouts.start` for its first
/// answer, since it may be downloaded first, and `timeouts.connect` from then on.
async fn attach_timeout(
    transport: &Transport,
    timeouts: &Timeouts,
    host: &ConnectionContext,
) -> ConnectionError {
    if transport.is_stdio() {
        let start = timeouts.start.get();
        tokio::select! {
            biased;
            answered_at = host.process_activity.wait_for_first_message() => {
                sleep_until(answered_at + timeouts.connect.get()).await;
            }
            () = sleep(start) => {
                let (seconds, stderr) = (start.as_secs_f64(), host.stderr_tail.message_suffix());
                let limit = "spec.timeouts.start";
                return timeout_error(format!("no answer within {seconds} s of its start ({limit}){stderr}"));
            }
        }
    } else {
        sleep(timeouts.connect.get()).await;
    }
    let (seconds, stderr) = (timeouts.connect.get().as_secs_f64(), host.stderr_tail.message_suffix());
    let step = &host.attempt_step;
    timeout_error(format!(
        "not attached within {seconds} s (spec.timeouts.connect); waited for {step}{stderr}"
    ))
}

pub(super) fn timeout_error(message: String) -> ConnectionError {
    ConnectionError::new(Reason::Timeout, message).into_dispatched()
}
