use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use imbl::OrdMap;
use imbl::ordmap::DiffItem;
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use super::conditions::condition;
use super::source::told;
use super::{Kind, Object, Snapshot, Source, server_status, skill_status, source_status};
use crate::catalog::{Catalog, Conflict};
use crate::fleet::{Observation, Phase};
use crate::resource::{ConditionType, McpServerSpec, ObjectKey, Problem, Reason, SkillSpec};
use crate::source::{Declared, Desired, SourceState};

#[cfg(test)]
mod tests;

/// Observations taken up before the store is published once.
const BATCH: usize = 256;

/// Keeps the store of the status API true, and logs one line per change of state.
#[derive(Debug)]
pub struct Reporter {
    desired: Arc<Desired>,
    seen: HashMap<ObjectKey, Observation>,
    conflicts: OrdMap<ObjectKey, Arc<[Conflict]>>,
    store: Snapshot,
    published: watch::Sender<Snapshot>,
}

/// What the reporter is told.
#[derive(Debug)]
pub struct Inputs {
    /// What is declared.
    pub desired: watch::Receiver<Arc<Desired>>,
    /// What the fleet sees.
    pub observations: mpsc::UnboundedReceiver<Observation>,
    /// What agents see: which names had to take a hash tail.
    pub catalog: Catalog,
}

impl Reporter {
    /// A reporter for a directory, and the store it keeps.
    pub fn new(directory: &Path, now: Timestamp) -> (Self, watch::Receiver<Snapshot>) {
        let store = Snapshot::new(directory, now);
        let (published, reader) = watch::channel(store.clone());
        let reporter = Self {
            desired: Arc::default(),
            seen: HashMap::new(),
            conflicts: OrdMap::new(),
            store,
            published,
        };
        (reporter, reader)
    }

    /// Reports until it is stopped or has nobody left to listen to.
    pub async fn run(mut self, mut inputs: Inputs, stop: CancellationToken) {
        let mut batch = Vec::new();
        let mut generations = inputs.catalog.changes();
        let desired = inputs.desired.borrow_and_update().clone();
        self.desire(&desired, Timestamp::now());
        self.publish();
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                Ok(()) = inputs.desired.changed() => {}
                1.. = inputs.observations.recv_many(&mut batch, BATCH) => {}
                Ok(()) = generations.changed() => {}
                else => return,
            }
            if stop.is_cancelled() {
                // What the fleet tells while it ends is not how things are.
                return;
            }
            let now = Timestamp::now();
            // First what is declared: the fleet may have told of a generation before it was looked at here.
            let desired = inputs.desired.borrow_and_update().clone();
            self.desire(&desired, now);
            for observation in batch.drain(..) {
                self.observe(observation, now);
            }
            let conflicts = inputs.catalog.load().conflicting().clone();
            self.conflict(&conflicts, now);
            self.publish();
        }
    }

    /// Takes up what is declared now: costs what changed.
    fn desire(&mut self, desired: &Arc<Desired>, now: Timestamp) {
        let before = std::mem::replace(&mut self.desired, desired.clone());
        for change in before.servers.diff(&desired.servers) {
            match change {
                DiffItem::Add(_, declared) | DiffItem::Update { new: (_, declared), .. } => {
                    self.server(declared, now);
                }
                DiffItem::Remove(key, _) => self.server_removed(key),
            }
        }
        for change in before.skills.diff(&desired.skills) {
            match change {
                DiffItem::Add(_, declared) | DiffItem::Update { new: (_, declared), .. } => {
                    self.skill(declared, now);
                }
                DiffItem::Remove(key, _) => self.skill_removed(key),
            }
        }
        if !Arc::ptr_eq(&before.source, &desired.source) || self.store.source.status.conditions.is_empty() {
            self.source(&before.source, &desired.source, now);
        }
        self.store.readiness.settle(desired.source.synced);
    }

    /// Takes up what the fleet sees of one server.
    fn observe(&mut self, observation: Observation, now: Timestamp) {
        let key = observation.key.clone();
        let declared = self.desired.servers.get(&key).cloned();
        if declared.is_none() && matches!(observation.phase, Phase::Detached(_)) {
            // The last word on a server that is no longer declared.
            self.seen.remove(&key);
            tracing::debug!(resource = %name(Kind::McpServer, &key), reason = %Reason::Detached, "detached");
            return;
        }
        self.seen.insert(key, observation);
        if let Some(declared) = declared {
            self.server(&declared, now);
            self.store.readiness.settle(self.desired.source.synced);
        }
    }

    /// Takes up which names conflict now: costs what changed.
    fn conflict(&mut self, conflicts: &OrdMap<ObjectKey, Arc<[Conflict]>>, now: Timestamp) {
        let before = std::mem::replace(&mut self.conflicts, conflicts.clone());
        for change in before.diff(conflicts) {
            let (DiffItem::Add(key, _) | DiffItem::Update { new: (key, _), .. } | DiffItem::Remove(key, _)) =
                change;
            if let Some(declared) = self.desired.servers.get(key).cloned() {
                self.server(&declared, now);
            }
        }
    }

    fn server(&mut self, declared: &Arc<Declared<McpServerSpec>>, now: Timestamp) {
        let key = &declared.meta.key;
        let seen = self.seen.get(key);
        let before = self.store.servers.get(key).cloned();
        // A status of another object of the same name says nothing about this one.
        let known = before.as_ref().filter(|before| before.declared.meta.uid == declared.meta.uid);
        let status = server_status(
            declared,
            seen,
            self.conflicts.get(key).map_or(&[], |conflicts| conflicts),
            known.map(|before| &before.status),
            now,
        );

        let required = declared.spec.as_ref().is_some_and(|spec| spec.required && !spec.suspend);
        let usable = status.attached_generation.is_some()
            || condition(&status.conditions, ConditionType::Ready)
                .is_some_and(|ready| ready.status == "True");
        self.store.readiness.server(key, required, usable);

        if known.is_some_and(|before| Arc::ptr_eq(&before.declared, declared) && before.status == status) {
            return;
        }
        log(
            Kind::McpServer,
            key,
            known.map_or(&[], |before| before.status.conditions.as_slice()),
            &status.conditions,
        );
        let resource_version = self.store.next_version();
        let object = Object { declared: declared.clone(), status, resource_version };
        self.store.servers.insert(key.clone(), Arc::new(object));
    }

    fn server_removed(&mut self, key: &ObjectKey) {
        self.store.servers.remove(key);
        self.store.next_version();
        self.store.readiness.removed(key);
        if self.seen.get(key).is_some_and(|seen| matches!(seen.phase, Phase::Detached(_))) {
            self.seen.remove(key);
        }
        log_removed(Kind::McpServer, key);
    }

    fn skill(&mut self, declared: &Arc<Declared<SkillSpec>>, now: Timestamp) {
        let key = &declared.meta.key;
        let before = self.store.skills.get(key).cloned();
        let known = before.as_ref().filter(|before| before.declared.meta.uid == declared.meta.uid);
        let status = skill_status(declared, known.map(|before| &before.status), now);
        log(
            Kind::Skill,
            key,
            known.map_or(&[], |before| before.status.conditions.as_slice()),
            &status.conditions,
        );
        let resource_version = self.store.next_version();
        let object = Object { declared: declared.clone(), status, resource_version };
        self.store.skills.insert(key.clone(), Arc::new(object));
    }

    fn skill_removed(&mut self, key: &ObjectKey) {
        self.store.skills.remove(key);
        self.store.next_version();
        log_removed(Kind::Skill, key);
    }

    fn source(&mut self, before: &SourceState, state: &SourceState, now: Timestamp) {
        let known = &self.store.source;
        let status = source_status(state, Some(&known.status), now);
        if known.status == status {
            return;
        }
        for fault in state.faults.iter().filter(|fault| !before.faults.contains(fault)) {
            let Problem { reason, message } = told(fault);
            tracing::warn!(resource = %source_name(), %reason, "{message}");
        }
        if state.faults.is_empty() && !before.faults.is_empty() {
            tracing::info!(resource = %source_name(), reason = %Reason::Available, "every file was read");
        }
        let source = Source { status, ..Source::clone(known) };
        let resource_version = self.store.next_version();
        self.store.source = Arc::new(Source { resource_version, ..source });
    }

    fn publish(&self) {
        let ready = self.store.readiness.ready();
        self.published.send_if_modified(|published| {
            let news = published.resource_version != self.store.resource_version
                || published.readiness.ready() != ready;
            if news {
                published.clone_from(&self.store);
            }
            news
        });
    }
}

fn source_name() -> String {
    format!("{}/{}", Kind::Source.name(), Source::NAME)
}

fn name(kind: Kind, key: &ObjectKey) -> String {
    format!("{}/{key}", kind.name())
}

fn log_removed(kind: Kind, key: &ObjectKey) {
    tracing::info!(resource = %name(kind, key), reason = %Reason::Removed, "no longer declared");
}

/// One line if the state changed: of the first condition, in order of weight, that says something new.
fn log(kind: Kind, key: &ObjectKey, before: &[Condition], after: &[Condition]) {
    let Some(news) = news(before, after) else { return };
    let (resource, reason) = (name(kind, key), &news.reason);
    if *reason == Reason::Connecting.to_string() {
        // The fleet logs the step that leads here.
        tracing::debug!(%resource, %reason, "{}", news.message);
    } else if is_trouble(news) {
        tracing::warn!(%resource, %reason, "{}", news.message);
    } else {
        tracing::info!(%resource, %reason, "{}", news.message);
    }
}

fn news<'a>(before: &[Condition], after: &'a [Condition]) -> Option<&'a Condition> {
    [ConditionType::Ready, ConditionType::Accepted, ConditionType::ResolvedRefs, ConditionType::Attached]
        .into_iter()
        .filter_map(|kind| Some((kind, condition(after, kind)?)))
        .find(|(kind, told)| match condition(before, *kind) {
            None => true,
            Some(earlier) => {
                (&earlier.status, &earlier.reason) != (&told.status, &told.reason)
                // Of a server that is ready: another generation, or other tools.
                || *kind == ConditionType::Ready
                    && told.status == "True"
                    && (earlier.observed_generation, &earlier.message)
                        != (told.observed_generation, &told.message)
            }
        })
        .map(|(_, told)| told)
}

/// True if a person should know: not what was asked for, nor work that has only begun.
fn is_trouble(told: &Condition) -> bool {
    let expected = [
        Reason::Suspended,
        Reason::Draining,
        Reason::Detached,
        Reason::Attached,
        Reason::ServingPreviousGeneration,
        Reason::Accepted,
        Reason::ResolvedRefs,
        Reason::Available,
        Reason::Idle,
    ];
    !expected.iter().any(|reason| reason.to_string() == told.reason)
}
