//! Draining and closing connections.

use std::pin::Pin;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;
use tracing::debug;

use crate::resource::Problem;
use crate::upstream::DrainingConnection;
use crate::wire::{Connection, ConnectionError};

/// Completes when everything that belongs to a connection or attempt has ended.
pub(super) type CloseFuture = Pin<Box<dyn Future<Output = ()> + Send>>;

/// The drain timeout of a closing connection, and the problem with which calls fail that are then still in flight.
#[derive(Clone, Debug)]
pub(super) struct DrainDeadline {
    pub(super) timeout: Duration,
    pub(super) problem: Problem,
}

/// Drains the calls of a connection until its deadline, then closes it and waits for everything that belongs to it.
/// `deadlines` may shorten the drain.
pub(super) async fn drain_and_close(
    connection: DrainingConnection,
    deadline: DrainDeadline,
    deadlines: watch::Receiver<Option<DrainDeadline>>,
) {
    drain(&connection, deadline, deadlines).await;
    connection.connection().close().await;
    connection.connection().wait_for_tasks().await;
}

/// Closes a connection that never had a call.
pub(super) fn close(connection: Connection) -> CloseFuture {
    Box::pin(async move {
        connection.close().await;
        connection.wait_for_tasks().await;
    })
}

/// Waits until the calls of a connection have ended, or fails them at the deadline.
async fn drain(
    connection: &DrainingConnection,
    mut deadline: DrainDeadline,
    mut deadlines: watch::Receiver<Option<DrainDeadline>>,
) {
    let mut until = Instant::now() + deadline.timeout;
    loop {
        tokio::select! {
            biased;
            () = connection.wait_until_drained() => return,
            () = tokio::time::sleep_until(until) => break,
            Ok(()) = deadlines.changed() => {
                // A later order (a removal during a replacement, say) can only shorten the drain.
                let updated = deadlines.borrow_and_update().clone();
                let at = |deadline: &DrainDeadline| Instant::now() + deadline.timeout;
                if let Some(sooner) = updated.filter(|sooner| at(sooner) < until) {
                    until = at(&sooner);
                    deadline = sooner;
                }
            }
        }
    }
    debug!(calls = connection.in_flight(), "calls were still in flight when the connection closed");
    let DrainDeadline { timeout: limit, problem } = deadline;
    let message = if limit.is_zero() {
        problem.message
    } else {
        format!("{}; the call did not end within {} s", problem.message, limit.as_secs_f64())
    };
    connection.connection().mark_ended(ConnectionError::new(problem.reason, message));
}
