use tokio::sync::mpsc;

use super::slots::AttemptSlots;
use super::{FleetMetrics, Observation, ServerCache, ServerLogs};
use crate::catalog::Publisher;
use crate::oauth::AccessTokens;
use crate::upstream::{CallerConnectionKey, CallerConnections, Subscriptions, UpstreamHandle};
use crate::wire::{ChildEnvironment, InstanceId, ProcessGuard};

/// The dependencies of all actors; one for the whole fleet.
pub struct FleetContext {
    /// Publishes sections to the catalog.
    pub publisher: Publisher,
    /// Sends observations to the reporter.
    pub observations: mpsc::UnboundedSender<Observation>,
    /// The eras and lists of servers, kept across restarts.
    pub server_cache: ServerCache,
    /// Kills child processes if evenkeel itself is killed.
    pub process_guard: Option<ProcessGuard>,
    /// The variables that child processes inherit.
    pub child_environment: ChildEnvironment,
    /// The logs of servers.
    pub logs: ServerLogs,
    /// The notifications that agents requested, and their delivery.
    pub subscriptions: Subscriptions,
    /// The connections that callers have of their own.
    pub caller_connections: CallerConnections,
    /// The OAuth tokens of servers.
    pub access_tokens: AccessTokens,
    /// The id of this instance, sent to upstreams to detect loops.
    pub instance_id: InstanceId,
    /// The fleet's metrics.
    pub metrics: FleetMetrics,
    pub(super) attempt_slots: AttemptSlots,
}

impl FleetContext {
    /// Creates a context with default metrics, logs and subscriptions.
    pub fn new(
        publisher: Publisher,
        observations: mpsc::UnboundedSender<Observation>,
        server_cache: ServerCache,
        process_guard: Option<ProcessGuard>,
    ) -> Self {
        Self {
            publisher,
            observations,
            server_cache,
            process_guard,
            child_environment: ChildEnvironment::default(),
            logs: ServerLogs::default(),
            subscriptions: Subscriptions::default(),
            caller_connections: CallerConnections::default(),
            access_tokens: AccessTokens::default(),
            instance_id: InstanceId::default(),
            metrics: FleetMetrics::default(),
            attempt_slots: AttemptSlots::default(),
        }
    }

    /// Adds a connection of a caller, and counts it.
    pub(super) fn add_caller_connection(
        &self,
        key: &CallerConnectionKey,
        handle: UpstreamHandle,
        has_roots: bool,
    ) {
        self.caller_connections.add(key, handle, has_roots);
        self.metrics.set_sessions(&key.server, self.caller_connections.count(&key.server));
    }

    /// Removes a connection of a caller, if it is still there.
    pub(super) fn remove_caller_connection(&self, key: &CallerConnectionKey) {
        self.caller_connections.remove(key);
        self.metrics.set_sessions(&key.server, self.caller_connections.count(&key.server));
    }
}
