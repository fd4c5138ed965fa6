//! Going away, and ending connections.

use std::time::Duration;

use tracing::debug;

use super::super::handle::{Drain, Refusal};
use super::Actor;
use crate::resource::{Problem, Reason};
use crate::wire::LinkError;

/// How long calls in flight may take when evenkeel itself ends.
const LAST_CALLS: Duration = Duration::from_secs(3);

impl Actor {
    /// Goes away: unpublishes at once, then lets calls finish.
    pub(super) fn leave(&mut self, reason: Reason) {
        if self.leaving.replace(reason).is_some() {
            return;
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
        self.take_down(Refusal::Removed(why));
        self.cancel_attempt();
        self.retry_at = None;
        self.asleep = None;
    }

    /// Unpublishes and drains the live connection.
    pub(super) fn take_down(&mut self, refusal: Refusal) {
        let (Refusal::Removed(why) | Refusal::Unavailable(why)) = &refusal;
        self.waiting = false;
        self.grace_until = None;
        self.idle_at = None;
        self.forget_refresh();
        if self.published.take().is_some() {
            self.context.catalog.withdraw(self.target.key.clone(), why.clone());
        }
        self.live = None;
        if let Some(before) = self.handle.refuse(refusal.clone()) {
            let drain = self.target.settings.timeouts.drain.get();
            let limit = if self.leaving == Some(Reason::Detached) { drain.min(LAST_CALLS) } else { drain };
            let (Refusal::Removed(why) | Refusal::Unavailable(why)) = refusal;
            self.end(before, limit, why);
        }
    }

    /// Lets the calls of a connection finish within a limit, then closes it; `why` is what those are told that
    /// do not finish.
    pub(super) fn end(&mut self, connection: Drain, limit: Duration, why: Problem) {
        self.ending.push(Box::pin(async move {
            if tokio::time::timeout(limit, connection.drained()).await.is_err() {
                debug!(
                    calls = connection.in_flight(),
                    "calls were still in flight when the connection closed"
                );
                let told = if limit.is_zero() {
                    why.message
                } else {
                    let seconds = limit.as_secs_f64();
                    format!("{}; the call did not end within {seconds} s", why.message)
                };
                connection.link().give_up(LinkError::new(why.reason, told));
            }
            connection.link().close().await;
            connection.link().ended().await;
        }));
    }
}
