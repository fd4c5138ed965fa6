use tokio::sync::mpsc;

use super::slots::Slots;
use super::{FleetMetrics, Logs, Memory, Observation};
use crate::catalog::Publisher;
use crate::upstream::Listeners;
use crate::wire::{Guard, Identity};

/// What every actor needs; one for the whole fleet.
pub struct Context {
    /// Where sections go.
    pub catalog: Publisher,
    /// Where observations go; read by the reporter.
    pub observations: mpsc::UnboundedSender<Observation>,
    /// What is remembered of servers.
    pub memory: Memory,
    /// Ends the children should evenkeel be killed.
    pub guard: Option<Guard>,
    /// What servers log.
    pub logs: Logs,
    /// What agents want to hear of servers, and what those tell.
    pub listeners: Listeners,
    /// Who asks servers, should one be an evenkeel.
    pub identity: Identity,
    /// What is counted.
    pub metrics: FleetMetrics,
    pub(super) slots: Slots,
}

impl Context {
    /// A context with nothing running.
    pub fn new(
        catalog: Publisher,
        observations: mpsc::UnboundedSender<Observation>,
        memory: Memory,
        guard: Option<Guard>,
    ) -> Self {
        Self {
            catalog,
            observations,
            memory,
            guard,
            logs: Logs::default(),
            listeners: Listeners::default(),
            identity: Identity::default(),
            metrics: FleetMetrics::default(),
            slots: Slots::default(),
        }
    }
}
