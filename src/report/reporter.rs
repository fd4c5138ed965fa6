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

use super::conditions::{ConditionMessages, find_condition};
use super::event_aggregator::EventAggregator;
use super::readiness::ServerReadiness;
use super::source::{ServerCounts, located_problem, nothing_declared_message};
use super::state_change::StateChange;
use super::{
    EventAction, ObjectKind, Occurrence, Regarding, SourceObject, StatusObject, StatusSnapshot,
    server_status, source_status,
};
use crate::catalog::{Catalog, NameConflict};
use crate::fleet::{Observation, Phase};
use crate::oauth::{AuthState, AuthStates};
use crate::plan::ConnectionTarget;
use crate::resource::{
    Commit, ConditionType, DeclaredMeta, DeclaredObject, Desired, Digest, Isolation, McpServerSpec,
    McpServerStatus, ObjectKey, Problem, Reason, SourceId, SourceState,
};
use crate::skills::{SkillStates, SyncResults};
use crate::source::StoredStatuses;

mod counts;
mod skills;
#[cfg(test)]
mod tests;
mod while_stopped;

/// The maximum number of observations that are applied before the snapshot is published.
const MAX_OBSERVATION_BATCH: usize = 256;
/// The interval between removals of expired events.
const EVENT_EXPIRY_INTERVAL: Duration = Duration::from_mins(1);
/// The maximum time for which readiness waits for the first attempts at the servers that were declared at startup.
const FIRST_ATTEMPTS_TIMEOUT: Duration = Duration::from_secs(30);

/// Maintains the snapshot of the status API, and reports each change of state once: as a log line, as an event in the
/// snapshot, and as an occurrence for the audit log.
#[derive(Debug)]
pub struct Reporter {
    desired: Arc<Desired>,
    /// The objects that an earlier run had applied; empty once the source has been read.
    previous_run: Arc<Desired>,
    observations: HashMap<ObjectKey, Observation>,
    conflicts: OrdMap<ObjectKey, Arc<[NameConflict]>>,
    /// The number of callers' connections of each server that has any.
    session_counts: OrdMap<ObjectKey, u32>,
    /// The authorizations of servers that have, or had, a token.
    auth_states: AuthStates,
    skill_states: SkillStates,
    sync_results: SyncResults,
    snapshot: StatusSnapshot,
    counts: ServerCounts,
    event_aggregator: EventAggregator,
    occurrence_sender: Option<mpsc::UnboundedSender<Arc<Occurrence>>>,
    /// The statuses that are stored in the source.
    stored_statuses: Option<watch::Receiver<StoredStatuses>>,
    /// The restart counts from before this run, by the uid of the server.
    previous_restarts: HashMap<Arc<str>, u32>,
    /// The start of this run. Objects that were created before are not reported as created.
    started_at: Timestamp,
    published: watch::Sender<StatusSnapshot>,
}

/// The inputs of a [`Reporter`].
#[derive(Debug)]
pub struct ReporterInputs {
    /// The declared objects.
    pub desired: watch::Receiver<Arc<Desired>>,
    /// The observations of the fleet.
    pub observations: mpsc::UnboundedReceiver<Observation>,
    /// The catalog, for the names that needed a hash suffix.
    pub catalog: Catalog,
    /// The number of callers' connections of each server that has any.
    pub session_counts: watch::Receiver<OrdMap<ObjectKey, u32>>,
    /// The authorizations of servers that have, or had, a token.
    pub auth_states: watch::Receiver<AuthStates>,
    /// The states of the skills.
    pub skill_states: watch::Receiver<SkillStates>,
    /// The results of writing the skills to the directories of agents.
    pub sync_results: watch::Receiver<SyncResults>,
}

impl Reporter {
    /// Creates a reporter for a source, and the receiver of its snapshots.
    pub fn new(id: SourceId, now: Timestamp) -> (Self, watch::Receiver<StatusSnapshot>) {
        let snapshot = StatusSnapshot::new(id, now);
        let (published, reader) = watch::channel(snapshot.clone());
        let reporter = Self {
            desired: Arc::default(),
            previous_run: Arc::default(),
            observations: HashMap::new(),
            conflicts: OrdMap::new(),
            session_counts: OrdMap::new(),
            auth_states: AuthStates::new(),
            skill_states: SkillStates::default(),
            sync_results: SyncResults::default(),
            snapshot,
            counts: ServerCounts::default(),
            event_aggregator: EventAggregator::default(),
            occurrence_sender: None,
            stored_statuses: None,
            previous_restarts: HashMap::new(),
            started_at: now,
            published,
        };
        (reporter, reader)
    }

    /// Returns the receiver of all further occurrences, in order. There is one receiver, and the channel is unbounded,
    /// so it must be read promptly.
    pub fn subscribe_occurrences(&mut self) -> mpsc::UnboundedReceiver<Arc<Occurrence>> {
        let (sender, receiver) = mpsc::unbounded_channel();
        self.occurrence_sender = Some(sender);
        receiver
    }

    /// Continues from the statuses that are stored in the source, instead of starting with empty ones.
    pub fn resume_from(&mut self, stored_statuses: watch::Receiver<StoredStatuses>) {
        self.stored_statuses = Some(stored_statuses);
    }

    /// Runs until it is stopped.
    pub async fn run(mut self, mut inputs: ReporterInputs, stop: CancellationToken) {
        let mut batch = Vec::new();
        let mut generations = inputs.catalog.changes();
        let mut expiry = interval(EVENT_EXPIRY_INTERVAL);
        expiry.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let first_attempts = sleep(FIRST_ATTEMPTS_TIMEOUT);
        tokio::pin!(first_attempts);
        let mut attempts_abandoned = false;
        let desired = inputs.desired.borrow_and_update().clone();
        self.sync_results = inputs.sync_results.borrow_and_update().clone();
        self.apply_desired(&desired, Timestamp::now());
        self.publish();
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                Ok(()) = inputs.desired.changed() => {}
                1.. = inputs.observations.recv_many(&mut batch, MAX_OBSERVATION_BATCH) => {}
                Ok(()) = generations.changed() => {}
                Ok(()) = inputs.session_counts.changed() => {}
                Ok(()) = inputs.auth_states.changed() => {}
                Ok(()) = inputs.skill_states.changed() => {}
                Ok(()) = inputs.sync_results.changed() => {}
                _ = expiry.tick() => {}
                () = &mut first_attempts, if !attempts_abandoned => {
                    attempts_abandoned = true;
                    self.snapshot.readiness.abandon_attempts();
                }
            }
            if stop.is_cancelled() {
                // Observations during shutdown do not describe the state of the servers.
                return;
            }
            // The catalog must contain the tools of a server before its status is attached.
            inputs.catalog.catch_up().await;
            let now = Timestamp::now();
            // Declarations come first: the fleet may have reported a generation that was not applied here yet.
            let desired = inputs.desired.borrow_and_update().clone();
            self.apply_desired(&desired, now);
            for observation in batch.drain(..) {
                self.apply_observation(observation, now);
            }
            let conflicts = inputs.catalog.load().all_conflicts().clone();
            self.apply_conflicts(&conflicts, now);
            let session_counts = inputs.session_counts.borrow_and_update().clone();
            self.apply_session_counts(&session_counts, now);
            let auth_states = inputs.auth_states.borrow_and_update().clone();
            self.apply_auth_states(&auth_states, now);
            let skill_states = inputs.skill_states.borrow_and_update().clone();
            let sync_results = inputs.sync_results.borrow_and_update().clone();
            self.apply_skills(skill_states, sync_results, now);
            self.event_aggregator.expire(&mut self.snapshot, now);
            self.publish();
        }
    }

    /// Applies the declared objects. The cost depends on the number of changes.
    fn apply_desired(&mut self, desired: &Arc<Desired>, now: Timestamp) {
        let before = std::mem::replace(&mut self.desired, desired.clone());
        self.snapshot.desired_number = desired.sequence;
        if !before.source.synced {
            self.previous_run = desired.previous_run.clone().unwrap_or_default();
        }
        for change in before.servers.diff(&desired.servers) {
            match change {
                DiffItem::Add(_, declared) | DiffItem::Update { new: (_, declared), .. } => {
                    self.update_server(declared, now);
                }
                DiffItem::Remove(_, declared) => self.remove_server(declared, now),
            }
        }
        for change in before.skills.diff(&desired.skills) {
            match change {
                DiffItem::Add(_, declared) | DiffItem::Update { new: (_, declared), .. } => {
                    self.update_skill(declared, now);
                }
                DiffItem::Remove(_, declared) => self.remove_skill(declared, now),
            }
        }
        if !Arc::ptr_eq(&before.source, &desired.source) || self.snapshot.source.status.conditions.is_empty()
        {
            self.update_source(&before.source, &desired.source, now);
        }
        self.snapshot.readiness.evaluate(desired.source.synced);
        if desired.source.synced {
            self.report_removals_while_stopped(&before, now);
        }
    }

    /// Applies the observation of one server.
    fn apply_observation(&mut self, observation: Observation, now: Timestamp) {
        let key = observation.key.clone();
        let declared = self.desired.servers.get(&key).cloned();
        if declared.is_none() && matches!(observation.phase, Phase::Detached(_)) {
            // The last observation of a server that is no longer declared.
            self.observations.remove(&key);
            let Observation { uid, generation, .. } = observation;
            let regarding = Regarding { kind: ObjectKind::McpServer, key, uid, generation };
            let cause = Cause::current(&self.desired.source);
            self.report(regarding, &StateChange::detached(), cause, (None, None), now);
            return;
        }
        let previous_restarts = self.previous_restarts.get(&observation.uid).copied().unwrap_or_default();
        let restarts = observation.restarts.saturating_add(previous_restarts);
        self.observations.insert(key, Observation { restarts, ..observation });
        if let Some(declared) = declared {
            self.update_server(&declared, now);
            self.snapshot.readiness.evaluate(self.desired.source.synced);
        }
    }

    /// Applies the name conflicts. The cost depends on the number of changes.
    fn apply_conflicts(&mut self, conflicts: &OrdMap<ObjectKey, Arc<[NameConflict]>>, now: Timestamp) {
        let before = std::mem::replace(&mut self.conflicts, conflicts.clone());
        for change in before.diff(conflicts) {
            let (DiffItem::Add(key, _) | DiffItem::Update { new: (key, _), .. } | DiffItem::Remove(key, _)) =
                change;
            if let Some(declared) = self.desired.servers.get(key).cloned() {
                self.update_server(&declared, now);
            }
        }
    }

    /// Applies the numbers of callers' connections. The cost depends on the number of changes.
    fn apply_session_counts(&mut self, counts: &OrdMap<ObjectKey, u32>, now: Timestamp) {
        let before = std::mem::replace(&mut self.session_counts, counts.clone());
        for change in before.diff(counts) {
            let (DiffItem::Add(key, _) | DiffItem::Update { new: (key, _), .. } | DiffItem::Remove(key, _)) =
                change;
            if let Some(declared) = self.desired.servers.get(key).cloned() {
                self.update_server(&declared, now);
            }
        }
    }

    /// Applies the authorizations of servers. The cost depends on the number of changes.
    fn apply_auth_states(&mut self, states: &AuthStates, now: Timestamp) {
        let before = std::mem::replace(&mut self.auth_states, states.clone());
        for change in before.diff(states) {
            let (key, old, new) = match change {
                DiffItem::Add(key, new) => (key, None, Some(new)),
                DiffItem::Update { old: (key, old), new: (_, new) } => (key, Some(old), Some(new)),
                DiffItem::Remove(key, old) => (key, Some(old), None),
            };
            let Some(declared) = self.desired.servers.get(key).cloned() else { continue };
            if let Some(change) = StateChange::from_auth_states(old, new) {
                let regarding = Regarding::for_object(ObjectKind::McpServer, &declared.meta);
                let digests = (declared.spec_digest, declared.spec_digest);
                self.report(regarding, &change, Cause::current(&self.desired.source), digests, now);
            }
            self.update_server(&declared, now);
        }
    }

    fn update_server(&mut self, declared: &Arc<DeclaredObject<McpServerSpec>>, now: Timestamp) {
        let key = &declared.meta.key;
        let before = self.snapshot.servers.get(key).cloned();
        // The status of another object of the same name is not used.
        let same_object = before.as_ref().filter(|before| before.declared.meta.uid == declared.meta.uid);
        let stored = self.stored_status(declared, same_object.is_some());
        let (mut status, short_messages) = server_status(
            declared,
            self.observations.get(key),
            self.conflicts.get(key).map_or(&[], |conflicts| conflicts),
            same_object.map(|before| &before.status).or(stored.as_ref()),
            now,
        );
        let is_isolated = declared.spec.as_ref().is_some_and(|spec| spec.isolation == Isolation::Session);
        status.auth = self.auth_states.get(key).map(AuthState::to_status);
        status.sessions = is_isolated.then(|| self.session_counts.get(key).copied().unwrap_or_default());

        let required = declared.spec.as_ref().is_some_and(|spec| spec.required && !spec.suspend);
        let is_usable = status.attached_generation.is_some()
            || find_condition(&status.conditions, ConditionType::Ready)
                .is_some_and(|ready| ready.status == "True");
        // A process that is slow to start is still connecting; its problem has the reason Connecting.
        let is_connecting = |observation: &Observation| match &observation.phase {
            Phase::Connecting { last_problem, .. } => {
                last_problem.as_ref().is_none_or(|problem| problem.reason == Reason::Connecting)
            }
            _ => false,
        };
        let attempted = !ConnectionTarget::exists_for(declared)
            || self.observations.get(key).is_some_and(|observation| !is_connecting(observation));
        self.snapshot
            .readiness
            .update_server(key, ServerReadiness { required, attached: is_usable, attempted });

        if same_object
            .is_some_and(|before| Arc::ptr_eq(&before.declared, declared) && before.status == status)
        {
            return;
        }
        let previous = before.as_ref().map(|before| before.declared.clone());
        let previous = previous.or_else(|| self.previous_run.servers.get(key).cloned());
        self.report_declaration(ObjectKind::McpServer, previous.as_deref(), declared, now);
        let old_conditions = same_object.map_or(&[][..], |before| &before.status.conditions);
        self.report_conditions(
            ObjectKind::McpServer,
            declared,
            old_conditions,
            (&status.conditions, &short_messages),
            now,
        );
        let resource_version = self.snapshot.next_resource_version();
        self.update_counts(before.as_ref().map(|before| &before.status), Some(&status));
        let object = StatusObject { declared: declared.clone(), status, resource_version };
        self.snapshot.servers.insert(key.clone(), Arc::new(object));
    }

    /// Returns the stored status from an earlier run, when a server is seen for the first time.
    fn stored_status(
        &mut self,
        declared: &DeclaredObject<McpServerSpec>,
        is_known: bool,
    ) -> Option<McpServerStatus> {
        let stored = self
            .stored_statuses
            .as_ref()
            .filter(|_| !is_known)?
            .borrow()
            .servers
            .get(&declared.meta.key)
            .cloned()?;
        let status = stored.status.clone().filter(|_| stored.uid == declared.meta.uid)?;
        if let Some(restarts) = status.restarts {
            self.previous_restarts.insert(stored.uid.clone(), restarts);
        }
        Some(status)
    }

    fn remove_server(&mut self, declared: &DeclaredObject<McpServerSpec>, now: Timestamp) {
        let key = &declared.meta.key;
        self.previous_restarts.remove(&declared.meta.uid);
        let before = self.snapshot.servers.remove(key);
        self.update_counts(before.as_ref().map(|before| &before.status), None);
        self.snapshot.next_resource_version();
        self.snapshot.readiness.remove_server(key);
        if self
            .observations
            .get(key)
            .is_some_and(|observation| matches!(observation.phase, Phase::Detached(_)))
        {
            self.observations.remove(key);
        }
        self.report_removal(ObjectKind::McpServer, declared, now);
    }

    fn update_source(&mut self, before: &SourceState, state: &SourceState, now: Timestamp) {
        let current = self.snapshot.source.clone();
        let status = source_status(state, Some(&current.status), now);
        if current.status == status {
            return;
        }
        let mut report = |reason, level, message| {
            let change = StateChange::new(EventAction::Reconcile, reason, level, message);
            self.report(Regarding::for_source(&current), &change, Cause::current(state), (None, None), now);
        };
        for fault in state.problems.iter().filter(|fault| !before.problems.contains(fault)) {
            let Problem { reason, message } = located_problem(fault);
            report(reason, Level::WARN, message);
        }
        if state.problems.is_empty() && !before.problems.is_empty() {
            report(Reason::Available, Level::INFO, "everything was read".into());
        }
        if let Some(scope) =
            state.empty_scope.as_ref().filter(|scope| before.empty_scope.as_ref() != Some(scope))
        {
            tracing::info!(resource = %Regarding::for_source(&current), "{}", nothing_declared_message(scope));
        }
        let resource_version = self.snapshot.next_resource_version();
        let source = SourceObject { status, resource_version, ..SourceObject::clone(&current) };
        self.snapshot.source = Arc::new(source);
    }

    /// Reports the change of a declaration against the previous one of the same name.
    fn report_declaration<S>(
        &mut self,
        kind: ObjectKind,
        before: Option<&DeclaredObject<S>>,
        after: &DeclaredObject<S>,
        now: Timestamp,
    ) {
        if let Some(replaced) = before.filter(|before| before.meta.uid != after.meta.uid) {
            self.report_removal(kind, replaced, now);
        }
        let before = before.filter(|before| before.meta.uid == after.meta.uid);
        let change = match before {
            Some(before) => StateChange::updated(before, after),
            None => (after.meta.created_at.as_second() >= self.started_at.as_second())
                .then(|| StateChange::created(&after.meta)),
        };
        if let Some(mut change) = change {
            let digests = (before.and_then(|before| before.spec_digest), after.spec_digest);
            let mut cause = Cause::last_change(&after.meta);
            let requested =
                self.desired.requested_work.get(&after.meta.key).filter(|_| kind == ObjectKind::McpServer);
            if before.is_some_and(|before| {
                requested.is_some_and(|requested| requested.accounts_for(&before.meta, &after.meta))
            }) {
                // The author of the file did not make the request.
                (change.action, cause.commit) = (EventAction::Request, None);
            }
            self.report(Regarding::for_object(kind, &after.meta), &change, cause, digests, now);
        }
    }

    fn report_conditions<S>(
        &mut self,
        kind: ObjectKind,
        declared: &DeclaredObject<S>,
        before: &[Condition],
        (after, short_messages): (&[Condition], &ConditionMessages),
        now: Timestamp,
    ) {
        if let Some(change) = StateChange::from_conditions(before, after, short_messages) {
            let DeclaredObject { meta, spec_digest, .. } = declared;
            let digests = (*spec_digest, *spec_digest);
            self.report(Regarding::for_object(kind, meta), &change, Cause::last_change(meta), digests, now);
        }
    }

    fn report_removal<S>(&mut self, kind: ObjectKind, declared: &DeclaredObject<S>, now: Timestamp) {
        let regarding = Regarding::for_object(kind, &declared.meta);
        let commit = self.desired.removal_commits.get(&declared.meta.uid).cloned();
        let cause = Cause { commit, ..Cause::current(&self.desired.source) };
        self.report(regarding, &StateChange::removed(), cause, (declared.spec_digest, None), now);
    }

    /// Logs a change, and records it unless it is an intermediate step. `digests` are the previous and the current one.
    fn report(
        &mut self,
        regarding: Regarding,
        change: &StateChange,
        Cause { revision, commit }: Cause,
        digests: (Option<Digest>, Option<Digest>),
        now: Timestamp,
    ) {
        change.log(&regarding);
        if change.is_intermediate() {
            return;
        }
        let occurrence = Arc::new(Occurrence {
            at: now,
            regarding,
            action: change.action,
            warning: change.is_warning(),
            reason: change.reason,
            note: change.note(),
            fixed_note: change.fixed_note,
            revision,
            commit,
            previous_digest: digests.0,
            digest: digests.1,
        });
        if let Some(sender) = &self.occurrence_sender {
            // The receiver may have been dropped.
            let _ = sender.send(occurrence.clone());
        }
        self.event_aggregator.record(&mut self.snapshot, &occurrence);
    }

    fn publish(&mut self) {
        self.publish_counts();
        let is_ready = self.snapshot.readiness.is_ready();
        self.published.send_if_modified(|published| {
            let is_changed = published.resource_version != self.snapshot.resource_version
                || published.desired_number != self.snapshot.desired_number
                || published.readiness.is_ready() != is_ready;
            if is_changed {
                published.clone_from(&self.snapshot);
            }
            is_changed
        });
    }
}

/// The revision and commit that caused a change.
struct Cause {
    revision: Arc<str>,
    commit: Option<Arc<Commit>>,
}

impl Cause {
    /// Returns the last change of an object.
    fn last_change(meta: &DeclaredMeta) -> Self {
        Self { revision: meta.revision.clone(), commit: meta.last_commit.clone() }
    }

    /// Returns the current revision of the source. The commit that caused the change is not known.
    fn current(source: &SourceState) -> Self {
        Self { revision: source.revision.clone(), commit: None }
    }
}
