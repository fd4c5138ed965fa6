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

/// How long calls of unknown tools wait at most for the servers that were declared at the start.
const STARTUP_SETTLE_TIMEOUT: Duration = Duration::from_secs(30);
/// How long all servers together may take to drain and close when evenkeel ends.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(10);

/// The actors of all connections, and what each was last told.
pub struct Fleet {
    context: Arc<FleetContext>,
    last_applied: LastApplied,
    /// What was declared at the last step, also what is suspended or cannot be taken up.
    declared: OrdMap<ObjectKey, Arc<DeclaredObject<McpServerSpec>>>,
    orders: HashMap<ConnectionKey, watch::Sender<ActorOrder>>,
    actors: JoinMap<ConnectionKey, ()>,
    /// Handed to the actors of the first look.
    startup_guard: Option<StartupGuard>,
}

impl Fleet {
    /// A fleet with no servers.
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

    /// Follows what is desired until cancelled, then detaches everything and waits, within a bound.
    pub async fn run(mut self, mut desired: watch::Receiver<Arc<Desired>>, cancel: CancellationToken) {
        let (starting, mut started) = mpsc::channel(1);
        self.startup_guard = Some(starting);
        let mut settled = false;
        let settle_by = tokio::time::sleep(STARTUP_SETTLE_TIMEOUT);
        tokio::pin!(settle_by);
        // What is desired already counts as changed.
        desired.mark_changed();
        loop {
            tokio::select! {
                None = started.recv(), if !settled => {
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
                    let now = desired.borrow_and_update().clone();
                    self.apply(&now);
                }
                Some((key, ended)) = self.actors.join_next() => self.on_actor_ended(&key, ended),
                () = cancel.cancelled() => break,
            }
        }
        self.shut_down().await;
    }

    fn apply(&mut self, desired: &Desired) {
        let context = self.context.clone();
        let measured = context.metrics.start_reconcile_timer(&desired.source);
        measured.finish_reconcile(self.reconcile(desired));
        if desired.source.synced && self.startup_guard.take().is_some() {
            self.context.publisher.mark_declarations_complete();
        }
    }

    /// One step: from what was told to what is desired. Gives the number of orders.
    fn reconcile(&mut self, desired: &Desired) -> usize {
        let before = std::mem::replace(&mut self.declared, desired.servers.clone());
        for change in before.diff(&self.declared) {
            self.publish_declaration(&change);
            match change {
                DiffItem::Update { old: (_, old), new: (_, new) } if old.meta.uid == new.meta.uid => {}
                DiffItem::Update { old: (_, gone), .. } | DiffItem::Remove(_, gone) => {
                    self.context.logs.remove(&gone.meta.uid);
                }
                DiffItem::Add(..) => {}
            }
        }
        let changes = self.last_applied.apply(desired);
        let count = changes.len();
        for (key, change) in changes {
            let why = match change.changed_parts() {
                [] => String::new(),
                parts => format!(": {}", parts.join(", ")),
            };
            info!(server = %key, "{} {key}{why}", change.action());
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

    /// Tells the catalog what is declared, whose names are kept.
    fn publish_declaration(&self, change: &DiffItem<'_, '_, ObjectKey, Arc<DeclaredObject<McpServerSpec>>>) {
        let catalog = &self.context.publisher;
        match change {
            DiffItem::Add(key, declared) | DiffItem::Update { new: (key, declared), .. } => {
                // Commonly the name itself, which is shared.
                let prefix = ConnectionTarget::from_declared(declared).map(|target| match target.prefix() {
                    prefix if *prefix == *target.key.name => target.key.name,
                    prefix => prefix.into(),
                });
                let created = declared.meta.created_at;
                catalog.declare((*key).clone(), Some(CatalogDeclaration { created, prefix }));
            }
            DiffItem::Remove(key, _) => catalog.declare((*key).clone(), None),
        }
    }

    /// Tells the server's actor, or starts one. An actor that is still draining takes the order up.
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

    /// An actor ended. If its server is wanted, because the order to come back crossed with its end or
    /// because of a bug of ours, another takes its place.
    fn on_actor_ended(&mut self, key: &ConnectionKey, ended: Result<(), JoinError>) {
        if let Err(error) = ended {
            warn!(connection = %key, %error, "a connection's task ended unexpectedly; it is started again");
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
