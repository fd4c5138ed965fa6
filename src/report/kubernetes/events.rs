//! Writes the events of the store: each is created once, and counts on.

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

/// The time between two events, so that a flood of them leaves room for statuses.
const WRITE_INTERVAL: Duration = Duration::from_millis(20);
/// The same between two about one object.
const OBJECT_WRITE_INTERVAL: Duration = Duration::from_millis(300);
/// The time before an event that was written says how often it has happened since.
const SERIES_UPDATE_INTERVAL: Duration = Duration::from_secs(10);
/// The delays before events are written again after one could not be.
const RETRY_DELAYS: Delays = Delays { initial: Duration::from_secs(1), max: Duration::from_mins(1) };

type EventMap = OrdMap<ObjectKey, Arc<Event>>;

/// Runs for good. What happens while another replica leads is its own to tell; what happened before it was known whether
/// one does waits until then.
pub(super) async fn write_events(
    client: Client,
    instance: Arc<str>,
    mut store: watch::Receiver<StatusSnapshot>,
    mut leading: watch::Receiver<bool>,
) {
    let mut seen = EventMap::new();
    let mut queue = EventQueue::default();
    let mut warned = HashSet::new();
    let mut decided = false;
    let mut backoff = Backoff::default();
    loop {
        decided |= leading.has_changed().unwrap_or(true);
        let now = store.borrow_and_update().events.clone();
        let leads = *leading.borrow_and_update();
        for item in seen.diff(&now) {
            match item {
                DiffItem::Add(_, event) | DiffItem::Update { new: (_, event), .. } => {
                    if leads && event.latest.regarding.kind.is_namespaced() {
                        queue.push(event, Instant::now());
                    }
                }
                DiffItem::Remove(key, _) => queue.remove(key),
            }
        }
        if decided {
            seen = now;
        }
        if !leads {
            queue.clear();
        }
        let Some((event, created)) = queue.pop(Instant::now()) else {
            let next = queue.next_due();
            tokio::select! {
                changed = store.changed() => if changed.is_err() { return },
                changed = leading.changed() => if changed.is_err() { return },
                () = sleep_until(next.unwrap_or_else(Instant::now)), if next.is_some() => {}
            }
            continue;
        };
        match timeout(REQUEST_TIMEOUT, write_event(&client, &instance, &event, created)).await {
            Ok(Ok(())) => {
                backoff.reset();
                queue.record_written(&event, Instant::now());
                sleep(WRITE_INTERVAL).await;
            }
            // Somebody deleted it, or the API server did, which keeps events for an hour.
            Ok(Err(kube::Error::Api(status))) if created && status.code == 404 => {
                queue.remove(&event.key);
                queue.push(&event, Instant::now());
            }
            // The namespace is going away, or the event is not accepted: it would not be the next time.
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

/// Says why an event is not written: what a person could mend, the first time of each code.
fn log_rejected_event(event: &ObjectKey, status: &Status, warned: &mut HashSet<u16>) {
    let message = &status.message;
    if matches!(status.code, 400 | 403 | 422) && warned.insert(status.code) {
        tracing::warn!(
            %event,
            "the API server does not take an event: {message}; statuses and this log tell the same, and further \
             refusals of this kind are not told"
        );
    } else {
        tracing::debug!(%event, "not written: {message}");
    }
}

/// The events that are to be written, by when they are due.
#[derive(Default)]
struct EventQueue {
    pending: HashMap<ObjectKey, Arc<Event>>,
    by_due_time: BTreeSet<(Instant, ObjectKey)>,
    /// When each that is there was written last.
    written_at: HashMap<ObjectKey, Instant>,
    /// When the next about an object may be written, by its uid.
    next_allowed_at: HashMap<Arc<str>, Instant>,
}

impl EventQueue {
    /// Takes up the newest form of an event. One that waits already is written when it was due.
    fn push(&mut self, event: &Arc<Event>, now: Instant) {
        if self.pending.insert(event.key.clone(), event.clone()).is_some() {
            return;
        }
        let due =
            self.written_at.get(&event.key).map_or(now, |written| now.max(*written + SERIES_UPDATE_INTERVAL));
        self.by_due_time.insert((due, event.key.clone()));
    }

    /// An event that is due, and whether it was created before.
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

    /// When the next is due.
    fn next_due(&self) -> Option<Instant> {
        self.by_due_time.first().map(|(due, _)| *due)
    }

    fn record_written(&mut self, event: &Event, now: Instant) {
        self.written_at.insert(event.key.clone(), now);
        self.next_allowed_at.insert(event.latest.regarding.uid.clone(), now + OBJECT_WRITE_INTERVAL);
    }

    /// The event is there no longer.
    fn remove(&mut self, key: &ObjectKey) {
        self.pending.remove(key);
        self.written_at.remove(key);
    }

    /// Another replica tells what happens.
    fn clear(&mut self) {
        self.pending.clear();
        self.by_due_time.clear();
    }
}

async fn write_event(client: &Client, instance: &str, event: &Event, created: bool) -> kube::Result<()> {
    let api: Api<api::Event> = Api::namespaced(client.clone(), &event.key.namespace);
    let mut manifest = event.manifest(instance);
    if created {
        let series = json!({ "series": manifest.series });
        let patch = Patch::Merge(series);
        api.patch(&event.key.name, &PatchParams::default(), &patch).await?;
    } else {
        // The API server gives these.
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

    /// Writes everything that is due: `NAME xCOUNT` of each event, with a `+` if it is created.
    fn write_due(queue: &mut EventQueue, now: Instant) -> Vec<String> {
        std::iter::from_fn(|| {
            let (event, created) = queue.pop(now)?;
            queue.record_written(&event, now);
            let sign = if created { "" } else { "+" };
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

        // Deleted at the API server, and then in the store.
        queue.remove(&ObjectKey::new("n", "a1"));
        queue.push(&event("a1", "a", 101), at(20_000));
        assert_eq!(write_due(&mut queue, at(20_000)), ["+a1 x101"]);
        queue.push(&event("a1", "a", 102), at(30_000));
        queue.remove(&ObjectKey::new("n", "a1"));
        assert!(write_due(&mut queue, at(40_000)).is_empty() && queue.written_at.len() == 2);
    }
}
