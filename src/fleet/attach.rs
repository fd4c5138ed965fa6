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
    let _under_way = context.metrics.attempt();
    let remembered = context.memory.era(endpoint.digest());
    let limited = Box::pin(async {
        // Waiting for a slot is not the server's time.
        let begun = Instant::now();
        let measured = context.metrics.attach(target);
        let attempt = async {
            let (link, mut events) = wire::open(endpoint, remembered.or(opening), host).await?;
            context.memory.learn_era(endpoint.digest(), link.peer().era);
            let listed = async {
                events.begin().await?;
                let from = host.started.answered_at().unwrap_or(begun);
                let listings = read_all(&link, from + timeouts.connect.get()).await?;
                link.rest(Duration::MAX);
                Ok(listings)
            };
            match listed.await {
                Ok(listings) => Ok(NewConnection { link, events, listings }),
                Err(error) => {
                    host.tasks.spawn(async move { link.close().await });
                    Err(error)
                }
            }
        };
        let attempt = attempt.instrument(measured.context());
        let result = tokio::select! {
            biased;
            result = attempt => result,
            error = too_late(&endpoint.transport, timeouts, host) => Err(error),
        };
        measured.attached(&result);
        result
    });
    // Of a server that has answered before, whatever runs it has been downloaded.
    let result = context.slots.run(&endpoint.transport, &host.started, remembered.is_none(), limited).await;
    let misunderstood =
        |error: &ConnectionError| matches!(error.problem.reason, Reason::HandshakeFailed | Reason::Timeout);
    if remembered.is_some() && result.as_ref().is_err_and(misunderstood) {
        // The server may have been upgraded: probe it the next time.
        context.memory.forget_era(endpoint.digest());
    }
    result
}

/// Waits until an attempt has taken too long. A process has `timeouts.start` for its first answer, since it may be
/// downloaded first, and from then on as long as other servers.
async fn too_late(transport: &Transport, timeouts: &Timeouts, host: &ConnectionContext) -> ConnectionError {
    if let Transport::Stdio(_) = transport {
        let start = timeouts.start.get();
        tokio::select! {
            biased;
            answered = host.started.answered() => sleep_until(answered + timeouts.connect.get()).await,
            () = sleep(start) => {
                let (seconds, words) = (start.as_secs_f64(), host.last_words.quoted());
                return timeout(format!("no answer within {seconds} s of its start (spec.timeouts.start){words}"));
            }
        }
    } else {
        sleep(timeouts.connect.get()).await;
    }
    let (seconds, words) = (timeouts.connect.get().as_secs_f64(), host.last_words.quoted());
    timeout(format!("not attached within {seconds} s (spec.timeouts.connect){words}"))
}

pub(super) fn timeout(message: String) -> ConnectionError {
    ConnectionError::new(Reason::Timeout, message).dispatched()
}
