use tokio::time::Instant;
use tracing::warn;

use super::super::{FleetContext, Observation, Phase};
use crate::upstream::CallerConnectionKey;
use crate::wire::{ClientCapabilities, ConnectionCallers, NotificationHandler};

/// The role of an actor whose connection belongs to one caller. It publishes and reports nothing: the lists and the status
/// of the server are those of its shared connection.
pub(super) struct CallerRole {
    pub(super) key: CallerConnectionKey,
    capabilities: ClientCapabilities,
    /// When to check whether the connection is still used.
    pub(super) check_at: Instant,
    /// The last failure that was logged.
    last_failure: Option<String>,
}

impl CallerRole {
    pub(super) fn new(key: CallerConnectionKey, capabilities: ClientCapabilities, check_at: Instant) -> Self {
        Self { key, capabilities, check_at, last_failure: None }
    }

    /// Returns the callers of the connection.
    pub(super) fn callers(&self) -> ConnectionCallers {
        ConnectionCallers::One(self.capabilities)
    }

    /// Returns the handler of notifications, which only this caller gets.
    pub(super) fn notification_handler(&self, context: &FleetContext) -> NotificationHandler {
        context.subscriptions.caller_notification_handler(&self.key.server, &self.key.caller)
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
