use tokio::sync::mpsc;

use super::slots::AttemptSlots;
use super::{FleetMetrics, Observation, ServerCache, ServerLogs};
use crate::catalog::Publisher;
use crate::upstream::Subscriptions;
use crate::wire::{InstanceId, ProcessGuard};

/// What every actor needs; one for the whole fleet.
pub struct FleetContext {
    /// Where sections go.
    pub publisher: Publisher,
    /// Where observations go; read by the reporter.
    pub observations: mpsc::UnboundedSender<Observation>,
    /// What is remembered of servers.
    pub server_cache: ServerCache,
    /// Ends the children should evenkeel be killed.
    pub process_guard: Option<ProcessGuard>,
    /// What servers log.
    pub logs: ServerLogs,
    /// What agents want to hear of servers, and what those tell.
    pub subscriptions: Subscriptions,
    /// Who asks servers, should one be an evenkeel.
    pub instance_id: InstanceId,
    /// What is counted.
    pub metrics: FleetMetrics,
    pub(super) attempt_slots: AttemptSlots,
}

impl FleetContext {
    /// A context with nothing running.
    pub fn new(
        catalog: Publisher,
        observations: mpsc::UnboundedSender<Observation>,
        memory: ServerCache,
        guard: Option<ProcessGuard>,
    ) -> Self {
        Self {
            publisher: catalog,
            observations,
            server_cache: memory,
            process_guard: guard,
            logs: ServerLogs::default(),
            subscriptions: Subscriptions::default(),
            instance_id: InstanceId::default(),
            metrics: FleetMetrics::default(),
            attempt_slots: AttemptSlots::default(),
        }
    }
}
