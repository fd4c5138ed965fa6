//! Going away, and ending connections.

use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;
use tracing::debug;

use super::{Actor, DrainDeadline};
use crate::resource::{Problem, Reason};
use crate::upstream::{CallRefusal, DrainingConnection};
use crate::wire::ConnectionError;

/// How long calls in flight may take when evenkeel itself ends.
const SHUTDOWN_DRAIN_TIMEOUT: Duration = Duration::from_secs(3);

impl Actor {
    /// Goes away: unpublishes at once, then lets calls finish.
    pub(super) fn detach(&mut self, reason: Reason) {
        // How it went before evenkeel's own end is the last word on it.
        if reason != Reason::Detached || self.detaching.is_none() {
            self.detaching = Some(reason);
        }
        let name = &self.target.key.name;
        let why = Problem::new(
            Reason::Removed,
            match reason {
                Reason::Suspended => format!("{name} was suspended; do not retry"),
                Reason::Removed => format!("{name} was removed; do not retry"),
                _ => format!("evenkeel is shutting down and detached {name}"),
            },
        );
        let drain = self.target.spec.timeouts.drain.get();
        let limit = if reason == Reason::Detached { drain.min(SHUTDOWN_DRAIN_TIMEOUT) } else { drain };
        self.unpublish_and_drain(CallRefusal::Removed(why), limit);
        self.cancel_attempt();
        self.retry_at = None;
        self.idle = false;
    }

    /// Unpublishes and drains the live connection, and those before it: calls may take so long at most.
    pub(super) fn unpublish_and_drain(&mut self, refusal: CallRefusal, limit: Duration) {
        let (CallRefusal::Removed(why) | CallRefusal::Unavailable(why)) = &refusal;
        let why = why.clone();
        self.connect_when_closed = false;
        self.grace_ends_at = None;
        self.idle_check_at = None;
        self.cancel_refresh();
        self.withdraw(&why);
        self.live = None;
        self.drain_deadline.send_replace(Some(DrainDeadline { timeout: limit, problem: why.clone() }));
        if let Some(before) = self.upstream.set_refused(refusal) {
            self.drain_and_close(before, limit, why);
        }
    }

    /// Takes away what agents see of the server.
    pub(super) fn withdraw(&mut self, why: &Problem) {
        self.from_cache = false;
        if self.published.take().is_some() {
            self.context.publisher.withdraw(self.target.key.clone(), why.clone());
        }
    }

    /// Lets the calls of a connection finish within a limit, then closes it; `why` is what those are told that
    /// do not finish. The limit may be cut later.
    pub(super) fn drain_and_close(&mut self, connection: DrainingConnection, limit: Duration, why: Problem) {
        let hurry = self.drain_deadline.subscribe();
        self.closing.push(Box::pin(async move {
            drain(&connection, DrainDeadline { timeout: limit, problem: why }, hurry).await;
            connection.connection().close().await;
            connection.connection().wait_for_tasks().await;
        }));
    }
}

/// Waits until the calls of a connection have ended, or gives them up.
async fn drain(
    connection: &DrainingConnection,
    mut now: DrainDeadline,
    mut hurry: watch::Receiver<Option<DrainDeadline>>,
) {
    let mut until = Instant::now() + now.timeout;
    loop {
        tokio::select! {
            biased;
            () = connection.wait_until_drained() => return,
            () = tokio::time::sleep_until(until) => break,
            Ok(()) = hurry.changed() => {
                let sooner = hurry.borrow_and_update().clone();
                let at = |hurry: &DrainDeadline| Instant::now() + hurry.timeout;
                if let Some(sooner) = sooner.filter(|sooner| at(sooner) < until) {
                    until = at(&sooner);
                    now = sooner;
                }
            }
        }
    }
    debug!(calls = connection.in_flight(), "calls were still in flight when the connection closed");
    let DrainDeadline { timeout: limit, problem: why } = now;
    let told = if limit.is_zero() {
        why.message
    } else {
        format!("{}; the call did not end within {} s", why.message, limit.as_secs_f64())
    };
    connection.connection().mark_ended(ConnectionError::new(why.reason, told));
}
