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

use super::{CatalogDeclaration, CatalogUpdate, Generation, ReservedName, ReservedNames, ReservedUntil};
use crate::resource::{ObjectKey, Problem};
use crate::upstream::Section;

/// Waiters are woken by the first change at once, and by all that follow within this time together.
const NOTIFY_INTERVAL: Duration = Duration::from_millis(100);

/// How long is waited at most for what was handed in.
const CATCH_UP_TIMEOUT: Duration = Duration::from_secs(1);

/// What agents may see now. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Catalog {
    current: Arc<ArcSwap<Generation>>,
    changes: watch::Receiver<u64>,
    declarations_applied: watch::Receiver<bool>,
    settled: watch::Receiver<bool>,
    pending: Arc<UpdateQueue>,
    applied_updates: watch::Receiver<u64>,
}

/// Where servers' sections are handed in. Cheap to clone; never waits.
#[derive(Clone, Debug)]
pub struct Publisher(Arc<UpdateQueue>);

#[derive(Debug, Default)]
struct UpdateQueue {
    updates: Mutex<QueuedUpdates>,
    changed: Notify,
    /// The start is over: told on once all steps before it are taken.
    settled: AtomicBool,
}

#[derive(Debug, Default)]
struct QueuedUpdates {
    /// Number of steps handed in so far.
    count: u64,
    /// Declarations of servers; `None` for one that is declared no more.
    declarations: BTreeMap<ObjectKey, Option<CatalogDeclaration>>,
    /// Everything that is declared was told once.
    declarations_complete: bool,
    /// The latest step of each server: what it had handed in before does not matter any more.
    sections: BTreeMap<ObjectKey, CatalogUpdate>,
}

/// Makes one generation after another from what is handed in.
#[derive(Debug)]
pub struct PublisherTask {
    pending: Arc<UpdateQueue>,
    current: Arc<ArcSwap<Generation>>,
    changes: watch::Sender<u64>,
    declarations_applied: watch::Sender<bool>,
    settled: watch::Sender<bool>,
    /// Number of steps taken so far.
    applied_updates: watch::Sender<u64>,
    name_updates: mpsc::UnboundedSender<ServerNames>,
}

/// The names of one server, to be written down: they are kept over a restart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerNames {
    /// The server.
    pub server: ObjectKey,
    /// All that lead, or led, to one of its items, each with how long it is kept once it is not listed.
    pub names: Vec<(ReservedName, ReservedUntil)>,
}

/// Makes a catalog in which these names are kept, the way into it, and the task that moves it on; the task is to be spawned.
///
/// In the home namespace names carry no namespace before the prefix. `names` is told of servers whose names changed.
pub fn catalog(
    home: Option<Arc<str>>,
    kept: ReservedNames,
    names: mpsc::UnboundedSender<ServerNames>,
) -> (Catalog, Publisher, PublisherTask) {
    let current = Arc::new(ArcSwap::from_pointee(Generation::new(home, kept, Instant::now())));
    let pending = Arc::new(UpdateQueue::default());
    let (sender, changes) = watch::channel(0);
    let (declare, declared) = watch::channel(false);
    let (settle, settled) = watch::channel(false);
    let (take, taken) = watch::channel(0);
    let task = PublisherTask {
        pending: pending.clone(),
        current: current.clone(),
        changes: sender,
        declarations_applied: declare,
        settled: settle,
        applied_updates: take,
        name_updates: names,
    };
    let catalog = Catalog {
        current,
        changes,
        declarations_applied: declared,
        settled,
        pending: pending.clone(),
        applied_updates: taken,
    };
    (catalog, Publisher(pending), task)
}

impl Catalog {
    /// The newest generation. Not to be held across a wait: a reader looks again.
    pub fn load(&self) -> Guard<Arc<Generation>> {
        self.current.load()
    }

    /// Waits until everything that was handed in before this call can be read. Not for longer than a moment: what is told
    /// of it is then at most a moment ahead of what agents see.
    pub async fn catch_up(&self) {
        let count = self.pending.updates.lock().count;
        let mut taken = self.applied_updates.clone();
        let caught_up = taken.wait_for(|taken| *taken >= count);
        // Its end says that the process ends.
        let _ = timeout(CATCH_UP_TIMEOUT, caught_up).await;
    }

    /// Becomes true once all that was declared at the start was taken up: what is remembered of it is offered.
    pub fn declarations_applied(&self) -> watch::Receiver<bool> {
        self.declarations_applied.clone()
    }

    /// Becomes true once every server that was declared at the start was attached or failed. Until then a name
    /// that is not there may be there in a moment.
    pub fn settled(&self) -> watch::Receiver<bool> {
        self.settled.clone()
    }

    /// Wakes after changes from now on, with the number of a generation; [`Catalog::load`] may give a newer one.
    pub fn changes(&self) -> watch::Receiver<u64> {
        let mut changes = self.changes.clone();
        changes.mark_unchanged();
        changes
    }
}

impl Publisher {
    /// Says how a server is declared, attached or not; `None` if it is declared no more.
    pub fn declare(&self, key: ObjectKey, declaration: Option<CatalogDeclaration>) {
        self.enqueue(|steps| {
            steps.declarations.insert(key, declaration);
        });
    }

    /// Says that every server that is declared was told once.
    pub fn mark_declarations_complete(&self) {
        self.enqueue(|steps| steps.declarations_complete = true);
    }

    /// Puts a section in place of the server's last one.
    pub fn publish(&self, section: Arc<Section>) {
        self.enqueue(|steps| {
            steps.sections.insert(section.key.clone(), CatalogUpdate::Publish(section));
        });
    }

    /// Takes a server's section away; `why` is what callers of its tools are told from now on.
    pub fn withdraw(&self, key: ObjectKey, why: Problem) {
        self.enqueue(|steps| {
            steps.sections.insert(key.clone(), CatalogUpdate::Withdraw(key, why));
        });
    }

    /// Says that every server that was declared at the start has been attached, or has failed, once.
    pub fn mark_settled(&self) {
        self.0.settled.store(true, Ordering::Release);
        self.0.changed.notify_one();
    }

    fn enqueue(&self, step: impl FnOnce(&mut QueuedUpdates)) {
        let mut steps = self.0.updates.lock();
        steps.count += 1;
        step(&mut steps);
        drop(steps);
        self.0.changed.notify_one();
    }
}

impl QueuedUpdates {
    /// Lists the servers that the steps are about.
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
    }
}

impl PublisherTask {
    /// Publishes until it is told to stop.
    ///
    /// A change can be read and called as soon as it is handed in; only the waking of waiters is spread,
    /// so that a burst of changes costs each agent two notices and not hundreds.
    pub async fn run(self, stop: CancellationToken) {
        let mut quiet_until = Instant::now();
        let mut untold = false;
        loop {
            let due = self.current.load().next_expiry_at();
            tokio::select! {
                () = stop.cancelled() => return,
                () = self.pending.changed.notified() => {
                    // Looked at first: what was handed in before it is taken with this step.
                    let settled = self.pending.settled.load(Ordering::Acquire);
                    untold |= self.apply_pending(settled);
                    self.settled.send_if_modified(|before| !std::mem::replace(before, settled) && settled);
                }
                () = sleep_until(due.unwrap_or(quiet_until)), if due.is_some() => untold |= self.apply_pending(false),
                () = sleep_until(quiet_until), if untold => {}
            }
            if untold && Instant::now() >= quiet_until {
                self.changes.send_replace(self.current.load().number());
                quiet_until = Instant::now() + NOTIFY_INTERVAL;
                untold = false;
            }
        }
    }

    /// Makes the next generation, if there is anything to be done. True if agents may see a change.
    fn apply_pending(&self, settled: bool) -> bool {
        let steps = {
            let mut steps = self.pending.updates.lock();
            let count = steps.count;
            std::mem::replace(&mut *steps, QueuedUpdates { count, ..QueuedUpdates::default() })
        };
        let count = steps.count;
        let before = self.current.load_full();
        let now = Instant::now();
        let settle = (settled && !*self.settled.borrow()).then_some(CatalogUpdate::Settle);
        let (mut servers, complete) = (steps.servers(), steps.declarations_complete);
        if servers.is_empty()
            && !complete
            && settle.is_none()
            && before.next_expiry_at().is_none_or(|due| due > now)
        {
            self.applied_updates.send_replace(count);
            return false;
        }
        let next = Arc::new(before.with_updates(steps.into_updates().chain(settle), now));
        self.current.store(next.clone());
        self.applied_updates.send_replace(count);
        self.declarations_applied.send_if_modified(|before| {
            let declared = complete || settled;
            !std::mem::replace(before, *before || declared) && declared
        });
        // Who waited for a name may have got it without a step of its own.
        for change in before.all_conflicts().diff(next.all_conflicts()) {
            let (DiffItem::Add(key, _) | DiffItem::Update { new: (key, _), .. } | DiffItem::Remove(key, _)) =
                change;
            servers.insert(key.clone());
        }
        for server in servers {
            let names = next.names_of(&server);
            // Nobody writes it down: names are kept for this run.
            let _ = self.name_updates.send(ServerNames { server, names });
        }
        next.number() != before.number()
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
        assert_eq!(tool_count(&catalog), 4, "what is not told yet is there already");
        changes.changed().await.unwrap();
        assert_eq!(start.elapsed(), NOTIFY_INTERVAL);
        assert_eq!(*changes.borrow(), catalog.load().number());
        assert!(timeout(Duration::from_secs(5), changes.changed()).await.is_err());

        let start = Instant::now();
        let gone = Problem::new(Reason::Removed, "gone");
        publisher.withdraw(ObjectKey::new("default", "a"), gone);
        changes.changed().await.unwrap();
        assert_eq!((start.elapsed(), tool_count(&catalog)), (Duration::ZERO, 3));
    }

    #[tokio::test(start_paused = true)]
    async fn only_the_latest_update_of_a_server_is_applied() {
        let (catalog, publisher, _stop) = start_publisher();
        let gone = Problem::new(Reason::Removed, "gone");
        publish_server(&publisher, "a");
        publisher.withdraw(ObjectKey::new("default", "a"), gone.clone());
        publish_server(&publisher, "b");
        publisher.withdraw(ObjectKey::new("default", "c"), gone);
        publish_server(&publisher, "c");
        catalog.changes().changed().await.unwrap();
        let names = ["a_t", "b_t", "c_t"].map(|name| {
            let generation = catalog.load();
            generation.view(&ViewName::All).table(ListKind::Tools).route(name).is_some()
        });
        assert_eq!((names, catalog.load().number()), ([false, true, true], 1));
    }
}
