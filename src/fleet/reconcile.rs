use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use imbl::OrdMap;
use imbl::ordmap::DiffItem;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinError;
use tokio_util::sync::CancellationToken;
use tokio_util::task::JoinMap;
use tracing::{info, warn};

use super::FleetContext;
use super::actor::{Actor, ActorOrder, StartupGuard};
use super::connection_key::ConnectionKey;
use crate::catalog::CatalogDeclaration;
use crate::plan::{ConnectionTarget, DeclarationChange, LastApplied};
use crate::resource::{DeclaredObject, Desired, McpServerSpec, ObjectKey, Reason};

/// The longest wait of calls of unknown tools for the servers that were declared at startup.
const STARTUP_SETTLE_TIMEOUT: Duration = Duration::from_secs(30);
/// The time limit for all servers together to drain and close when evenkeel shuts down.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(10);

/// The actors of all connections, and the last order to each.
pub struct Fleet {
    context: Arc<FleetContext>,
    last_applied: LastApplied,
    /// The servers declared at the last reconcile, including suspended and invalid ones.
    declared: OrdMap<ObjectKey, Arc<DeclaredObject<McpServerSpec>>>,
    orders: HashMap<ConnectionKey, watch::Sender<ActorOrder>>,
    actors: JoinMap<ConnectionKey, ()>,
    /// Passed to the actors of the first reconcile, whose first attempts make up the startup.
    startup_guard: Option<StartupGuard>,
}

impl Fleet {
    /// Creates a fleet without servers.
    pub fn new(context: Arc<FleetContext>) -> Self {
        Self {
            context,
            last_applied: LastApplied::default(),
            declared: OrdMap::new(),
            orders: HashMap::new(),
            actors: JoinMap::new(),
            startup_guard: None,
        }
    }

    /// Applies the desired state until cancelled, then detaches all servers and waits for them, within
    /// `SHUTDOWN_TIMEOUT`.
    pub async fn run(mut self, mut desired: watch::Receiver<Arc<Desired>>, cancel: CancellationToken) {
        let (startup_guard, mut startup) = mpsc::channel(1);
        self.startup_guard = Some(startup_guard);
        let mut settled = false;
        let settle_by = tokio::time::sleep(STARTUP_SETTLE_TIMEOUT);
        tokio::pin!(settle_by);
        // The state that is there already counts as a change.
        desired.mark_changed();
        loop {
            tokio::select! {
                // All actors of the first reconcile have dropped their guards.
                None = startup.recv(), if !settled => {
                    settled = true;
                    self.context.publisher.mark_settled();
                }
                () = &mut settle_by, if !settled => {
                    settled = true;
                    self.context.publisher.mark_settled();
                }
                changed = desired.changed() => {
                    if changed.is_err() {
                        break;
                    }
                    let current = desired.borrow_and_update().clone();
                    self.apply(&current);
                }
                Some((key, ended)) = self.actors.join_next() => self.on_actor_ended(&key, ended),
                () = cancel.cancelled() => break,
            }
        }
        self.shut_down().await;
    }

    fn apply(&mut self, desired: &Desired) {
        let context = self.context.clone();
        let timer = context.metrics.start_reconcile_timer(&desired.source);
        timer.finish_reconcile(self.reconcile(desired));
        if desired.source.synced && self.startup_guard.take().is_some() {
            self.context.publisher.mark_declarations_complete();
        }
    }

    /// Orders the changes from the last applied to the desired state. Returns their number.
    fn reconcile(&mut self, desired: &Desired) -> usize {
        let previous = std::mem::replace(&mut self.declared, desired.servers.clone());
        for change in previous.diff(&self.declared) {
            self.publish_declaration(&change);
            match change {
                // The log belongs to the object, so it is kept as long as the uid stays the same.
                DiffItem::Update { old: (_, old), new: (_, new) } if old.meta.uid == new.meta.uid => {}
                DiffItem::Update { old: (_, removed), .. } | DiffItem::Remove(_, removed) => {
                    self.context.logs.remove(&removed.meta.uid);
                }
                DiffItem::Add(..) => {}
            }
        }
        let changes = self.last_applied.apply(desired);
        let count = changes.len();
        for (key, change) in changes {
            let parts = match change.changed_parts() {
                [] => String::new(),
                parts => format!(": {}", parts.join(", ")),
            };
            info!(server = %key, "{} {key}{parts}", change.action());
            match change {
                DeclarationChange::Attach(target)
                | DeclarationChange::Replace(target, _)
                | DeclarationChange::Refilter(target, _)
                | DeclarationChange::Refresh(target)
                | DeclarationChange::Stay(target) => self.send_order(target),
                DeclarationChange::Detach(reason) => {
                    if let Some(orders) = self.orders.get(&ConnectionKey::shared(key)) {
                        orders.send_replace(ActorOrder::Detach(reason));
                    }
                }
            }
        }
        count
    }

    /// Publishes a changed declaration to the catalog, which reserves the names of declared servers.
    fn publish_declaration(&self, change: &DiffItem<'_, '_, ObjectKey, Arc<DeclaredObject<McpServerSpec>>>) {
        let publisher = &self.context.publisher;
        match change {
            DiffItem::Add(key, declared) | DiffItem::Update { new: (key, declared), .. } => {
                // The prefix is usually the server's name: its string is shared.
                let prefix = ConnectionTarget::from_declared(declared).map(|target| match target.prefix() {
                    prefix if *prefix == *target.key.name => target.key.name,
                    prefix => prefix.into(),
                });
                let created = declared.meta.created_at;
                publisher.declare((*key).clone(), Some(CatalogDeclaration { created, prefix }));
            }
            DiffItem::Remove(key, _) => publisher.declare((*key).clone(), None),
        }
    }

    /// Sends the target to the server's actor, or starts an actor. An actor that is still draining applies the order
    /// too.
    fn send_order(&mut self, target: Arc<ConnectionTarget>) {
        let key = ConnectionKey::shared(target.key.clone());
        if let Some(orders) = self.orders.get(&key)
            && orders.send(ActorOrder::Apply(target.clone())).is_ok()
        {
            return;
        }
        let (sender, receiver) = watch::channel(ActorOrder::Apply(target.clone()));
        self.orders.insert(key.clone(), sender);
        let actor = Actor::new(self.context.clone(), target, receiver, self.startup_guard.clone());
        self.actors.spawn(key, actor.run());
    }

    /// Removes an actor that ended, and starts another if its server is still declared: the order to attach it again
    /// crossed with the end of the actor, or the actor panicked.
    fn on_actor_ended(&mut self, key: &ConnectionKey, ended: Result<(), JoinError>) {
        if let Err(error) = ended {
            warn!(connection = %key, %error, "a connection's task ended unexpectedly; restarting it");
        }
        self.orders.remove(key);
        if let Some(target) = self.last_applied.target(&key.server) {
            self.send_order(target.clone());
        }
    }

    async fn shut_down(mut self) {
        for orders in self.orders.values() {
            orders.send_replace(ActorOrder::Detach(Reason::Detached));
        }
        let all = async { while self.actors.join_next().await.is_some() {} };
        if tokio::time::timeout(SHUTDOWN_TIMEOUT, all).await.is_err() {
            warn!("some servers did not end within {} s", SHUTDOWN_TIMEOUT.as_secs());
        }
    }
}
