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

use super::request::{MANAGER, REQUEST};
use crate::net::{Backoff, Delays, jitter};
use crate::report::{Event, StatusSnapshot};
use crate::resource::ObjectKey;

/// The time between two events, so that a flood of them leaves room for statuses.
const PAUSE: Duration = Duration::from_millis(20);
/// The same between two about one object.
const PAUSE_OF_ONE: Duration = Duration::from_millis(300);
/// The time before an event that was written says how often it has happened since.
const AGAIN: Duration = Duration::from_secs(10);
/// The delays before events are written again after one could not be.
const RETRY: Delays = Delays { initial: Duration::from_secs(1), max: Duration::from_mins(1) };

type Events = OrdMap<ObjectKey, Arc<Event>>;

/// Runs for good. What happens while another replica leads is its own to tell; what happened before it was known whether
/// one does waits until then.
pub(super) async fn tell(
    client: Client,
    instance: Arc<str>,
    mut store: watch::Receiver<StatusSnapshot>,
    mut leading: watch::Receiver<bool>,
) {
    let mut seen = Events::new();
    let mut queue = Queue::default();
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
                    if leads && event.latest.regarding.kind.namespaced() {
                        queue.put(event, Instant::now());
                    }
                }
                DiffItem::Remove(key, _) => queue.forget(key),
            }
        }
        if decided {
            seen = now;
        }
        if !leads {
            queue.clear();
        }
        let Some((event, created)) = queue.pop(Instant::now()) else {
            let next = queue.next();
            tokio::select! {
                changed = store.changed() => if changed.is_err() { return },
                changed = leading.changed() => if changed.is_err() { return },
                () = sleep_until(next.unwrap_or_else(Instant::now)), if next.is_some() => {}
            }
            continue;
        };
        match timeout(REQUEST, write(&client, &instance, &event, created)).await {
            Ok(Ok(())) => {
                backoff.reset();
                queue.written(&event, Instant::now());
                sleep(PAUSE).await;
            }
            // Somebody deleted it, or the API server did, which keeps events for an hour.
            Ok(Err(kube::Error::Api(status))) if created && status.code == 404 => {
                queue.forget(&event.key);
                queue.put(&event, Instant::now());
            }
            // The namespace is going away, or the event is not accepted: it would not be the next time.
            Ok(Err(kube::Error::Api(status))) if matches!(status.code, 400 | 403 | 404 | 409 | 422) => {
                refused(&event.key, &status, &mut warned);
            }
            _ => {
                queue.put(&event, Instant::now());
                sleep(backoff.fail(RETRY, jitter(), None)).await;
            }
        }
    }
}

/// Says why an event is not written: what a person could mend, the first time of each code.
fn refused(event: &ObjectKey, status: &Status, warned: &mut HashSet<u16>) {
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
struct Queue {
    waiting: HashMap<ObjectKey, Arc<Event>>,
    due: BTreeSet<(Instant, ObjectKey)>,
    /// When each that is there was written last.
    written: HashMap<ObjectKey, Instant>,
    /// When the next about an object may be written, by its uid.
    paced: HashMap<Arc<str>, Instant>,
}

impl Queue {
    /// Takes up the newest form of an event. One that waits already is written when it was due.
    fn put(&mut self, event: &Arc<Event>, now: Instant) {
        if self.waiting.insert(event.key.clone(), event.clone()).is_some() {
            return;
        }
        let due = self.written.get(&event.key).map_or(now, |written| now.max(*written + AGAIN));
        self.due.insert((due, event.key.clone()));
    }

    /// An event that is due, and whether it was created before.
    fn pop(&mut self, now: Instant) -> Option<(Arc<Event>, bool)> {
        self.paced.retain(|_, next| *next > now);
        while self.next().is_some_and(|due| due <= now) {
            let (_, key) = self.due.pop_first()?;
            let Some(event) = self.waiting.get(&key) else { continue };
            if let Some(next) = self.paced.get(&event.latest.regarding.uid) {
                self.due.insert((*next, key));
                continue;
            }
            let event = self.waiting.remove(&key)?;
            return Some((event, self.written.contains_key(&key)));
        }
        None
    }

    /// When the next is due.
    fn next(&self) -> Option<Instant> {
        self.due.first().map(|(due, _)| *due)
    }

    fn written(&mut self, event: &Event, now: Instant) {
        self.written.insert(event.key.clone(), now);
        self.paced.insert(event.latest.regarding.uid.clone(), now + PAUSE_OF_ONE);
    }

    /// The event is there no longer.
    fn forget(&mut self, key: &ObjectKey) {
        self.waiting.remove(key);
        self.written.remove(key);
    }

    /// Another replica tells what happens.
    fn clear(&mut self) {
        self.waiting.clear();
        self.due.clear();
    }
}

async fn write(client: &Client, instance: &str, event: &Event, created: bool) -> kube::Result<()> {
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
        let params = PostParams { field_manager: Some(MANAGER.into()), ..PostParams::default() };
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
            steady: None,
            revision: "r".into(),
            commit: None,
            digest_before: None,
            digest: None,
        };
        Arc::new(Event {
            key: ObjectKey::new("n", name),
            latest: Arc::new(latest),
            first: Timestamp::UNIX_EPOCH,
            count,
            resource_version: 1,
        })
    }

    /// Writes everything that is due: `NAME xCOUNT` of each event, with a `+` if it is created.
    fn written(queue: &mut Queue, now: Instant) -> Vec<String> {
        std::iter::from_fn(|| {
            let (event, created) = queue.pop(now)?;
            queue.written(&event, now);
            let sign = if created { "" } else { "+" };
            Some(format!("{sign}{} x{}", event.key.name, event.count))
        })
        .collect()
    }

    #[test]
    fn an_event_is_created_at_once_and_counts_on_slowly_and_objects_take_turns() {
        let start = Instant::now();
        let at = |millis| start + Duration::from_millis(millis);
        let mut queue = Queue::default();
        queue.put(&event("a1", "a", 1), at(0));
        queue.put(&event("a2", "a", 1), at(0));
        queue.put(&event("b1", "b", 1), at(0));
        assert_eq!(written(&mut queue, at(0)), ["+a1 x1", "+b1 x1"]);
        assert_eq!(queue.next(), Some(at(300)));
        assert_eq!(written(&mut queue, at(300)), ["+a2 x1"]);
        for count in 2..=100 {
            queue.put(&event("a1", "a", count), at(300 + u64::from(count)));
        }
        assert!(written(&mut queue, at(9_999)).is_empty());
        assert_eq!(written(&mut queue, at(10_000)), ["a1 x100"]);
        assert_eq!(queue.next(), None);

        // Deleted at the API server, and then in the store.
        queue.forget(&ObjectKey::new("n", "a1"));
        queue.put(&event("a1", "a", 101), at(20_000));
        assert_eq!(written(&mut queue, at(20_000)), ["+a1 x101"]);
        queue.put(&event("a1", "a", 102), at(30_000));
        queue.forget(&ObjectKey::new("n", "a1"));
        assert!(written(&mut queue, at(40_000)).is_empty() && queue.written.len() == 2);
    }
}
