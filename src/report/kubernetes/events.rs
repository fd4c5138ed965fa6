//! Writes the events of the snapshot: each is created once, and its series is updated.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use imbl::OrdMap;
use imbl::ordmap::DiffItem;
use k8s_openapi::api::events::v1 as api;
use kube::api::{Patch, PatchParams, PostParams};
use kube::core::Status;
use kube::{Api, Client};
use serde_json::json;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, sleep_until, timeout};

use super::request::{FIELD_MANAGER, REQUEST_TIMEOUT};
use crate::net::{Backoff, Delays, jitter};
use crate::report::{Event, StatusSnapshot};
use crate::resource::ObjectKey;

/// The minimum time between two event writes, so that a flood of events leaves capacity for statuses.
const WRITE_INTERVAL: Duration = Duration::from_millis(20);
/// The minimum time between two event writes about one object.
const OBJECT_WRITE_INTERVAL: Duration = Duration::from_millis(300);
/// The minimum time before the series of a written event is updated.
const SERIES_UPDATE_INTERVAL: Duration = Duration::from_secs(10);
/// The delays before the next write after a failed one.
const RETRY_DELAYS: Delays = Delays { initial: Duration::from_secs(1), max: Duration::from_mins(1) };

type EventMap = OrdMap<ObjectKey, Arc<Event>>;

/// Runs until the inputs are closed. Events that happen while another replica leads are written by that replica. Events
/// from before the first decision about leadership are kept until then.
pub(super) async fn write_events(
    client: Client,
    instance: Arc<str>,
    mut snapshots: watch::Receiver<StatusSnapshot>,
    mut leading: watch::Receiver<bool>,
) {
    let mut handled = EventMap::new();
    let mut queue = EventQueue::default();
    let mut warned = HashSet::new();
    let mut is_decided = false;
    let mut backoff = Backoff::default();
    loop {
        is_decided |= leading.has_changed().unwrap_or(true);
        let current = snapshots.borrow_and_update().events.clone();
        let is_leader = *leading.borrow_and_update();
        for item in handled.diff(&current) {
            match item {
                DiffItem::Add(_, event) | DiffItem::Update { new: (_, event), .. } => {
                    if is_leader && event.latest.regarding.kind.is_namespaced() {
                        queue.push(event, Instant::now());
                    }
                }
                DiffItem::Remove(key, _) => queue.remove(key),
            }
        }
        if is_decided {
            handled = current;
        }
        if !is_leader {
            queue.clear();
        }
        let Some((event, exists)) = queue.pop(Instant::now()) else {
            let next = queue.next_due();
            tokio::select! {
                changed = snapshots.changed() => if changed.is_err() { return },
                changed = leading.changed() => if changed.is_err() { return },
                () = sleep_until(next.unwrap_or_else(Instant::now)), if next.is_some() => {}
            }
            continue;
        };
        match timeout(REQUEST_TIMEOUT, write_event(&client, &instance, &event, exists)).await {
            Ok(Ok(())) => {
                backoff.reset();
                queue.record_written(&event, Instant::now());
                sleep(WRITE_INTERVAL).await;
            }
            // It was deleted, possibly by the API server, which keeps events for an hour.
            Ok(Err(kube::Error::Api(status))) if exists && status.code == 404 => {
                queue.remove(&event.key);
                queue.push(&event, Instant::now());
            }
            // The namespace is being deleted, or the event is invalid or forbidden: a retry would fail too.
            Ok(Err(kube::Error::Api(status))) if matches!(status.code, 400 | 403 | 404 | 409 | 422) => {
                log_rejected_event(&event.key, &status, &mut warned);
            }
            _ => {
                queue.push(&event, Instant::now());
                sleep(backoff.record_failure(RETRY_DELAYS, jitter(), None)).await;
            }
        }
    }
}

/// Logs why an event was rejected: as a warning if an operator can fix it, the first time for each status code.
fn log_rejected_event(event: &ObjectKey, status: &Status, warned: &mut HashSet<u16>) {
    let message = &status.message;
    if matches!(status.code, 400 | 403 | 422) && warned.insert(status.code) {
        tracing::warn!(
            %event,
            "the API server rejected an event: {message}; statuses and this log contain the same information; further \
             rejections with this status code are not logged as warnings"
        );
    } else {
        tracing::debug!(%event, "event not written: {message}");
    }
}

/// The events that are to be written, by due time.
#[derive(Default)]
struct EventQueue {
    pending: HashMap<ObjectKey, Arc<Event>>,
    by_due_time: BTreeSet<(Instant, ObjectKey)>,
    /// The time of the last write of each existing event.
    written_at: HashMap<ObjectKey, Instant>,
    /// The earliest time of the next write about an object, by its uid.
    next_allowed_at: HashMap<Arc<str>, Instant>,
}

impl EventQueue {
    /// Queues the latest state of an event. If the event is already queued, its due time is kept.
    fn push(&mut self, event: &Arc<Event>, now: Instant) {
        if self.pending.insert(event.key.clone(), event.clone()).is_some() {
            return;
        }
        let due =
            self.written_at.get(&event.key).map_or(now, |written| now.max(*written + SERIES_UPDATE_INTERVAL));
        self.by_due_time.insert((due, event.key.clone()));
    }

    /// Returns an event that is due, and true if it already exists in the API server.
    fn pop(&mut self, now: Instant) -> Option<(Arc<Event>, bool)> {
        self.next_allowed_at.retain(|_, next| *next > now);
        while self.next_due().is_some_and(|due| due <= now) {
            let (_, key) = self.by_due_time.pop_first()?;
            let Some(event) = self.pending.get(&key) else { continue };
            if let Some(next) = self.next_allowed_at.get(&event.latest.regarding.uid) {
                self.by_due_time.insert((*next, key));
                continue;
            }
            let event = self.pending.remove(&key)?;
            return Some((event, self.written_at.contains_key(&key)));
        }
        None
    }

    /// Returns the earliest due time.
    fn next_due(&self) -> Option<Instant> {
        self.by_due_time.first().map(|(due, _)| *due)
    }

    fn record_written(&mut self, event: &Event, now: Instant) {
        self.written_at.insert(event.key.clone(), now);
        self.next_allowed_at.insert(event.latest.regarding.uid.clone(), now + OBJECT_WRITE_INTERVAL);
    }

    /// Removes an event that no longer exists.
    fn remove(&mut self, key: &ObjectKey) {
        self.pending.remove(key);
        self.written_at.remove(key);
    }

    /// Removes all queued events, because another replica writes them.
    fn clear(&mut self) {
        self.pending.clear();
        self.by_due_time.clear();
    }
}

async fn write_event(client: &Client, instance: &str, event: &Event, exists: bool) -> kube::Result<()> {
    let api: Api<api::Event> = Api::namespaced(client.clone(), &event.key.namespace);
    let mut manifest = event.manifest(instance);
    if exists {
        let series = json!({ "series": manifest.series });
        let patch = Patch::Merge(series);
        api.patch(&event.key.name, &PatchParams::default(), &patch).await?;
    } else {
        // The API server sets these fields.
        manifest.metadata.uid = None;
        manifest.metadata.creation_timestamp = None;
        manifest.metadata.resource_version = None;
        let params = PostParams { field_manager: Some(FIELD_MANAGER.into()), ..PostParams::default() };
        api.create(&params, &manifest).await?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;

    use super::*;
    use crate::report::{EventAction, ObjectKind, Occurrence, Regarding};
    use crate::resource::Reason;

    fn event(name: &str, object: &str, count: u32) -> Arc<Event> {
        let latest = Occurrence {
            at: Timestamp::UNIX_EPOCH,
            regarding: Regarding {
                kind: ObjectKind::McpServer,
                key: ObjectKey::new("n", object),
                uid: object.into(),
                generation: 1,
            },
            action: EventAction::Reconcile,
            warning: false,
            reason: Reason::Attached,
            note: String::new(),
            fixed_note: None,
            revision: "r".into(),
            commit: None,
            previous_digest: None,
            digest: None,
        };
        Arc::new(Event {
            key: ObjectKey::new("n", name),
            latest: Arc::new(latest),
            first_at: Timestamp::UNIX_EPOCH,
            count,
            resource_version: 1,
        })
    }

    /// Writes all events that are due: `NAME xCOUNT` of each, with a `+` if it is created.
    fn write_due(queue: &mut EventQueue, now: Instant) -> Vec<String> {
        std::iter::from_fn(|| {
            let (event, exists) = queue.pop(now)?;
            queue.record_written(&event, now);
            let sign = if exists { "" } else { "+" };
            Some(format!("{sign}{} x{}", event.key.name, event.count))
        })
        .collect()
    }

    #[test]
    fn event_is_created_at_once_and_its_series_updated_rarely() {
        let start = Instant::now();
        let at = |millis| start + Duration::from_millis(millis);
        let mut queue = EventQueue::default();
        queue.push(&event("a1", "a", 1), at(0));
        queue.push(&event("a2", "a", 1), at(0));
        queue.push(&event("b1", "b", 1), at(0));
        assert_eq!(write_due(&mut queue, at(0)), ["+a1 x1", "+b1 x1"]);
        assert_eq!(queue.next_due(), Some(at(300)));
        assert_eq!(write_due(&mut queue, at(300)), ["+a2 x1"]);
        for count in 2..=100 {
            queue.push(&event("a1", "a", count), at(300 + u64::from(count)));
        }
        assert!(write_due(&mut queue, at(9_999)).is_empty());
        assert_eq!(write_due(&mut queue, at(10_000)), ["a1 x100"]);
        assert_eq!(queue.next_due(), None);

        // Deleted in the API server, and then in the snapshot.
        queue.remove(&ObjectKey::new("n", "a1"));
        queue.push(&event("a1", "a", 101), at(20_000));
        assert_eq!(write_due(&mut queue, at(20_000)), ["+a1 x101"]);
        queue.push(&event("a1", "a", 102), at(30_000));
        queue.remove(&ObjectKey::new("n", "a1"));
        assert!(write_due(&mut queue, at(40_000)).is_empty() && queue.written_at.len() == 2);
    }
}
