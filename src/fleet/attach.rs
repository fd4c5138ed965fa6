use std::time::Duration;

use tokio::time::{Instant, sleep, sleep_until};
use tracing::Instrument;

use super::FleetContext;
use super::listing::read_all;
use super::new_connection::NewConnection;
use crate::plan::ConnectionTarget;
use crate::resource::{Reason, Timeouts, Transport};
use crate::wire::{self, ConnectionContext, ConnectionError, Era};

/// Connects, agrees on a protocol and lists everything. A failure closes what was opened, on the host's tasks.
/// A server whose era is not known is addressed in that of `opening`, or probed.
pub(super) async fn attach(
    context: &FleetContext,
    target: &ConnectionTarget,
    host: &ConnectionContext,
    opening: Option<Era>,
) -> Result<NewConnection, ConnectionError> {
    let (endpoint, timeouts) = (&target.endpoint, &target.spec.timeouts);
    let _under_way = context.metrics.start_attempt();
    let remembered = context.server_cache.era(endpoint.digest());
    let limited = Box::pin(async {
        // Waiting for a slot is not the server's time.
        let begun = Instant::now();
        let measured = context.metrics.start_attach_timer(target);
        let attempt = async {
            let (link, mut events) = wire::open(endpoint, remembered.or(opening), host).await?;
            context.server_cache.store_era(endpoint.digest(), link.handshake().era);
            let listed = async {
                events.subscribe().await?;
                let from = host.process_activity.first_message_at().unwrap_or(begun);
                let listings = read_all(&link, from + timeouts.connect.get()).await?;
                link.close_idle_connections(Duration::MAX);
                Ok(listings)
            };
            match listed.await {
                Ok(listings) => Ok(NewConnection { connection: link, events, listing: listings }),
                Err(error) => {
                    host.tasks.spawn(async move { link.close().await });
                    Err(error)
                }
            }
        };
        let attempt = attempt.instrument(measured.tracing_span());
        let result = tokio::select! {
            biased;
            result = attempt => result,
            error = attach_timeout(&endpoint.transport, timeouts, host) => Err(error),
        };
        measured.finish_attach(&result);
        result
    });
    // Of a server that has answered before, whatever runs it has been downloaded.
    let result = context
        .attempt_slots
        .run(&endpoint.transport, &host.process_activity, remembered.is_none(), limited)
        .await;
    let misunderstood =
        |error: &ConnectionError| matches!(error.problem.reason, Reason::HandshakeFailed | Reason::Timeout);
    if remembered.is_some() && result.as_ref().is_err_and(misunderstood) {
        // The server may have been upgraded: probe it the next time.
        context.server_cache.remove_era(endpoint.digest());
    }
    result
}

/// Waits until an attempt has taken too long. A process has `timeouts.start` for its first answer, since it may be
/// downloaded first, and from then on as long as other servers.
async fn attach_timeout(
    transport: &Transport,
    timeouts: &Timeouts,
    host: &ConnectionContext,
) -> ConnectionError {
    if let Transport::Stdio(_) = transport {
        let start = timeouts.start.get();
        tokio::select! {
            biased;
            answered = host.process_activity.wait_for_first_message() => sleep_until(answered + timeouts.connect.get()).await,
            () = sleep(start) => {
                let (seconds, words) = (start.as_secs_f64(), host.stderr_tail.message_suffix());
                return timeout_error(format!("no answer within {seconds} s of its start (spec.timeouts.start){words}"));
            }
        }
    } else {
        sleep(timeouts.connect.get()).await;
    }
    let (seconds, words) = (timeouts.connect.get().as_secs_f64(), host.stderr_tail.message_suffix());
    timeout_error(format!("not attached within {seconds} s (spec.timeouts.connect){words}"))
}

pub(super) fn timeout_error(message: String) -> ConnectionError {
    ConnectionError::new(Reason::Timeout, message).into_dispatched()
}
