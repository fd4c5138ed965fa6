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
use crate::net::{Backoff, Delays, catch_panic, jitter};
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
    #[error("the write panicked: {0}")]
    Panic(String),
}

/// Creates the writer for statuses of servers.
pub(super) fn server_writer(client: &Client) -> StatusWriter<McpServerSpec, McpServerStatus> {
    StatusWriter::new(
        client,
        ApiResource::erase::<McpServer>(&()),
        |snapshot| &snapshot.servers,
        |stored| &stored.servers,
    )
}

/// Creates the writer for statuses of skills.
pub(super) fn skill_writer(client: &Client) -> StatusWriter<SkillSpec, SkillStatus> {
    StatusWriter::new(
        client,
        ApiResource::erase::<Skill>(&()),
        |snapshot| &snapshot.skills,
        |stored| &stored.skills,
    )
}

impl<S, T: StatusFields + Serialize + DeserializeOwned + Send + 'static> StatusWriter<S, T> {
    fn new(
        client: &Client,
        resource: ApiResource,
        desired_of: fn(&StatusSnapshot) -> &DesiredStatuses<S, T>,
        stored_of: fn(&StoredStatuses) -> &StoredStatusMap<T>,
    ) -> Self {
        Self {
            client: client.clone(),
            resource,
            desired_of,
            stored_of,
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
        mut snapshots: watch::Receiver<StatusSnapshot>,
        mut stored_statuses: watch::Receiver<StoredStatuses>,
        mut leading: watch::Receiver<bool>,
    ) {
        let mut was_leader = false;
        loop {
            let now = Instant::now();
            let desired = (self.desired_of)(&snapshots.borrow_and_update()).clone();
            let stored = (self.stored_of)(&stored_statuses.borrow_and_update()).clone();
            let is_leader = *leading.borrow_and_update();
            if is_leader && !was_leader {
                // Another replica has written since.
                self.last_writes.clear();
                self.conflicts.clear();
            }
            was_leader = is_leader;
            self.apply(desired, stored, now);
            if is_leader {
                self.start_writes(now);
            }
            let next = self
                .queue
                .first()
                .map(|(due, _)| *due)
                .filter(|_| is_leader && self.writes_in_flight.len() < MAX_CONCURRENT_WRITES);
            tokio::select! {
                changed = snapshots.changed() => if changed.is_err() { return },
                changed = stored_statuses.changed() => if changed.is_err() { return },
                changed = leading.changed() => if changed.is_err() { return },
                Some(Ok((key, requested, outcome))) = self.writes_in_flight.join_next() => {
                    self.finish_write(&key, requested, outcome);
                }
                () = sleep_until(next.unwrap_or(now)), if next.is_some() => {}
            }
        }
    }

    /// Applies the current and the stored statuses. The cost depends on the number of changes.
    fn apply(&mut self, desired: DesiredStatuses<S, T>, stored: StoredStatusMap<T>, now: Instant) {
        let mut changed = BTreeSet::new();
        for item in self.desired.diff(&desired) {
            let (DiffItem::Add(key, _) | DiffItem::Update { new: (key, _), .. } | DiffItem::Remove(key, _)) =
                item;
            changed.insert(key.clone());
        }
        for item in self.stored.diff(&stored) {
            let (DiffItem::Add(key, _) | DiffItem::Update { new: (key, _), .. } | DiffItem::Remove(key, _)) =
                item;
            changed.insert(key.clone());
        }
        self.desired = desired;
        self.stored = stored;
        for key in changed {
            if !self.jobs.get(&key).is_some_and(|job| job.in_flight) {
                self.detect_overwrite(&key, now);
            }
            self.schedule(&key, now);
        }
    }

    /// Detects that another writer has overwritten our last write.
    fn detect_overwrite(&mut self, key: &ObjectKey, now: Instant) {
        let (Some(stored), Some(CompletedWrite { returned, .. })) =
            (self.stored.get(key), self.last_writes.get(key))
        else {
            return;
        };
        let is_newer = stored.uid == returned.uid && stored.resource_version > returned.resource_version;
        if is_newer
            && !same_owned_fields(stored.status.as_ref(), returned.status.as_ref())
            && self.conflicts.record_overwrite(key, stored.resource_version, now)
        {
            tracing::warn!(
                resource = %format!("{}/{key}", self.resource.kind),
                "another client keeps overwriting this status, possibly a second evenkeel installation with its own \
                 Lease; let only one installation serve this namespace; until then overwritten statuses are written \
                 less often"
            );
        }
    }

    /// Returns the stored status of an object, or the result of our own last write if that is newer than the watch.
    /// `None` until the watch has delivered the object.
    fn current_stored(&self, key: &ObjectKey, uid: &str) -> Option<&StoredStatus<T>> {
        let stored = self.stored.get(key).filter(|stored| *stored.uid == *uid)?;
        let last_write = self.last_writes.get(key).map(|last_write| &last_write.returned);
        let is_newer = |returned: &&StoredStatus<T>| {
            *returned.uid == *uid && stored.resource_version <= returned.resource_version
        };
        Some(last_write.filter(is_newer).unwrap_or(stored))
    }

    /// Returns the uid of an object and the status that it should have. An object that is being deleted is no longer
    /// declared and gets a final status.
    fn desired_status(&self, key: &ObjectKey) -> Option<(Arc<str>, T)> {
        let terminating = self
            .stored
            .get(key)
            .and_then(|stored| Some((stored.uid.clone(), stored.terminating_generation?)));
        if let Some((uid, generation)) = terminating {
            return Some((uid, removed_status(generation, Timestamp::now())));
        }
        self.desired.get(key).map(|object| (object.declared.meta.uid.clone(), object.status.clone()))
    }

    /// Returns the write that an object needs, if any.
    fn pending_write(&self, key: &ObjectKey) -> Option<PendingWrite<T>> {
        let (uid, desired) = self.desired_status(key)?;
        let stored = self.current_stored(key, &uid)?;
        let delay = write_delay(&desired, stored.status.as_ref());
        let status = status_to_write(desired, stored.status.as_ref())?;
        // The API server has changed this status on write, and would do so again.
        let already_requested = self.last_writes.get(key).is_some_and(|last_write| {
            last_write.requested == status
                && last_write.returned.uid == stored.uid
                && last_write.returned.status == stored.status
        });
        (!already_requested).then_some(PendingWrite {
            status,
            delay,
            resource_version: stored.resource_version,
        })
    }

    fn schedule(&mut self, key: &ObjectKey, now: Instant) {
        if self.jobs.get(key).is_some_and(|job| job.in_flight) {
            return;
        }
        let Some(PendingWrite { delay, .. }) = self.pending_write(key) else {
            if let Some(job) = self.jobs.remove(key) {
                self.queue.remove(&(job.due, key.clone()));
            }
            if self.desired_status(key).is_none() {
                self.last_writes.remove(key);
                self.conflicts.remove(key);
            }
            return;
        };
        let interval = self.conflicts.write_delay(key, now).max(OBJECT_WRITE_INTERVAL);
        let earliest = self.last_writes.get(key).map_or(now, |last_write| last_write.at + interval);
        let due = (now + delay).max(earliest);
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
            let Some(PendingWrite { status, resource_version, .. }) = self.pending_write(&key) else {
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
                "metadata": {
                    "name": &*key.name, "namespace": &*key.namespace,
                    "resourceVersion": resource_version.to_string(),
                },
                "status": &status,
            });
            self.writes_in_flight.spawn(async move {
                let params = PatchParams::apply(FIELD_MANAGER).force();
                let patch = Patch::Apply(body);
                let write = timeout(REQUEST_TIMEOUT, api.patch_status(&key.name, &params, &patch));
                // A panic must not leave the object in flight for ever.
                let outcome = match catch_panic(write).await {
                    Ok(Ok(response)) => response.map_err(WriteError::from),
                    Ok(Err(_)) => Err(WriteError::Timeout),
                    Err(panic) => Err(WriteError::Panic(panic)),
                };
                (key, status, outcome)
            });
        }
    }

    fn finish_write(&mut self, key: &ObjectKey, requested: T, outcome: Result<DynamicObject, WriteError>) {
        let now = Instant::now();
        let Some(mut job) = self.jobs.remove(key) else { return };
        match outcome {
            Ok(DynamicObject { metadata, mut data, .. }) => {
                let resource_version = metadata.resource_version.and_then(|text| text.parse().ok());
                let status = data.get_mut("status").map(Value::take).unwrap_or_default();
                let returned = StoredStatus {
                    uid: metadata.uid.unwrap_or_default().into(),
                    resource_version: resource_version.unwrap_or_default(),
                    status: serde_json::from_value(status).ok(),
                    terminating_generation: None,
                };
                let resource = format!("{}/{key}", self.resource.kind);
                if job.backoff.failures() == 0 {
                    tracing::debug!(%resource, "status written");
                } else {
                    tracing::info!(%resource, "the status can be written again");
                }
                self.last_writes.insert(key.clone(), CompletedWrite { requested, returned, at: now });
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
                let requested_delay = match &error {
                    WriteError::Request(kube::Error::Api(status)) => retry_after(status),
                    _ => None,
                };
                let requested_delay = requested_delay.map(|delay| delay.min(RETRY_DELAYS.max));
                let delay = job.backoff.record_failure(RETRY_DELAYS, jitter(), requested_delay);
                self.reschedule(key, job, now + delay);
            }
        }
    }

    fn reschedule(&mut self, key: &ObjectKey, job: WriteJob, due: Instant) {
        self.queue.insert((due, key.clone()));
        self.jobs.insert(key.clone(), WriteJob { due, in_flight: false, ..job });
    }
}
