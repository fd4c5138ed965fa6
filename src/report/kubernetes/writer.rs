//! Brings the statuses that objects show to what is true.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use imbl::OrdMap;
use imbl::ordmap::DiffItem;
use jiff::Timestamp;
use kube::api::{Patch, PatchParams};
use kube::core::{ApiResource, DynamicObject};
use kube::{Api, Client};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until, timeout};

use super::request::{MANAGER, REQUEST};
use super::status_diff::{StatusFields, farewell, patience, same, to_write};
use super::write_conflicts::WriteConflicts;
use crate::net::api_server::{in_words, retry_after};
use crate::net::{Backoff, Delays, jitter};
use crate::report::{StatusObject, StatusSnapshot};
use crate::resource::{
    API_VERSION, McpServer, McpServerSpec, McpServerStatus, ObjectKey, Skill, SkillSpec, SkillStatus,
};
use crate::source::{StoredStatus, StoredStatuses};

/// Writes under way at once.
const FLIGHTS: usize = 8;
/// The time between two writes of one object.
const PAUSE: Duration = Duration::from_millis(300);
/// The delays before a write that failed is tried again.
const RETRY: Delays = Delays { initial: Duration::from_secs(1), max: Duration::from_mins(1) };

type Wanted<S, T> = OrdMap<ObjectKey, Arc<StatusObject<S, T>>>;
type Statuses<T> = OrdMap<ObjectKey, Arc<StoredStatus<T>>>;

/// Writes the statuses of one kind.
pub(super) struct StatusWriter<S, T> {
    client: Client,
    resource: ApiResource,
    wanted_of: fn(&StatusSnapshot) -> &Wanted<S, T>,
    shown_of: fn(&StoredStatuses) -> &Statuses<T>,
    wanted: Wanted<S, T>,
    shown: Statuses<T>,
    /// The last write of each object, until it shows something newer.
    written: HashMap<ObjectKey, Written<T>>,
    contests: WriteConflicts,
    /// What is to be written, by when it is due.
    queue: BTreeSet<(Instant, ObjectKey)>,
    jobs: HashMap<ObjectKey, Job>,
    flights: JoinSet<(ObjectKey, T, Result<DynamicObject, Failed>)>,
}

/// A write that is to be done or under way.
#[derive(Clone, Copy)]
struct Job {
    due: Instant,
    flying: bool,
    backoff: Backoff,
}

/// A write that was done.
struct Written<T> {
    asked: T,
    gave: StoredStatus<T>,
    at: Instant,
}

/// A write that has to be done.
struct Needed<T> {
    status: T,
    /// How long it may wait for more to tell.
    wait: Duration,
    /// Of the object that it is for.
    version: u64,
}

#[derive(Debug, thiserror::Error)]
enum Failed {
    #[error("{}", in_words(.0))]
    Refused(#[from] kube::Error),
    #[error("no answer within {} s", REQUEST.as_secs())]
    Silent,
}

/// Writes the statuses of servers.
pub(super) fn servers(client: &Client) -> StatusWriter<McpServerSpec, McpServerStatus> {
    StatusWriter::new(
        client,
        ApiResource::erase::<McpServer>(&()),
        |store| &store.servers,
        |shown| &shown.servers,
    )
}

/// Writes the statuses of skills.
pub(super) fn skills(client: &Client) -> StatusWriter<SkillSpec, SkillStatus> {
    StatusWriter::new(client, ApiResource::erase::<Skill>(&()), |store| &store.skills, |shown| &shown.skills)
}

impl<S, T: StatusFields + Serialize + DeserializeOwned + Send + 'static> StatusWriter<S, T> {
    fn new(
        client: &Client,
        resource: ApiResource,
        wanted_of: fn(&StatusSnapshot) -> &Wanted<S, T>,
        shown_of: fn(&StoredStatuses) -> &Statuses<T>,
    ) -> Self {
        Self {
            client: client.clone(),
            resource,
            wanted_of,
            shown_of,
            wanted: OrdMap::new(),
            shown: OrdMap::new(),
            written: HashMap::new(),
            contests: WriteConflicts::default(),
            queue: BTreeSet::new(),
            jobs: HashMap::new(),
            flights: JoinSet::new(),
        }
    }

    /// Runs for good. A replica that does not lead keeps the queue and writes nothing.
    pub async fn run(
        mut self,
        mut store: watch::Receiver<StatusSnapshot>,
        mut shown: watch::Receiver<StoredStatuses>,
        mut leading: watch::Receiver<bool>,
    ) {
        let mut led = false;
        loop {
            let now = Instant::now();
            let wanted = (self.wanted_of)(&store.borrow_and_update()).clone();
            let statuses = (self.shown_of)(&shown.borrow_and_update()).clone();
            let leads = *leading.borrow_and_update();
            if leads && !led {
                // Another replica wrote since.
                self.written.clear();
                self.contests.clear();
            }
            led = leads;
            self.take(wanted, statuses, now);
            if leads {
                self.start(now);
            }
            let next =
                self.queue.first().map(|(due, _)| *due).filter(|_| leads && self.flights.len() < FLIGHTS);
            tokio::select! {
                changed = store.changed() => if changed.is_err() { return },
                changed = shown.changed() => if changed.is_err() { return },
                changed = leading.changed() => if changed.is_err() { return },
                Some(Ok((key, asked, outcome))) = self.flights.join_next() => self.land(&key, asked, outcome),
                () = sleep_until(next.unwrap_or(now)), if next.is_some() => {}
            }
        }
    }

    /// Takes up what is true and what is shown: costs what changed.
    fn take(&mut self, wanted: Wanted<S, T>, shown: Statuses<T>, now: Instant) {
        let mut news = BTreeSet::new();
        for item in self.wanted.diff(&wanted) {
            let (DiffItem::Add(key, _) | DiffItem::Update { new: (key, _), .. } | DiffItem::Remove(key, _)) =
                item;
            news.insert(key.clone());
        }
        for item in self.shown.diff(&shown) {
            let (DiffItem::Add(key, _) | DiffItem::Update { new: (key, _), .. } | DiffItem::Remove(key, _)) =
                item;
            news.insert(key.clone());
        }
        self.wanted = wanted;
        self.shown = shown;
        for key in news {
            if !self.jobs.get(&key).is_some_and(|job| job.flying) {
                self.defend(&key, now);
            }
            self.plan(&key, now);
        }
    }

    /// Notices that somebody else wrote over what we wrote.
    fn defend(&mut self, key: &ObjectKey, now: Instant) {
        let (Some(shown), Some(Written { gave, .. })) = (self.shown.get(key), self.written.get(key)) else {
            return;
        };
        let newer = shown.uid == gave.uid && shown.resource_version > gave.resource_version;
        if newer
            && !same(shown.status.as_ref(), gave.status.as_ref())
            && self.contests.lost(key, shown.resource_version, now)
        {
            tracing::warn!(
                resource = %format!("{}/{key}", self.resource.kind),
                "somebody else writes the status that is written here, again and again: another installation of \
                 evenkeel that serves this namespace too, with a Lease of its own? Let one serve it; until then statuses \
                 that are written over are written less often"
            );
        }
    }

    /// What the object shows as far as it is known: the watch may be behind our own last write. `None` while
    /// the watch has not told of it.
    fn believed(&self, key: &ObjectKey, uid: &str) -> Option<&StoredStatus<T>> {
        let shown = self.shown.get(key).filter(|shown| *shown.uid == *uid)?;
        let written = self.written.get(key).map(|written| &written.gave);
        let newer =
            |gave: &&StoredStatus<T>| *gave.uid == *uid && shown.resource_version <= gave.resource_version;
        Some(written.filter(newer).unwrap_or(shown))
    }

    /// What is to be shown of an object, and its uid. One that is being deleted is declared no more, and says so.
    fn told(&self, key: &ObjectKey) -> Option<(Arc<str>, T)> {
        let leaving = self.shown.get(key).and_then(|shown| Some((shown.uid.clone(), shown.leaving?)));
        if let Some((uid, generation)) = leaving {
            return Some((uid, farewell(generation, Timestamp::now())));
        }
        self.wanted.get(key).map(|object| (object.declared.meta.uid.clone(), object.status.clone()))
    }

    /// What has to be written to an object, if anything.
    fn needed(&self, key: &ObjectKey) -> Option<Needed<T>> {
        let (uid, wanted) = self.told(key)?;
        let believed = self.believed(key, &uid)?;
        let wait = patience(&wanted, believed.status.as_ref());
        let status = to_write(wanted, believed.status.as_ref())?;
        // The server made something else of it, and would again.
        let asked_before = self.written.get(key).is_some_and(|written| {
            written.asked == status
                && written.gave.uid == believed.uid
                && written.gave.status == believed.status
        });
        (!asked_before).then_some(Needed { status, wait, version: believed.resource_version })
    }

    fn plan(&mut self, key: &ObjectKey, now: Instant) {
        if self.jobs.get(key).is_some_and(|job| job.flying) {
            return;
        }
        let Some(Needed { wait, .. }) = self.needed(key) else {
            if let Some(job) = self.jobs.remove(key) {
                self.queue.remove(&(job.due, key.clone()));
            }
            if self.told(key).is_none() {
                self.written.remove(key);
                self.contests.forget(key);
            }
            return;
        };
        let pause = self.contests.pause(key, now).max(PAUSE);
        let last = self.written.get(key).map_or(now, |written| written.at + pause);
        let due = (now + wait).max(last);
        match self.jobs.get_mut(key) {
            // After a failure the delay holds, else the earliest of all reasons.
            Some(job) if job.backoff.failures() > 0 || job.due <= due => {}
            Some(job) => {
                self.queue.remove(&(job.due, key.clone()));
                job.due = due;
                self.queue.insert((due, key.clone()));
            }
            None => {
                self.jobs.insert(key.clone(), Job { due, flying: false, backoff: Backoff::default() });
                self.queue.insert((due, key.clone()));
            }
        }
    }

    fn start(&mut self, now: Instant) {
        while self.flights.len() < FLIGHTS
            && let Some((due, key)) = self.queue.first().cloned()
            && due <= now
        {
            self.queue.pop_first();
            let Some(Needed { status, version, .. }) = self.needed(&key) else {
                self.jobs.remove(&key);
                continue;
            };
            if let Some(job) = self.jobs.get_mut(&key) {
                job.flying = true;
            }
            // Not the types themselves: a spec that does not decode must not hide that its status was written.
            let api: Api<DynamicObject> =
                Api::namespaced_with(self.client.clone(), &key.namespace, &self.resource);
            let body = json!({
                "apiVersion": API_VERSION,
                "kind": self.resource.kind,
                // Of another object of the same name, or of a newer generation, it need not be true.
                "metadata": { "name": &*key.name, "namespace": &*key.namespace, "resourceVersion": version.to_string() },
                "status": &status,
            });
            self.flights.spawn(async move {
                let params = PatchParams::apply(MANAGER).force();
                let patch = Patch::Apply(body);
                let outcome = match timeout(REQUEST, api.patch_status(&key.name, &params, &patch)).await {
                    Ok(answer) => answer.map_err(Failed::from),
                    Err(_) => Err(Failed::Silent),
                };
                (key, status, outcome)
            });
        }
    }

    fn land(&mut self, key: &ObjectKey, asked: T, outcome: Result<DynamicObject, Failed>) {
        let now = Instant::now();
        let Some(mut job) = self.jobs.remove(key) else { return };
        match outcome {
            Ok(DynamicObject { metadata, mut data, .. }) => {
                let version = metadata.resource_version.and_then(|text| text.parse().ok());
                let status = data.get_mut("status").map(Value::take).unwrap_or_default();
                let gave = StoredStatus {
                    uid: metadata.uid.unwrap_or_default().into(),
                    resource_version: version.unwrap_or_default(),
                    status: serde_json::from_value(status).ok(),
                    leaving: None,
                };
                let resource = format!("{}/{key}", self.resource.kind);
                if job.backoff.failures() == 0 {
                    tracing::debug!(%resource, "status written");
                } else {
                    tracing::info!(%resource, "the status can be written again");
                }
                self.written.insert(key.clone(), Written { asked, gave, at: now });
                self.plan(key, now);
            }
            // It is gone: the watch tells so soon.
            Err(Failed::Refused(kube::Error::Api(status))) if status.is_not_found() => {}
            // It has changed: the watch tells so soon, or has already.
            Err(Failed::Refused(kube::Error::Api(status))) if status.is_conflict() => {
                self.defend(key, now);
                self.put_off(key, job, now + self.contests.pause(key, now).max(PAUSE));
            }
            Err(error) => {
                if !matches!(error, Failed::Refused(kube::Error::Api(_))) {
                    // It may have been written all the same: then what shows next is ours.
                    self.written.remove(key);
                }
                if job.backoff.failures() == 0 {
                    tracing::warn!(
                        resource = %format!("{}/{key}", self.resource.kind),
                        "the status cannot be written: {error}; it is tried again"
                    );
                }
                let asked = match &error {
                    Failed::Refused(kube::Error::Api(status)) => retry_after(status),
                    _ => None,
                };
                let asked = asked.map(|asked| asked.min(RETRY.max));
                let delay = job.backoff.fail(RETRY, jitter(), asked);
                self.put_off(key, job, now + delay);
            }
        }
    }

    fn put_off(&mut self, key: &ObjectKey, job: Job, due: Instant) {
        self.queue.insert((due, key.clone()));
        self.jobs.insert(key.clone(), Job { due, flying: false, ..job });
    }
}
