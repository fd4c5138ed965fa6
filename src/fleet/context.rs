use std::sync::Arc;

use tokio::sync::mpsc;

use super::slots::Slots;
use super::{FleetMetrics, Listeners, Logs, Memory, Observation};
use crate::catalog::{Declaration, Section};
use crate::resource::{ObjectKey, Problem};
use crate::wire::{Guard, Identity};

/// Where the fleet puts what servers offer. Must not wait.
pub trait Publish: Send + Sync + 'static {
    /// Says how a server is declared, attached or not; `None` if it is no more.
    fn declare(&self, key: ObjectKey, declaration: Option<Declaration>);
    /// Every server that is declared was told once.
    fn complete(&self);
    /// Puts a section in place of the server's last one.
    fn publish(&self, section: Arc<Section>);
    /// Takes a server's section away; `why` is what callers of its tools are told from now on.
    fn withdraw(&self, key: ObjectKey, why: Problem);
    /// Every server that was declared at the start has been attached, or has failed, once.
    fn settled(&self);
}

/// What every actor needs; one for the whole fleet.
pub struct Context {
    /// Where sections go.
    pub catalog: Box<dyn Publish>,
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
        catalog: impl Publish,
        observations: mpsc::UnboundedSender<Observation>,
        memory: Memory,
        guard: Option<Guard>,
    ) -> Self {
        Self {
            catalog: Box::new(catalog),
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
