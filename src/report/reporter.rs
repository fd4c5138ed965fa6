use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use imbl::OrdMap;
use imbl::ordmap::DiffItem;
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use tokio::sync::{mpsc, watch};
use tokio::time::{MissedTickBehavior, interval, sleep};
use tokio_util::sync::CancellationToken;
use tracing::Level;

use super::conditions::{ConditionMessages, condition};
use super::event_aggregator::EventAggregator;
use super::readiness::ServerReadiness;
use super::source::{ServerCounts, nothing_in, told};
use super::state_change::StateChange;
use super::{
    EventAction, ObjectKind, Occurrence, Regarding, SourceObject, StatusObject, StatusSnapshot,
    server_status, source_status,
};
use crate::catalog::{Catalog, NameConflict};
use crate::fleet::{Observation, Phase};
use crate::plan::ConnectionTarget;
use crate::resource::{
    Commit, ConditionType, DeclaredMeta, DeclaredObject, Desired, Digest, McpServerSpec, McpServerStatus,
    ObjectKey, Problem, Reason, SourceId, SourceState,
};
use crate::skills::{SkillStates, SyncResults};
use crate::source::StoredStatuses;

mod counts;
mod skills;
#[cfg(test)]
mod tests;
mod while_stopped;

/// Observations taken up before the store is published once.
const BATCH: usize = 256;
/// The time between looks for events that are too old to keep.
const EXPIRY: Duration = Duration::from_mins(1);
/// How long readiness waits for the first attempts at the servers that were declared at the start.
const FIRST_ATTEMPTS: Duration = Duration::from_secs(30);

/// Keeps the store of the status API true, and tells each change of state once: a line of the log, an event of
/// the store, and an occurrence for those who keep all of them.
#[derive(Debug)]
pub struct Reporter {
    desired: Arc<Desired>,
    /// What an earlier run had in force, until the source has been read.
    remembered: Arc<Desired>,
    seen: HashMap<ObjectKey, Observation>,
    conflicts: OrdMap<ObjectKey, Arc<[NameConflict]>>,
    standings: SkillStates,
    written: SyncResults,
    store: StatusSnapshot,
    counts: ServerCounts,
    ledger: EventAggregator,
    occurrences: Option<mpsc::UnboundedSender<Arc<Occurrence>>>,
    /// The statuses that the source holds.
    shown: Option<watch::Receiver<StoredStatuses>>,
    /// How often connections were lost and made again before this run, by the uid of the server.
    restarts: HashMap<Arc<str>, u32>,
    /// Objects that were there before were created in an earlier run.
    started: Timestamp,
    published: watch::Sender<StatusSnapshot>,
}

/// What the reporter is told.
#[derive(Debug)]
pub struct ReporterInputs {
    /// What is declared.
    pub desired: watch::Receiver<Arc<Desired>>,
    /// What the fleet sees.
    pub observations: mpsc::UnboundedReceiver<Observation>,
    /// What agents see: which names had to take a hash tail.
    pub catalog: Catalog,
    /// Which skills are offered.
    pub skills: watch::Receiver<SkillStates>,
    /// What became of them in the directories of agents.
    pub written: watch::Receiver<SyncResults>,
}

impl Reporter {
    /// A reporter for what is read in a place, and the store it keeps.
    pub fn new(id: SourceId, now: Timestamp) -> (Self, watch::Receiver<StatusSnapshot>) {
        let store = StatusSnapshot::new(id, now);
        let (published, reader) = watch::channel(store.clone());
        let reporter = Self {
            desired: Arc::default(),
            remembered: Arc::default(),
            seen: HashMap::new(),
            conflicts: OrdMap::new(),
            standings: SkillStates::default(),
            written: SyncResults::default(),
            store,
            counts: ServerCounts::default(),
            ledger: EventAggregator::default(),
            occurrences: None,
            shown: None,
            restarts: HashMap::new(),
            started: now,
            published,
        };
        (reporter, reader)
    }

    /// Everything that happens from here on, one by one and in order, for one reader that takes it up quickly.
    pub fn occurrences(&mut self) -> mpsc::UnboundedReceiver<Arc<Occurrence>> {
        let (sender, receiver) = mpsc::unbounded_channel();
        self.occurrences = Some(sender);
        receiver
    }

    /// Goes on from the statuses that the source holds of objects, instead of beginning with nothing.
    pub fn go_on_from(&mut self, shown: watch::Receiver<StoredStatuses>) {
        self.shown = Some(shown);
    }

    /// Reports until it is stopped.
    pub async fn run(mut self, mut inputs: ReporterInputs, stop: CancellationToken) {
        let mut batch = Vec::new();
        let mut generations = inputs.catalog.changes();
        let mut expiry = interval(EXPIRY);
        expiry.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let first_attempts = sleep(FIRST_ATTEMPTS);
        tokio::pin!(first_attempts);
        let mut given_up = false;
        let desired = inputs.desired.borrow_and_update().clone();
        self.written = inputs.written.borrow_and_update().clone();
        self.desire(&desired, Timestamp::now());
        self.publish();
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                Ok(()) = inputs.desired.changed() => {}
                1.. = inputs.observations.recv_many(&mut batch, BATCH) => {}
                Ok(()) = generations.changed() => {}
                Ok(()) = inputs.skills.changed() => {}
                Ok(()) = inputs.written.changed() => {}
                _ = expiry.tick() => {}
                () = &mut first_attempts, if !given_up => {
                    given_up = true;
                    self.store.readiness.give_up_on_attempts();
                }
            }
            if stop.is_cancelled() {
                // What the fleet tells while it ends is not how things are.
                return;
            }
            // Whoever reads that a server is attached finds its tools.
            inputs.catalog.caught_up().await;
            let now = Timestamp::now();
            // First what is declared: the fleet may have told of a generation before it was looked at here.
            let desired = inputs.desired.borrow_and_update().clone();
            self.desire(&desired, now);
            for observation in batch.drain(..) {
                self.observe(observation, now);
            }
            let conflicts = inputs.catalog.load().conflicting().clone();
            self.conflict(&conflicts, now);
            let standings = inputs.skills.borrow_and_update().clone();
            let written = inputs.written.borrow_and_update().clone();
            self.offer(standings, written, now);
            self.ledger.expire(&mut self.store, now);
            self.publish();
        }
    }

    /// Takes up what is declared now: costs what changed.
    fn desire(&mut self, desired: &Arc<Desired>, now: Timestamp) {
        let before = std::mem::replace(&mut self.desired, desired.clone());
        self.store.number = desired.number;
        if !before.source.synced {
            self.remembered = desired.remembered.clone().unwrap_or_default();
        }
        for change in before.servers.diff(&desired.servers) {
            match change {
                DiffItem::Add(_, declared) | DiffItem::Update { new: (_, declared), .. } => {
                    self.server(declared, now);
                }
                DiffItem::Remove(_, declared) => self.server_removed(declared, now),
            }
        }
        for change in before.skills.diff(&desired.skills) {
            match change {
                DiffItem::Add(_, declared) | DiffItem::Update { new: (_, declared), .. } => {
                    self.skill(declared, now);
                }
                DiffItem::Remove(_, declared) => self.skill_removed(declared, now),
            }
        }
        if !Arc::ptr_eq(&before.source, &desired.source) || self.store.source.status.conditions.is_empty() {
            self.source(&before.source, &desired.source, now);
        }
        self.store.readiness.settle(desired.source.synced);
        if desired.source.synced {
            self.gone_meanwhile(&before, now);
        }
    }

    /// Takes up what the fleet sees of one server.
    fn observe(&mut self, observation: Observation, now: Timestamp) {
        let key = observation.key.clone();
        let declared = self.desired.servers.get(&key).cloned();
        if declared.is_none() && matches!(observation.phase, Phase::Detached(_)) {
            // The last word on a server that is no longer declared.
            self.seen.remove(&key);
            let Observation { uid, generation, .. } = observation;
            let regarding = Regarding { kind: ObjectKind::McpServer, key, uid, generation };
            let cause = Cause::at(&self.desired.source);
            self.tell(regarding, &StateChange::detached(), cause, (None, None), now);
            return;
        }
        let before = self.restarts.get(&observation.uid).copied().unwrap_or_default();
        let restarts = observation.restarts.saturating_add(before);
        self.seen.insert(key, Observation { restarts, ..observation });
        if let Some(declared) = declared {
            self.server(&declared, now);
            self.store.readiness.settle(self.desired.source.synced);
        }
    }

    /// Takes up which names conflict now: costs what changed.
    fn conflict(&mut self, conflicts: &OrdMap<ObjectKey, Arc<[NameConflict]>>, now: Timestamp) {
        let before = std::mem::replace(&mut self.conflicts, conflicts.clone());
        for change in before.diff(conflicts) {
            let (DiffItem::Add(key, _) | DiffItem::Update { new: (key, _), .. } | DiffItem::Remove(key, _)) =
                change;
            if let Some(declared) = self.desired.servers.get(key).cloned() {
                self.server(&declared, now);
            }
        }
    }

    fn server(&mut self, declared: &Arc<DeclaredObject<McpServerSpec>>, now: Timestamp) {
        let key = &declared.meta.key;
        let before = self.store.servers.get(key).cloned();
        // A status of another object of the same name says nothing about this one.
        let known = before.as_ref().filter(|before| before.declared.meta.uid == declared.meta.uid);
        let earlier = self.earlier(declared, known.is_some());
        let (status, sentences) = server_status(
            declared,
            self.seen.get(key),
            self.conflicts.get(key).map_or(&[], |conflicts| conflicts),
            known.map(|before| &before.status).or(earlier.as_ref()),
            now,
        );

        let required = declared.spec.as_ref().is_some_and(|spec| spec.required && !spec.suspend);
        let usable = status.attached_generation.is_some()
            || condition(&status.conditions, ConditionType::Ready)
                .is_some_and(|ready| ready.status == "True");
        // A process that is slow to start is connecting too, and says so.
        let connecting = |seen: &Observation| match &seen.phase {
            Phase::Connecting { last, .. } => {
                last.as_ref().is_none_or(|problem| problem.reason == Reason::Connecting)
            }
            _ => false,
        };
        let attempted =
            !ConnectionTarget::exists(declared) || self.seen.get(key).is_some_and(|seen| !connecting(seen));
        self.store.readiness.server(key, ServerReadiness { required, attached: usable, attempted });

        if known.is_some_and(|before| Arc::ptr_eq(&before.declared, declared) && before.status == status) {
            return;
        }
        let last = before.as_ref().map(|before| before.declared.clone());
        let last = last.or_else(|| self.remembered.servers.get(key).cloned());
        self.tell_declared(ObjectKind::McpServer, last.as_deref(), declared, now);
        let told = known.map_or(&[][..], |before| &before.status.conditions);
        self.tell_state(ObjectKind::McpServer, declared, told, (&status.conditions, &sentences), now);
        let resource_version = self.store.next_version();
        self.recount(before.as_ref().map(|before| &before.status), Some(&status));
        let object = StatusObject { declared: declared.clone(), status, resource_version };
        self.store.servers.insert(key.clone(), Arc::new(object));
    }

    /// At the first sight of a server: what an earlier run said of it.
    fn earlier(&mut self, declared: &DeclaredObject<McpServerSpec>, known: bool) -> Option<McpServerStatus> {
        let shown =
            self.shown.as_ref().filter(|_| !known)?.borrow().servers.get(&declared.meta.key).cloned()?;
        let status = shown.status.clone().filter(|_| shown.uid == declared.meta.uid)?;
        if let Some(restarts) = status.restarts {
            self.restarts.insert(shown.uid.clone(), restarts);
        }
        Some(status)
    }

    fn server_removed(&mut self, declared: &DeclaredObject<McpServerSpec>, now: Timestamp) {
        let key = &declared.meta.key;
        self.restarts.remove(&declared.meta.uid);
        let before = self.store.servers.remove(key);
        self.recount(before.as_ref().map(|before| &before.status), None);
        self.store.next_version();
        self.store.readiness.removed(key);
        if self.seen.get(key).is_some_and(|seen| matches!(seen.phase, Phase::Detached(_))) {
            self.seen.remove(key);
        }
        self.tell_removed(ObjectKind::McpServer, declared, now);
    }

    fn source(&mut self, before: &SourceState, state: &SourceState, now: Timestamp) {
        let known = self.store.source.clone();
        let status = source_status(state, Some(&known.status), now);
        if known.status == status {
            return;
        }
        let mut tell = |reason, level, message| {
            let news = StateChange::new(EventAction::Reconcile, reason, level, message);
            self.tell(Regarding::source(&known), &news, Cause::at(state), (None, None), now);
        };
        for fault in state.faults.iter().filter(|fault| !before.faults.contains(fault)) {
            let Problem { reason, message } = told(fault);
            tell(reason, Level::WARN, message);
        }
        if state.faults.is_empty() && !before.faults.is_empty() {
            tell(Reason::Available, Level::INFO, "everything was read".into());
        }
        if let Some(place) =
            state.nothing_in.as_ref().filter(|place| before.nothing_in.as_ref() != Some(place))
        {
            tracing::info!(resource = %Regarding::source(&known), "{}", nothing_in(place));
        }
        let resource_version = self.store.next_version();
        let source = SourceObject { status, resource_version, ..SourceObject::clone(&known) };
        self.store.source = Arc::new(source);
    }

    /// Tells what is new in a declaration, compared with what was declared under its name before.
    fn tell_declared<S>(
        &mut self,
        kind: ObjectKind,
        before: Option<&DeclaredObject<S>>,
        after: &DeclaredObject<S>,
        now: Timestamp,
    ) {
        if let Some(another) = before.filter(|before| before.meta.uid != after.meta.uid) {
            self.tell_removed(kind, another, now);
        }
        let before = before.filter(|before| before.meta.uid == after.meta.uid);
        let news = match before {
            Some(before) => StateChange::updated(before, after),
            None => (after.meta.created.as_second() >= self.started.as_second())
                .then(|| StateChange::created(&after.meta)),
        };
        if let Some(mut news) = news {
            let digests = (before.and_then(|before| before.spec_digest), after.spec_digest);
            let mut cause = Cause::of(&after.meta);
            let asked = self.desired.asked.get(&after.meta.key).filter(|_| kind == ObjectKind::McpServer);
            if before
                .is_some_and(|before| asked.is_some_and(|asked| asked.explains(&before.meta, &after.meta)))
            {
                // Whoever wrote the file did not ask for it.
                (news.action, cause.commit) = (EventAction::Request, None);
            }
            self.tell(Regarding::of(kind, &after.meta), &news, cause, digests, now);
        }
    }

    fn tell_state<S>(
        &mut self,
        kind: ObjectKind,
        declared: &DeclaredObject<S>,
        before: &[Condition],
        (after, sentences): (&[Condition], &ConditionMessages),
        now: Timestamp,
    ) {
        if let Some(news) = StateChange::of_state(before, after, sentences) {
            let DeclaredObject { meta, spec_digest, .. } = declared;
            let digests = (*spec_digest, *spec_digest);
            self.tell(Regarding::of(kind, meta), &news, Cause::of(meta), digests, now);
        }
    }

    fn tell_removed<S>(&mut self, kind: ObjectKind, declared: &DeclaredObject<S>, now: Timestamp) {
        let regarding = Regarding::of(kind, &declared.meta);
        let commit = self.desired.removals.get(&declared.meta.uid).cloned();
        let cause = Cause { commit, ..Cause::at(&self.desired.source) };
        self.tell(regarding, &StateChange::removed(), cause, (declared.spec_digest, None), now);
    }

    /// Logs, and keeps what is more than a step. The digests are the ones before and after.
    fn tell(
        &mut self,
        regarding: Regarding,
        news: &StateChange,
        Cause { revision, commit }: Cause,
        digests: (Option<Digest>, Option<Digest>),
        now: Timestamp,
    ) {
        news.log(&regarding);
        if news.is_step() {
            return;
        }
        let occurrence = Arc::new(Occurrence {
            at: now,
            regarding,
            action: news.action,
            warning: news.is_warning(),
            reason: news.reason,
            note: news.note(),
            steady: news.steady,
            revision,
            commit,
            digest_before: digests.0,
            digest: digests.1,
        });
        if let Some(occurrences) = &self.occurrences {
            // Whoever asked for them may have left.
            let _ = occurrences.send(occurrence.clone());
        }
        self.ledger.record(&mut self.store, &occurrence);
    }

    fn publish(&mut self) {
        self.tell_counts();
        let ready = self.store.readiness.ready();
        self.published.send_if_modified(|published| {
            let news = published.resource_version != self.store.resource_version
                || published.number != self.store.number
                || published.readiness.ready() != ready;
            if news {
                published.clone_from(&self.store);
            }
            news
        });
    }
}

/// Where something comes from.
struct Cause {
    revision: Arc<str>,
    commit: Option<Arc<Commit>>,
}

impl Cause {
    /// The last change of an object.
    fn of(meta: &DeclaredMeta) -> Self {
        Self { revision: meta.revision.clone(), commit: meta.change.clone() }
    }

    /// The state of the source now: which commit led to it is not known.
    fn at(source: &SourceState) -> Self {
        Self { revision: source.revision.clone(), commit: None }
    }
}
