use std::convert::Infallible;
use std::future::pending;

use tokio::time::timeout;
use tracing::debug;

use crate::resource::{Health, Reason};
use crate::wire::{Link, LinkError};

/// Asks a silent server for a sign of life, again and again; gives the connection up after as many
/// failures in a row as the declaration allows. Servers that answer calls are not asked.
///
/// Never ends, since there is nothing to do with its end: the connection itself tells that it is lost.
///
/// `offset` (0 to 1) of an interval passes first, so that servers attached together are not asked together.
pub(super) async fn watch(link: Link, checks: Health, offset: f64) -> Infallible {
    let interval = checks.interval.get();
    if interval.is_zero() {
        return pending().await;
    }
    tokio::time::sleep(interval.mul_f64(offset)).await;
    let mut strikes = 0;
    loop {
        tokio::time::sleep(interval).await;
        if link.answered_lately() {
            strikes = 0;
            continue;
        }
        // On the heap only while it runs: most of the time there is nothing to hold.
        let check = Box::pin(timeout(interval, link.check()));
        let why = match check.await {
            Ok(Ok(())) => {
                strikes = 0;
                continue;
            }
            Ok(Err(error)) => error.problem.message,
            Err(_) => format!("no answer within {} s", interval.as_secs()),
        };
        strikes += 1;
        debug!(strikes, why, "a health check failed");
        if strikes >= checks.failures {
            let message = format!("{strikes} health checks in a row failed; the last: {why}");
            link.give_up(LinkError::new(Reason::Unhealthy, message));
            return pending().await;
        }
    }
}
