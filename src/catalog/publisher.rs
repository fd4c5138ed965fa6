use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use arc_swap::{ArcSwap, Guard};
use imbl::ordmap::DiffItem;
use parking_lot::Mutex;
use tokio::sync::{Notify, mpsc, watch};
use tokio::time::{Instant, sleep_until, timeout};
use tokio_util::sync::CancellationToken;

use super::{
    CatalogDeclaration, CatalogUpdate, ExpectedItem, Generation, ReservedName, ReservedNames, ReservedUntil,
};
use crate::resource::{ObjectKey, Problem};
use crate::upstream::Section;

/// The minimum interval between change notifications: the first change notifies at once, later ones within the interval
/// are combined.
const NOTIFY_INTERVAL: Duration = Duration::from_millis(100);

/// The longest wait until queued updates are applied.
const CATCH_UP_TIMEOUT: Duration = Duration::from_secs(1);

/// The current generation, and notifications about changes. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Catalog {
    current: Arc<ArcSwap<Generation>>,
    changes: watch::Receiver<u64>,
    declarations_applied: watch::Receiver<bool>,
    settled: watch::Receiver<bool>,
    pending: Arc<UpdateQueue>,
    applied_updates: watch::Receiver<u64>,
}

/// Queues declarations and sections for the catalog. Cheap to clone; never waits.
#[derive(Clone, Debug)]
pub struct Publisher(Arc<UpdateQueue>);

#[derive(Debug, Default)]
struct UpdateQueue {
    updates: Mutex<QueuedUpdates>,
    changed: Notify,
    /// True once the startup phase is over; published after all updates queued before it are applied.
    settled: AtomicBool,
}

#[derive(Debug, Default)]
struct QueuedUpdates {
    /// The number of updates queued so far.
    count: u64,
    /// The declarations of servers; `None` for a server that is no longer declared.
    declarations: BTreeMap<ObjectKey, Option<CatalogDeclaration>>,
    /// True if every declaration was queued once.
    declarations_complete: bool,
    /// The latest update of each server, which supersedes its earlier ones.
    sections: BTreeMap<ObjectKey, CatalogUpdate>,
    /// The servers whose first attempt has ended without a section.
    attempted: BTreeSet<ObjectKey>,
    /// The latest announcement for each section of evenkeel itself.
    expected: BTreeMap<ObjectKey, Arc<[ExpectedItem]>>,
    /// True if all such sections were announced or published once.
    expected_complete: bool,
}

/// Applies queued updates, creating one generation after another.
#[derive(Debug)]
pub struct PublisherTask {
    pending: Arc<UpdateQueue>,
    current: Arc<ArcSwap<Generation>>,
    changes: watch::Sender<u64>,
    declarations_applied: watch::Sender<bool>,
    settled: watch::Sender<bool>,
    /// The number of updates applied so far.
    applied_updates: watch::Sender<u64>,
    name_updates: mpsc::UnboundedSender<ServerNames>,
}

/// The names of one server, to be stored: they stay reserved across a restart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerNames {
    /// The server.
    pub server: ObjectKey,
    /// All names that route, or routed, to one of its items, each with the limit of its reservation once it is not
    /// listed.
    pub names: Vec<(ReservedName, ReservedUntil)>,
}

/// Creates a catalog with these reserved names, its publisher, and the task that applies updates; the caller spawns the
/// task.
///
/// In the home namespace names carry no namespace before the prefix. `names` receives the names of servers whose names
/// changed.
pub fn catalog(
    home: Option<Arc<str>>,
    reserved_names: ReservedNames,
    names: mpsc::UnboundedSender<ServerNames>,
) -> (Catalog, Publisher, PublisherTask) {
    let current = Arc::new(ArcSwap::from_pointee(Generation::new(home, reserved_names, Instant::now())));
    let pending = Arc::new(UpdateQueue::default());
    let (changes_sender, changes) = watch::channel(0);
    let (declarations_sender, declarations_applied) = watch::channel(false);
    let (settled_sender, settled) = watch::channel(false);
    let (applied_sender, applied_updates) = watch::channel(0);
    let task = PublisherTask {
        pending: pending.clone(),
        current: current.clone(),
        changes: changes_sender,
        declarations_applied: declarations_sender,
        settled: settled_sender,
        applied_updates: applied_sender,
        name_updates: names,
    };
    let catalog = Catalog {
        current,
        changes,
        declarations_applied,
        settled,
        pending: pending.clone(),
        applied_updates,
    };
    (catalog, Publisher(pending), task)
}

impl Catalog {
    /// Returns the newest generation. Do not hold it across an await point: load it again instead.
    pub fn load(&self) -> Guard<Arc<Generation>> {
        self.current.load()
    }

    /// Waits until everything that was queued before this call is readable, for one second at most: what is then
    /// reported about the updates is at most one second ahead of what agents can list.
    pub async fn catch_up(&self) {
        let count = self.pending.updates.lock().count;
        let mut applied_updates = self.applied_updates.clone();
        let caught_up = applied_updates.wait_for(|applied| *applied >= count);
        // A closed channel means that the process is ending.
        let _ = timeout(CATCH_UP_TIMEOUT, caught_up).await;
    }

    /// Returns a channel that becomes true once all declarations of the startup are applied: their cached sections are
    /// then published.
    pub fn declarations_applied(&self) -> watch::Receiver<bool> {
        self.declarations_applied.clone()
    }

    /// Returns a channel that becomes true once every server that was declared at startup was attached or failed. Until
    /// then a missing name may appear shortly.
    pub fn settled(&self) -> watch::Receiver<bool> {
        self.settled.clone()
    }

    /// Returns a channel that wakes after changes from now on, with the number of a generation; [`Catalog::load`] may
    /// return a newer one.
    pub fn changes(&self) -> watch::Receiver<u64> {
        let mut changes = self.changes.clone();
        changes.mark_unchanged();
        changes
    }
}

impl Publisher {
    /// Publishes the declaration of a server, attached or not; `None` if it is no longer declared.
    pub fn declare(&self, key: ObjectKey, declaration: Option<CatalogDeclaration>) {
        self.enqueue(|updates| {
            updates.declarations.insert(key, declaration);
        });
    }

    /// Marks that every declared server was published once.
    pub fn mark_declarations_complete(&self) {
        self.enqueue(|updates| updates.declarations_complete = true);
    }

    /// Publishes a section, replacing the server's previous one.
    pub fn publish(&self, section: Arc<Section>) {
        self.enqueue(|updates| {
            updates.sections.insert(section.key.clone(), CatalogUpdate::Publish(section));
        });
    }

    /// Withdraws a server's section; callers of its tools get `problem` from now on.
    pub fn withdraw(&self, key: ObjectKey, problem: Problem) {
        self.enqueue(|updates| {
            updates.sections.insert(key.clone(), CatalogUpdate::Withdraw(key, problem));
        });
    }

    /// Marks that the first attempt at a server has ended without a section: during startup, calls no longer wait for
    /// its items.
    pub fn mark_attempted(&self, key: ObjectKey) {
        self.enqueue(|updates| {
            updates.attempted.insert(key);
        });
    }

    /// Announces the items that a section of evenkeel itself may offer shortly: during startup, calls wait for them. An
    /// empty list follows the publication of the section, or says that it will not be published.
    pub fn expect(&self, section: ObjectKey, items: Arc<[ExpectedItem]>) {
        self.enqueue(|updates| {
            updates.expected.insert(section, items);
        });
    }

    /// Marks that all sections of evenkeel itself were announced or published once.
    pub fn mark_expected_complete(&self) {
        self.enqueue(|updates| updates.expected_complete = true);
    }

    /// Marks that every server that was declared at startup has been attached, or has failed, once.
    pub fn mark_settled(&self) {
        self.0.settled.store(true, Ordering::Release);
        self.0.changed.notify_one();
    }

    fn enqueue(&self, update: impl FnOnce(&mut QueuedUpdates)) {
        let mut updates = self.0.updates.lock();
        updates.count += 1;
        update(&mut updates);
        drop(updates);
        self.0.changed.notify_one();
    }
}

impl QueuedUpdates {
    /// Returns true if there are no updates.
    fn is_empty(&self) -> bool {
        self.declarations.is_empty()
            && self.sections.is_empty()
            && self.attempted.is_empty()
            && self.expected.is_empty()
            && !self.declarations_complete
            && !self.expected_complete
    }

    /// Returns the servers whose names the updates affect.
    fn servers(&self) -> BTreeSet<ObjectKey> {
        self.declarations.keys().chain(self.sections.keys()).cloned().collect()
    }

    fn into_updates(self) -> impl Iterator<Item = CatalogUpdate> {
        let declared = self.declarations.into_iter().map(|(key, declaration)| match declaration {
            Some(declaration) => CatalogUpdate::Declare(key, declaration),
            None => CatalogUpdate::Remove(key),
        });
        declared
            .chain(self.declarations_complete.then_some(CatalogUpdate::DeclarationsComplete))
            .chain(self.sections.into_values())
            .chain(self.attempted.into_iter().map(CatalogUpdate::Attempted))
            .chain(self.expected.into_iter().map(|(key, items)| CatalogUpdate::Expect(key, items)))
            .chain(self.expected_complete.then_some(CatalogUpdate::ExpectedComplete))
    }
}

impl PublisherTask {
    /// Applies updates until `stop` is cancelled.
    ///
    /// A change can be listed and called as soon as it is queued. Only the wake-ups are rate-limited: a burst of
    /// changes costs each agent two notifications and not hundreds.
    pub async fn run(self, stop: CancellationToken) {
        let mut quiet_until = Instant::now();
        let mut unannounced = false;
        loop {
            let due = self.current.load().next_expiry_at();
            tokio::select! {
                () = stop.cancelled() => return,
                () = self.pending.changed.notified() => {
                    // Read first: updates that were queued before it are applied in the same pass.
                    let settled = self.pending.settled.load(Ordering::Acquire);
                    unannounced |= self.apply_pending(settled);
                    self.settled.send_if_modified(|was_settled| !std::mem::replace(was_settled, settled) && settled);
                }
                () = sleep_until(due.unwrap_or(quiet_until)), if due.is_some() => {
                    unannounced |= self.apply_pending(false);
                }
                () = sleep_until(quiet_until), if unannounced => {}
            }
            if unannounced && Instant::now() >= quiet_until {
                self.changes.send_replace(self.current.load().number());
                quiet_until = Instant::now() + NOTIFY_INTERVAL;
                unannounced = false;
            }
        }
    }

    /// Creates the next generation, if there is anything to apply. Returns true if the change may be visible to agents.
    fn apply_pending(&self, settled: bool) -> bool {
        let updates = {
            let mut updates = self.pending.updates.lock();
            let count = updates.count;
            std::mem::replace(&mut *updates, QueuedUpdates { count, ..QueuedUpdates::default() })
        };
        let count = updates.count;
        let previous = self.current.load_full();
        let now = Instant::now();
        let settle = (settled && !*self.settled.borrow()).then_some(CatalogUpdate::Settle);
        let (mut servers, complete) = (updates.servers(), updates.declarations_complete);
        if updates.is_empty() && settle.is_none() && previous.next_expiry_at().is_none_or(|due| due > now) {
            self.applied_updates.send_replace(count);
            return false;
        }
        let next = Arc::new(previous.with_updates(updates.into_updates().chain(settle), now));
        self.current.store(next.clone());
        self.applied_updates.send_replace(count);
        self.declarations_applied.send_if_modified(|applied| {
            let declared = complete || settled;
            !std::mem::replace(applied, *applied || declared) && declared
        });
        // A server that waited for a name may have got it without an update of its own.
        for change in previous.all_conflicts().diff(next.all_conflicts()) {
            let (DiffItem::Add(key, _) | DiffItem::Update { new: (key, _), .. } | DiffItem::Remove(key, _)) =
                change;
            servers.insert(key.clone());
        }
        for server in servers {
            let names = next.names_of(&server);
            // Without a receiver nothing is stored: names stay reserved for this run only.
            let _ = self.name_updates.send(ServerNames { server, names });
        }
        next.number() != previous.number()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalog::testing::section;
    use crate::resource::Reason;
    use crate::upstream::ViewName;
    use crate::wire::ListKind;

    fn start_publisher() -> (Catalog, Publisher, tokio_util::sync::DropGuard) {
        let names = mpsc::unbounded_channel().0;
        let (catalog, publisher, task) = catalog(Some("default".into()), ReservedNames::default(), names);
        let stop = CancellationToken::new();
        tokio::spawn(task.run(stop.clone()));
        (catalog, publisher, stop.drop_guard())
    }

    fn publish_server(publisher: &Publisher, name: &str) {
        publisher.publish(Arc::new(section("default", name, name, &["t"])));
    }

    fn tool_count(catalog: &Catalog) -> usize {
        catalog.load().view(&ViewName::All).table(ListKind::Tools).len()
    }

    #[tokio::test(start_paused = true)]
    async fn first_change_notifies_immediately_and_a_burst_once() {
        let (catalog, publisher, _stop) = start_publisher();
        let mut changes = catalog.changes();
        let start = Instant::now();
        publish_server(&publisher, "a");
        changes.changed().await.unwrap();
        assert_eq!((start.elapsed(), tool_count(&catalog)), (Duration::ZERO, 1));

        for name in ["b", "c", "d"] {
            tokio::time::sleep(Duration::from_millis(20)).await;
            publish_server(&publisher, name);
        }
        tokio::task::yield_now().await;
        assert_eq!(tool_count(&catalog), 4, "changes are listed before they are announced");
        changes.changed().await.unwrap();
        assert_eq!(start.elapsed(), NOTIFY_INTERVAL);
        assert_eq!(*changes.borrow(), catalog.load().number());
        assert!(timeout(Duration::from_secs(5), changes.changed()).await.is_err());

        let start = Instant::now();
        let problem = Problem::new(Reason::Removed, "gone");
        publisher.withdraw(ObjectKey::new("default", "a"), problem);
        changes.changed().await.unwrap();
        assert_eq!((start.elapsed(), tool_count(&catalog)), (Duration::ZERO, 3));
    }

    #[tokio::test(start_paused = true)]
    async fn only_the_latest_update_of_a_server_is_applied() {
        let (catalog, publisher, _stop) = start_publisher();
        let problem = Problem::new(Reason::Removed, "gone");
        publish_server(&publisher, "a");
        publisher.withdraw(ObjectKey::new("default", "a"), problem.clone());
        publish_server(&publisher, "b");
        publisher.withdraw(ObjectKey::new("default", "c"), problem);
        publish_server(&publisher, "c");
        catalog.changes().changed().await.unwrap();
        let names = ["a_t", "b_t", "c_t"].map(|name| {
            let generation = catalog.load();
            generation.view(&ViewName::All).table(ListKind::Tools).route(name).is_some()
        });
        assert_eq!((names, catalog.load().number()), ([false, true, true], 1));
    }
}
