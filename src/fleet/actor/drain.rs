//! Detaching the server, and draining and closing connections.

use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;
use tracing::debug;

use super::{Actor, Closing, DrainDeadline};
use crate::resource::{Problem, Reason};
use crate::upstream::{CallRefusal, DrainingConnection};
use crate::wire::ConnectionError;

/// The longest drain of calls in flight when evenkeel itself shuts down.
const SHUTDOWN_DRAIN_TIMEOUT: Duration = Duration::from_secs(3);

impl Actor {
    /// Detaches the server: unpublishes it at once, then drains its calls.
    pub(super) fn detach(&mut self, reason: Reason) {
        // A removal or suspension before the shutdown stays the reported reason.
        if reason != Reason::Detached || self.detaching.is_none() {
            self.detaching = Some(reason);
        }
        let name = &self.target.key.name;
        let problem = Problem::new(
            Reason::Removed,
            match reason {
                Reason::Suspended => format!("{name} was suspended; do not retry"),
                Reason::Removed => format!("{name} was removed; do not retry"),
                _ => format!("evenkeel is shutting down and detached {name}"),
            },
        );
        let drain = self.target.spec.timeouts.drain.get();
        let limit = if reason == Reason::Detached { drain.min(SHUTDOWN_DRAIN_TIMEOUT) } else { drain };
        self.unpublish_and_drain(CallRefusal::Removed(problem), limit);
        self.cancel_attempt();
        self.retry_at = None;
        self.idle = false;
    }

    /// Unpublishes the server, and drains the live connection and earlier ones within `limit`.
    pub(super) fn unpublish_and_drain(&mut self, refusal: CallRefusal, limit: Duration) {
        let (CallRefusal::Removed(problem) | CallRefusal::Unavailable(problem)) = &refusal;
        let problem = problem.clone();
        self.connect_when_closed = false;
        self.grace_ends_at = None;
        self.idle_check_at = None;
        self.cancel_refresh();
        self.withdraw(&problem);
        self.live = None;
        self.drain_deadline.send_replace(Some(DrainDeadline { timeout: limit, problem: problem.clone() }));
        if let Some(connection) = self.upstream.set_refused(refusal) {
            self.drain_and_close(connection, limit, problem, false);
        }
    }

    /// Withdraws the server's section from the catalog.
    pub(super) fn withdraw(&mut self, problem: &Problem) {
        self.from_cache = false;
        if self.published.take().is_some() {
            self.context.publisher.withdraw(self.target.key.clone(), problem.clone());
        }
    }

    /// Drains the calls of a connection within a limit, then closes it. Calls that do not finish fail with `problem`.
    /// The limit may be shortened later. `blocks_attempts` is true if no attempt may start before it has closed.
    pub(super) fn drain_and_close(
        &mut self,
        connection: DrainingConnection,
        limit: Duration,
        problem: Problem,
        blocks_attempts: bool,
    ) {
        let deadlines = self.drain_deadline.subscribe();
        let future = Box::pin(async move {
            drain(&connection, DrainDeadline { timeout: limit, problem }, deadlines).await;
            connection.connection().close().await;
            connection.connection().wait_for_tasks().await;
        });
        self.closing.push(Closing { future, blocks_attempts });
    }
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
