use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

use imbl::OrdMap;
use imbl::ordmap::DiffItem;
use jiff::{SignedDuration, Timestamp};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinError;
use tokio_util::sync::CancellationToken;
use tokio_util::task::JoinMap;
use tracing::{error, info, warn};

use super::actor::{Actor, StartupGuard};
use super::caller_orders::CallerOrders;
use super::connection_key::ConnectionKey;
use super::state_machine::ServerOrder;
use super::{FleetContext, Observation, Phase};
use crate::catalog::CatalogDeclaration;
use crate::net::{Delays, RestartBackoff};
use crate::plan::{ConnectionTarget, LastApplied};
use crate::resource::{DeclaredObject, Desired, McpServerSpec, ObjectKey, Problem, Reason};

/// The longest wait of calls of unknown tools for the servers that were declared at startup.
const STARTUP_SETTLE_TIMEOUT: Duration = Duration::from_secs(30);
/// The time limit for all servers together to drain and close when evenkeel shuts down.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(12);

/// The delays before an actor that panicked is started again.
const PANIC_DELAYS: Delays = Delays { initial: Duration::from_secs(1), max: Duration::from_mins(5) };

/// The actors of all connections, and the last order to each.
pub struct Fleet {
    pub(super) context: Arc<FleetContext>,
    pub(super) last_applied: LastApplied,
    /// The servers declared at the last reconcile, including suspended and invalid ones.
    declared: OrdMap<ObjectKey, Arc<DeclaredObject<McpServerSpec>>>,
    orders: HashMap<ConnectionKey, watch::Sender<ServerOrder>>,
    pub(super) actors: JoinMap<ConnectionKey, ()>,
    pub(super) caller_orders: CallerOrders,
    /// The actors that panicked, as long as their servers are declared.
    restarts: HashMap<ConnectionKey, RestartBackoff>,
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
            caller_orders: CallerOrders::default(),
            restarts: HashMap::new(),
            startup_guard: None,
        }
    }

    /// Applies the desired state until cancelled, then detaches all servers and waits for them, within
    /// `SHUTDOWN_TIMEOUT`.
    pub async fn run(mut self, mut desired: watch::Receiver<Arc<Desired>>, cancel: CancellationToken) {
        let caller_connections = self.context.caller_connections.clone();
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
                Some((key, ended)) = self.actors.join_next() => self.on_actor_ended(key, ended),
                request = caller_connections.next_request() => self.on_caller_request(request),
                () = cancel.cancelled() => break,
            }
        }
        caller_connections.close();
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
            let order = ServerOrder::from(change);
            self.order_caller_connections(&key, &order);
            match order {
                ServerOrder::Apply(target) => self.apply_target(target),
                detach @ ServerOrder::Detach(_) => {
                    if let Some(orders) = self.orders.get(&ConnectionKey::Shared(key)) {
                        orders.send_replace(detach);
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
                publisher.declare((*key).clone(), Some(catalog_declaration(declared)));
            }
            DiffItem::Remove(key, _) => publisher.declare((*key).clone(), None),
        }
    }

    /// Sends the target to the server's actor, or starts an actor. An actor that is still draining applies the order
    /// too.
    fn apply_target(&mut self, target: Arc<ConnectionTarget>) {
        let key = ConnectionKey::Shared(target.key.clone());
        if let Some(orders) = self.orders.get(&key)
            && orders.send(ServerOrder::Apply(target.clone())).is_ok()
        {
            return;
        }
        let (sender, receiver) = watch::channel(ServerOrder::Apply(target.clone()));
        self.orders.insert(key.clone(), sender);
        let (context, startup_guard) = (self.context.clone(), self.startup_guard.clone());
        // A panic must not end the fleet.
        let actor = catch_unwind(AssertUnwindSafe(|| {
            Actor::new(context, target.clone(), receiver.clone(), startup_guard)
        }));
        match actor {
            Ok(mut actor) => {
                self.actors.spawn(key, async move { actor.run().await });
            }
            Err(_) => self.restart_after_panic(key, target, receiver),
        }
    }

    /// Removes an actor that ended. Starts another if its server is still declared: the order to attach it again
    /// crossed with the end of the actor, or the actor panicked.
    fn on_actor_ended(&mut self, key: ConnectionKey, ended: Result<(), JoinError>) {
        let server = match &key {
            ConnectionKey::Shared(server) => server,
            ConnectionKey::Caller(key) => return self.on_caller_actor_ended(key, ended),
        };
        let orders = self.orders.remove(&key);
        let target = self.last_applied.target(server).cloned();
        let panicked = ended.is_err_and(|error| error.is_panic());
        match (target, orders) {
            (Some(target), Some(orders)) if panicked => {
                let receiver = orders.subscribe();
                self.orders.insert(key.clone(), orders);
                self.restart_after_panic(key, target, receiver);
            }
            (Some(target), _) => self.apply_target(target),
            (None, _) => drop(self.restarts.remove(&key)),
        }
    }

    /// Withdraws what a panicked actor had published, and starts another one after a delay or with the next order.
    fn restart_after_panic(
        &mut self,
        key: ConnectionKey,
        target: Arc<ConnectionTarget>,
        mut orders: watch::Receiver<ServerOrder>,
    ) {
        let message =
            "an internal error of evenkeel ended the task of this server; see its log and please report it";
        let problem = Problem::new(Reason::ConnectFailed, message);
        let restart = self.restarts.entry(key.clone()).or_insert_with(|| RestartBackoff::new(PANIC_DELAYS));
        let delay = restart.record_panic();
        error!(connection = %key, ?delay, "the task of a connection panicked; it is restarted");
        self.context.publisher.withdraw(target.key.clone(), problem.clone());
        let retry_at = Timestamp::now().saturating_add(SignedDuration::try_from(delay).unwrap_or_default());
        let observation = Observation {
            key: target.key.clone(),
            uid: target.uid.clone(),
            generation: target.generation,
            last_handled_request: None,
            phase: Phase::Failed { problem, retry_at: retry_at.ok(), attempt: restart.panics() + 1 },
            live_server: None,
            paused: None,
            degraded: None,
            restarts: restart.panics(),
        };
        // The reporter outlives the fleet except at the very end of a shutdown.
        let _ = self.context.observations.send(observation);
        let context = self.context.clone();
        self.actors.spawn(key, async move {
            // As for any failed server, a changed declaration is tried at once.
            let _ = tokio::time::timeout(delay, orders.changed()).await;
            let newest = match &*orders.borrow() {
                ServerOrder::Apply(newest) => newest.clone(),
                ServerOrder::Detach(_) => target,
            };
            // The actor applies the newest order first.
            orders.mark_changed();
            Actor::new(context, newest, orders, None).run().await;
        });
    }

    async fn shut_down(mut self) {
        for orders in self.orders.values() {
            orders.send_replace(ServerOrder::Detach(Reason::Detached));
        }
        self.caller_orders.order_all(&ServerOrder::Detach(Reason::Detached));
        let all = async { while self.actors.join_next().await.is_some() {} };
        if tokio::time::timeout(SHUTDOWN_TIMEOUT, all).await.is_err() {
            warn!("some servers did not end within {} s", SHUTDOWN_TIMEOUT.as_secs());
        }
    }
}

/// Returns what the catalog needs to know of a declared server, attached or not.
pub(super) fn catalog_declaration(declared: &DeclaredObject<McpServerSpec>) -> CatalogDeclaration {
    // The prefix is usually the server's name: its string is shared.
    let prefix = ConnectionTarget::from_declared(declared).map(|target| match target.prefix() {
        prefix if *prefix == *target.key.name => target.key.name,
        prefix => prefix.into(),
    });
    CatalogDeclaration { created: declared.meta.created_at, prefix }
}

#[cfg(test)]
mod tests {
    use tokio::time::Instant;

    use super::*;
    use crate::catalog::{ReservedNames, catalog};
    use crate::fleet::{RestoredCache, ServerCache};
    use crate::resource::SourceState;
    use crate::resource::testing::{declared_server, key};
    use crate::upstream::ViewName;
    use crate::wire::ListKind;

    /// Waits until an observation has a phase that the function accepts.
    async fn wait_for_phase(
        observations: &mut mpsc::UnboundedReceiver<Observation>,
        mut is_expected: impl FnMut(&Phase) -> bool,
    ) -> Observation {
        loop {
            let observation = observations.recv().await.unwrap();
            if is_expected(&observation.phase) {
                return observation;
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn panicked_actor_is_withdrawn_and_restarted_with_backoff() {
        let (catalog, publisher, publisher_task) =
            catalog(Some("default".into()), ReservedNames::default(), mpsc::unbounded_channel().0);
        let stop = CancellationToken::new();
        tokio::spawn(publisher_task.run(stop.clone()));
        let (observation_sender, mut observations) = mpsc::unbounded_channel();
        let cache = ServerCache::new(RestoredCache::default(), mpsc::unbounded_channel().0);
        let context = FleetContext::new(publisher.clone(), observation_sender, cache, None);
        let mut fleet = Fleet::new(Arc::new(context));
        let server = Arc::new(declared_server("s", 1));
        let desired = |servers: &[&Arc<DeclaredObject<McpServerSpec>>]| {
            let servers = servers.iter().map(|server| (server.meta.key.clone(), (*server).clone())).collect();
            let source = Arc::new(SourceState { synced: true, ..SourceState::default() });
            Arc::new(Desired { servers, source, ..Desired::default() })
        };
        fleet.last_applied.apply(&desired(&[&server]));
        // The task of the server panics instead of running an actor.
        let connection = ConnectionKey::Shared(key("s"));
        let target = fleet.last_applied.target(&key("s")).unwrap().clone();
        fleet.orders.insert(connection.clone(), watch::channel(ServerOrder::Apply(target)).0);
        publisher.publish(Arc::new(crate::catalog::testing::section("default", "s", "s", &["t"])));
        let tools = || catalog.load().view(&ViewName::All).table(ListKind::Tools).len();
        let mut changes = catalog.changes();
        changes.changed().await.unwrap();
        assert_eq!(tools(), 1);
        fleet.actors.spawn(connection, async { panic!("a bug") });

        let (sender, receiver) = watch::channel(desired(&[&server]));
        let started_at = Instant::now();
        let running = tokio::spawn(fleet.run(receiver, stop.clone()));
        let failed = wait_for_phase(&mut observations, |phase| matches!(phase, Phase::Failed { .. })).await;
        assert!(
            matches!(&failed.phase, Phase::Failed { problem, retry_at: Some(_), attempt: 2 }
                if problem.message.contains("internal error")),
            "{failed:?}"
        );
        changes.changed().await.unwrap();
        assert_eq!(tools(), 0, "what it had published is withdrawn");
        let connecting =
            wait_for_phase(&mut observations, |phase| matches!(phase, Phase::Connecting { .. })).await;
        assert_eq!(connecting.generation, 1);
        let delay = started_at.elapsed();
        assert!(delay >= PANIC_DELAYS.initial / 2 && delay <= PANIC_DELAYS.initial * 2, "{delay:?}");
        // The new actor obeys orders.
        sender.send_replace(desired(&[]));
        wait_for_phase(&mut observations, |phase| *phase == Phase::Detached(Reason::Removed)).await;
        stop.cancel();
        running.await.unwrap();
    }

    #[test]
    fn panics_back_off() {
        let mut restart = RestartBackoff::new(PANIC_DELAYS);
        let delays: Vec<_> = (0..3).map(|_| restart.record_panic()).collect();
        assert!(delays.is_sorted() && delays[2] >= PANIC_DELAYS.initial * 2, "{delays:?}");
    }
}
