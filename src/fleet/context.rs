use tokio::sync::mpsc;

use super::slots::AttemptSlots;
use super::{FleetMetrics, Observation, ServerCache, ServerLogs};
use crate::catalog::Publisher;
use crate::upstream::Subscriptions;
use crate::wire::{InstanceId, ProcessGuard};

/// What every actor needs; one for the whole fleet.
pub struct FleetContext {
    /// Where sections go.
    pub catalog: Publisher,
    /// Where observations go; read by the reporter.
    pub observations: mpsc::UnboundedSender<Observation>,
    /// What is remembered of servers.
    pub memory: ServerCache,
    /// Ends the children should evenkeel be killed.
    pub guard: Option<ProcessGuard>,
    /// What servers log.
    pub logs: ServerLogs,
    /// What agents want to hear of servers, and what those tell.
    pub listeners: Subscriptions,
    /// Who asks servers, should one be an evenkeel.
    pub identity: InstanceId,
    /// What is counted.
    pub metrics: FleetMetrics,
    pub(super) slots: AttemptSlots,
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
            catalog,
            observations,
            memory,
            guard,
            logs: ServerLogs::default(),
            listeners: Subscriptions::default(),
            identity: InstanceId::default(),
            metrics: FleetMetrics::default(),
            slots: AttemptSlots::default(),
        }
    }
}
