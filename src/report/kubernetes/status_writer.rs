//! Writes the current statuses to objects in the API server.

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

use super::request::{FIELD_MANAGER, REQUEST_TIMEOUT};
use super::status_diff::{StatusFields, removed_status, same_owned_fields, status_to_write, write_delay};
use super::write_conflicts::WriteConflicts;
use crate::net::api_server::{describe_error, retry_after};
use crate::net::{Backoff, Delays, jitter};
use crate::report::{StatusObject, StatusSnapshot};
use crate::resource::{
    API_VERSION, McpServer, McpServerSpec, McpServerStatus, ObjectKey, Skill, SkillSpec, SkillStatus,
};
use crate::source::{StoredStatus, StoredStatuses};

/// The maximum number of concurrent writes.
const MAX_CONCURRENT_WRITES: usize = 8;
/// The minimum time between two writes of one object.
const OBJECT_WRITE_INTERVAL: Duration = Duration::from_millis(300);
/// The delays before a failed write is retried.
const RETRY_DELAYS: Delays = Delays { initial: Duration::from_secs(1), max: Duration::from_mins(1) };

type DesiredStatuses<S, T> = OrdMap<ObjectKey, Arc<StatusObject<S, T>>>;
type StoredStatusMap<T> = OrdMap<ObjectKey, Arc<StoredStatus<T>>>;

/// Writes the statuses of one kind.
pub(super) struct StatusWriter<S, T> {
    client: Client,
    resource: ApiResource,
    desired_of: fn(&StatusSnapshot) -> &DesiredStatuses<S, T>,
    stored_of: fn(&StoredStatuses) -> &StoredStatusMap<T>,
    desired: DesiredStatuses<S, T>,
    stored: StoredStatusMap<T>,
    /// The last write of each object, until a newer version is stored.
    last_writes: HashMap<ObjectKey, CompletedWrite<T>>,
    conflicts: WriteConflicts,
    /// The objects to write, by due time.
    queue: BTreeSet<(Instant, ObjectKey)>,
    jobs: HashMap<ObjectKey, WriteJob>,
    writes_in_flight: JoinSet<(ObjectKey, T, Result<DynamicObject, WriteError>)>,
}

/// A write that is queued or in flight.
#[derive(Clone, Copy)]
struct WriteJob {
    due: Instant,
    in_flight: bool,
    backoff: Backoff,
}

/// A completed write.
struct CompletedWrite<T> {
    requested: T,
    returned: StoredStatus<T>,
    at: Instant,
}

/// A write that is needed.
struct PendingWrite<T> {
    status: T,
    /// The time for which it may be delayed to include further changes.
    delay: Duration,
    /// The resource version of the object that it applies to.
    resource_version: u64,
}

#[derive(Debug, thiserror::Error)]
enum WriteError {
    #[error("{}", describe_error(.0))]
    Request(#[from] kube::Error),
    #[error("no response within {} s", REQUEST_TIMEOUT.as_secs())]
    Timeout,
}

/// Creates the writer for statuses of servers.
pub(super) fn server_writer(client: &Client) -> StatusWriter<McpServerSpec, McpServerStatus> {
    StatusWriter::new(
        client,
        ApiResource::erase::<McpServer>(&()),
        |store| &store.servers,
        |shown| &shown.servers,
    )
}

/// Creates the writer for statuses of skills.
pub(super) fn skill_writer(client: &Client) -> StatusWriter<SkillSpec, SkillStatus> {
    StatusWriter::new(client, ApiResource::erase::<Skill>(&()), |store| &store.skills, |shown| &shown.skills)
}

impl<S, T: StatusFields + Serialize + DeserializeOwned + Send + 'static> StatusWriter<S, T> {
    fn new(
        client: &Client,
        resource: ApiResource,
        wanted_of: fn(&StatusSnapshot) -> &DesiredStatuses<S, T>,
        shown_of: fn(&StoredStatuses) -> &StoredStatusMap<T>,
    ) -> Self {
        Self {
            client: client.clone(),
            resource,
            desired_of: wanted_of,
            stored_of: shown_of,
            desired: OrdMap::new(),
            stored: OrdMap::new(),
            last_writes: HashMap::new(),
            conflicts: WriteConflicts::default(),
            queue: BTreeSet::new(),
            jobs: HashMap::new(),
            writes_in_flight: JoinSet::new(),
        }
    }

    /// Runs until the inputs are closed. A replica that is not the leader keeps the queue and writes nothing.
    pub async fn run(
        mut self,
        mut store: watch::Receiver<StatusSnapshot>,
        mut shown: watch::Receiver<StoredStatuses>,
        mut leading: watch::Receiver<bool>,
    ) {
        let mut led = false;
        loop {
            let now = Instant::now();
            let wanted = (self.desired_of)(&store.borrow_and_update()).clone();
            let statuses = (self.stored_of)(&shown.borrow_and_update()).clone();
            let leads = *leading.borrow_and_update();
            if leads && !led {
                // Another replica has written since.
                self.last_writes.clear();
                self.conflicts.clear();
            }
            led = leads;
            self.apply(wanted, statuses, now);
            if leads {
                self.start_writes(now);
            }
            let next = self
                .queue
                .first()
                .map(|(due, _)| *due)
                .filter(|_| leads && self.writes_in_flight.len() < MAX_CONCURRENT_WRITES);
            tokio::select! {
                changed = store.changed() => if changed.is_err() { return },
                changed = shown.changed() => if changed.is_err() { return },
                changed = leading.changed() => if changed.is_err() { return },
                Some(Ok((key, asked, outcome))) = self.writes_in_flight.join_next() => self.finish_write(&key, asked, outcome),
                () = sleep_until(next.unwrap_or(now)), if next.is_some() => {}
            }
        }
    }

    /// Applies the current and the stored statuses. The cost depends on the number of changes.
    fn apply(&mut self, wanted: DesiredStatuses<S, T>, shown: StoredStatusMap<T>, now: Instant) {
        let mut news = BTreeSet::new();
        for item in self.desired.diff(&wanted) {
            let (DiffItem::Add(key, _) | DiffItem::Update { new: (key, _), .. } | DiffItem::Remove(key, _)) =
                item;
            news.insert(key.clone());
        }
        for item in self.stored.diff(&shown) {
            let (DiffItem::Add(key, _) | DiffItem::Update { new: (key, _), .. } | DiffItem::Remove(key, _)) =
                item;
            news.insert(key.clone());
        }
        self.desired = wanted;
        self.stored = shown;
        for key in news {
            if !self.jobs.get(&key).is_some_and(|job| job.in_flight) {
                self.detect_overwrite(&key, now);
            }
            self.schedule(&key, now);
        }
    }

    /// Detects that another writer has overwritten our last write.
    fn detect_overwrite(&mut self, key: &ObjectKey, now: Instant) {
        let (Some(shown), Some(CompletedWrite { returned: gave, .. })) =
            (self.stored.get(key), self.last_writes.get(key))
        else {
            return;
        };
        let newer = shown.uid == gave.uid && shown.resource_version > gave.resource_version;
        if newer
            && !same_owned_fields(shown.status.as_ref(), gave.status.as_ref())
            && self.conflicts.record_overwrite(key, shown.resource_version, now)
        {
            tracing::warn!(
                resource = %format!("{}/{key}", self.resource.kind),
                "another client keeps overwriting this status, possibly a second evenkeel installation with its own \
                Lease; let only one installation serve this namespace; until then overwritten statuses are written less \
                often"
            );
        }
    }

    /// Returns the stored status of an object, or the result of our own last write if that is newer than the watch. `None`
    /// until the watch has delivered the object.
    fn current_stored(&self, key: &ObjectKey, uid: &str) -> Option<&StoredStatus<T>> {
        let shown = self.stored.get(key).filter(|shown| *shown.uid == *uid)?;
        let written = self.last_writes.get(key).map(|written| &written.returned);
        let newer =
            |gave: &&StoredStatus<T>| *gave.uid == *uid && shown.resource_version <= gave.resource_version;
        Some(written.filter(newer).unwrap_or(shown))
    }

    /// Returns the uid of an object and the status that it should have. An object that is being deleted is no longer
    /// declared and gets a final status.
    fn desired_status(&self, key: &ObjectKey) -> Option<(Arc<str>, T)> {
        let leaving =
            self.stored.get(key).and_then(|shown| Some((shown.uid.clone(), shown.terminating_generation?)));
        if let Some((uid, generation)) = leaving {
            return Some((uid, removed_status(generation, Timestamp::now())));
        }
        self.desired.get(key).map(|object| (object.declared.meta.uid.clone(), object.status.clone()))
    }

    /// Returns the write that an object needs, if any.
    fn pending_write(&self, key: &ObjectKey) -> Option<PendingWrite<T>> {
        let (uid, wanted) = self.desired_status(key)?;
        let believed = self.current_stored(key, &uid)?;
        let wait = write_delay(&wanted, believed.status.as_ref());
        let status = status_to_write(wanted, believed.status.as_ref())?;
        // The API server has changed this status on write, and would do so again.
        let asked_before = self.last_writes.get(key).is_some_and(|written| {
            written.requested == status
                && written.returned.uid == believed.uid
                && written.returned.status == believed.status
        });
        (!asked_before).then_some(PendingWrite {
            status,
            delay: wait,
            resource_version: believed.resource_version,
        })
    }

    fn schedule(&mut self, key: &ObjectKey, now: Instant) {
        if self.jobs.get(key).is_some_and(|job| job.in_flight) {
            return;
        }
        let Some(PendingWrite { delay: wait, .. }) = self.pending_write(key) else {
            if let Some(job) = self.jobs.remove(key) {
                self.queue.remove(&(job.due, key.clone()));
            }
            if self.desired_status(key).is_none() {
                self.last_writes.remove(key);
                self.conflicts.remove(key);
            }
            return;
        };
        let pause = self.conflicts.write_delay(key, now).max(OBJECT_WRITE_INTERVAL);
        let last = self.last_writes.get(key).map_or(now, |written| written.at + pause);
        let due = (now + wait).max(last);
        match self.jobs.get_mut(key) {
            // After a failure the backoff decides, otherwise the earliest due time.
            Some(job) if job.backoff.failures() > 0 || job.due <= due => {}
            Some(job) => {
                self.queue.remove(&(job.due, key.clone()));
                job.due = due;
                self.queue.insert((due, key.clone()));
            }
            None => {
                self.jobs
                    .insert(key.clone(), WriteJob { due, in_flight: false, backoff: Backoff::default() });
                self.queue.insert((due, key.clone()));
            }
        }
    }

    fn start_writes(&mut self, now: Instant) {
        while self.writes_in_flight.len() < MAX_CONCURRENT_WRITES
            && let Some((due, key)) = self.queue.first().cloned()
            && due <= now
        {
            self.queue.pop_first();
            let Some(PendingWrite { status, resource_version: version, .. }) = self.pending_write(&key)
            else {
                self.jobs.remove(&key);
                continue;
            };
            if let Some(job) = self.jobs.get_mut(&key) {
                job.in_flight = true;
            }
            // A dynamic object, because a spec that does not decode must not hide that the status was written.
            let api: Api<DynamicObject> =
                Api::namespaced_with(self.client.clone(), &key.namespace, &self.resource);
            let body = json!({
                "apiVersion": API_VERSION,
                "kind": self.resource.kind,
                // The status need not apply to another object of the same name or to a newer generation.
                "metadata": { "name": &*key.name, "namespace": &*key.namespace, "resourceVersion": version.to_string() },
                "status": &status,
            });
            self.writes_in_flight.spawn(async move {
                let params = PatchParams::apply(FIELD_MANAGER).force();
                let patch = Patch::Apply(body);
                let outcome =
                    match timeout(REQUEST_TIMEOUT, api.patch_status(&key.name, &params, &patch)).await {
                        Ok(answer) => answer.map_err(WriteError::from),
                        Err(_) => Err(WriteError::Timeout),
                    };
                (key, status, outcome)
            });
        }
    }

    fn finish_write(&mut self, key: &ObjectKey, asked: T, outcome: Result<DynamicObject, WriteError>) {
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
                    terminating_generation: None,
                };
                let resource = format!("{}/{key}", self.resource.kind);
                if job.backoff.failures() == 0 {
                    tracing::debug!(%resource, "status written");
                } else {
                    tracing::info!(%resource, "the status can be written again");
                }
                self.last_writes
                    .insert(key.clone(), CompletedWrite { requested: asked, returned: gave, at: now });
                self.schedule(key, now);
            }
            // The object was deleted: the watch will deliver that.
            Err(WriteError::Request(kube::Error::Api(status))) if status.is_not_found() => {}
            // The object has changed: the watch will deliver that, or already has.
            Err(WriteError::Request(kube::Error::Api(status))) if status.is_conflict() => {
                self.detect_overwrite(key, now);
                self.reschedule(
                    key,
                    job,
                    now + self.conflicts.write_delay(key, now).max(OBJECT_WRITE_INTERVAL),
                );
            }
            Err(error) => {
                if !matches!(error, WriteError::Request(kube::Error::Api(_))) {
                    // The write may have succeeded: then the next stored status is our own.
                    self.last_writes.remove(key);
                }
                if job.backoff.failures() == 0 {
                    tracing::warn!(
                        resource = %format!("{}/{key}", self.resource.kind),
                        "the status cannot be written: {error}; retrying"
                    );
                }
                let asked = match &error {
                    WriteError::Request(kube::Error::Api(status)) => retry_after(status),
                    _ => None,
                };
                let asked = asked.map(|asked| asked.min(RETRY_DELAYS.max));
                let delay = job.backoff.record_failure(RETRY_DELAYS, jitter(), asked);
                self.reschedule(key, job, now + delay);
            }
        }
    }

    fn reschedule(&mut self, key: &ObjectKey, job: WriteJob, due: Instant) {
        self.queue.insert((due, key.clone()));
        self.jobs.insert(key.clone(), WriteJob { due, in_flight: false, ..job });
    }
}
