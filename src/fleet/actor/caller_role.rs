use std::time::Duration;

use tokio::time::Instant;
use tracing::warn;

use super::super::{FleetContext, Observation, Phase};
use crate::resource::Digest;
use crate::upstream::{CallerConnectionKey, ServerLists, UpstreamHandle};
use crate::wire::{ClientCapabilities, ConnectionCallers, NotificationHandler};

/// The shortest time between two requests of one caller's connection to read the published lists again.
const MIN_READ_INTERVAL: Duration = Duration::from_mins(1);

/// The role of an actor whose connection belongs to one caller. It publishes and reports nothing: the lists and the status
/// of the server are those of its shared connection.
pub(super) struct CallerRole {
    pub(super) key: CallerConnectionKey,
    capabilities: ClientCapabilities,
    /// The connection from which the published lists are read.
    catalog: UpstreamHandle,
    /// When to check whether the connection is still used.
    check_at: Instant,
    /// The lists of this connection, if they differ from the published ones and no read of those was requested for it.
    differing: Option<Digest>,
    /// The lists for which a read was requested last.
    requested_for: Option<Digest>,
    /// When the next read may be requested.
    request_at: Instant,
    /// The last failure that was logged.
    last_failure: Option<String>,
}

impl CallerRole {
    pub(super) fn new(
        key: CallerConnectionKey,
        capabilities: ClientCapabilities,
        catalog: UpstreamHandle,
        idle_timeout: Duration,
    ) -> Self {
        let now = Instant::now();
        Self {
            key,
            capabilities,
            catalog,
            check_at: now + idle_timeout,
            differing: None,
            requested_for: None,
            request_at: now,
            last_failure: None,
        }
    }

    /// Returns the callers of the connection.
    pub(super) fn callers(&self) -> ConnectionCallers {
        ConnectionCallers::One(self.capabilities)
    }

    /// Returns the handler of notifications, which only this caller gets.
    pub(super) fn notification_handler(&self, context: &FleetContext) -> NotificationHandler {
        context.subscriptions.caller_notification_handler(&self.key.server, &self.key.caller)
    }

    /// Returns when the actor must call [`Self::request_read_if_due`], or check whether the connection is used.
    pub(super) fn wake_at(&self) -> Instant {
        self.differing.as_ref().map_or(self.check_at, |_| self.check_at.min(self.request_at))
    }

    /// Returns true if it is time to check whether the connection is used.
    pub(super) fn check_is_due(&self, now: Instant) -> bool {
        self.check_at <= now
    }

    /// Sets when to check next whether the connection is used.
    pub(super) fn check_at(&mut self, at: Instant) {
        self.check_at = at;
    }

    /// Compares the lists of this connection with the published ones: if they differ, the server may have changed since
    /// those were read, such as by an update of its program.
    pub(super) fn compare_lists(&mut self, lists: &ServerLists) {
        let digest = Some(lists.digest());
        let is_new = digest != self.requested_for && digest != Some(self.catalog.lists().digest());
        self.differing = digest.filter(|_| is_new);
    }

    /// Requests that the published lists are read again, if they differ from those of this connection.
    pub(super) fn request_read_if_due(&mut self, now: Instant) {
        if self.request_at <= now && self.differing.is_some() {
            self.requested_for = self.differing.take();
            self.request_at = now + MIN_READ_INTERVAL;
            self.catalog.wake();
        }
    }

    /// Logs a failure, each once.
    pub(super) fn log_failure(&mut self, observation: &Observation) {
        let failure = match &observation.phase {
            Phase::Failed { problem, .. } => Some(problem.to_string()),
            Phase::Connecting { .. } => return,
            _ => None,
        };
        if let Some(problem) = failure.as_ref().filter(|_| self.last_failure != failure) {
            let CallerConnectionKey { server, caller, .. } = &self.key;
            warn!(%server, %caller, problem, "the connection of a caller failed");
        }
        self.last_failure = failure;
    }
}
