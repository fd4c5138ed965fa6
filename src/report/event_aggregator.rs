use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};

use super::{Event, Occurrence, Regarding, StatusSnapshot};
use crate::resource::{ObjectKey, Reason};

/// The time for which an event is kept after its last occurrence.
const EVENT_RETENTION: SignedDuration = SignedDuration::from_hours(1);
/// The maximum length of an object name in Kubernetes, in bytes.
const MAX_NAME_BYTES: usize = 253;
/// The maximum number of events.
const MAX_EVENTS: usize = 5_000;
/// The maximum number of events about one object, so that it does not displace events about others.
const MAX_EVENTS_PER_OBJECT: usize = 32;

/// Maintains the events of the snapshot: aggregates equal occurrences, and limits the number of events.
#[derive(Debug, Default)]
pub(super) struct EventAggregator {
    /// The event of each group.
    keys: HashMap<EventGroup, ObjectKey>,
    /// All events by the resource version of their last occurrence, oldest first.
    by_age: BTreeMap<u64, EventGroup>,
    /// The resource versions of each object's events, by uid.
    by_object: HashMap<Arc<str>, BTreeSet<u64>>,
}

/// The key by which occurrences are aggregated.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct EventGroup {
    uid: Arc<str>,
    reason: Reason,
    aggregation_key: Arc<str>,
}

impl EventAggregator {
    /// Adds an occurrence to the snapshot.
    pub fn record(&mut self, snapshot: &mut StatusSnapshot, occurrence: &Arc<Occurrence>) {
        self.expire(snapshot, occurrence.at);
        let Regarding { key, uid, .. } = &occurrence.regarding;
        let group = EventGroup {
            uid: uid.clone(),
            reason: occurrence.reason,
            aggregation_key: occurrence.aggregation_key().into(),
        };
        let previous = self.keys.get(&group).and_then(|key| snapshot.events.get(key)).cloned();
        let resource_version = snapshot.next_resource_version();
        let (event_key, first_at, count) = if let Some(previous) = previous {
            self.remove_age(previous.resource_version);
            (previous.key.clone(), previous.first_at, previous.count.saturating_add(1))
        } else {
            let name = event_name(&key.name, resource_version);
            (ObjectKey::new(occurrence.regarding.event_namespace(), name), occurrence.at, 1)
        };
        self.by_object.entry(uid.clone()).or_default().insert(resource_version);
        self.by_age.insert(resource_version, group.clone());
        self.keys.insert(group, event_key.clone());
        let event =
            Event { key: event_key.clone(), latest: occurrence.clone(), first_at, count, resource_version };
        snapshot.events.insert(event_key, Arc::new(event));

        if let Some(age) = self.excess_event(uid) {
            self.remove(snapshot, age);
        }
        if self.by_age.len() > MAX_EVENTS {
            self.remove_oldest(snapshot);
        }
    }

    /// Removes expired events.
    pub fn expire(&mut self, snapshot: &mut StatusSnapshot, now: Timestamp) {
        let is_expired = |snapshot: &StatusSnapshot, group: &EventGroup| {
            let event = self.keys.get(group).and_then(|key| snapshot.events.get(key));
            event.is_none_or(|event| now.duration_since(event.latest.at) > EVENT_RETENTION)
        };
        let ages = self.by_age.iter();
        let expired: Vec<_> =
            ages.take_while(|(_, group)| is_expired(snapshot, group)).map(|(age, _)| *age).collect();
        for age in expired {
            self.remove(snapshot, age);
        }
    }

    /// Returns the event to remove if an object has too many: the oldest of its most frequent reason.
    fn excess_event(&self, uid: &str) -> Option<u64> {
        let ages = self.by_object.get(uid).filter(|ages| ages.len() > MAX_EVENTS_PER_OBJECT)?;
        let mut reasons: HashMap<Reason, (usize, u64)> = HashMap::new();
        for (age, group) in ages.iter().filter_map(|age| Some((*age, self.by_age.get(age)?))) {
            reasons.entry(group.reason).or_insert((0, age)).0 += 1;
        }
        reasons.into_values().max_by_key(|(count, age)| (*count, Reverse(*age))).map(|(_, age)| age)
    }

    fn remove_oldest(&mut self, snapshot: &mut StatusSnapshot) {
        if let Some(oldest) = self.by_age.keys().next().copied() {
            self.remove(snapshot, oldest);
        }
    }

    fn remove(&mut self, snapshot: &mut StatusSnapshot, age: u64) {
        if let Some(key) = self.remove_age(age).and_then(|group| self.keys.remove(&group)) {
            snapshot.events.remove(&key);
            snapshot.next_resource_version();
        }
    }

    /// Removes an event from the indexes by age.
    fn remove_age(&mut self, age: u64) -> Option<EventGroup> {
        let group = self.by_age.remove(&age)?;
        if let Some(ages) = self.by_object.get_mut(&group.uid) {
            ages.remove(&age);
            if ages.is_empty() {
                self.by_object.remove(&group.uid);
            }
        }
        Some(group)
    }
}

/// Returns the name of an event: the name of its object, shortened if necessary, and a unique number.
fn event_name(object: &str, number: u64) -> String {
    let suffix = format!(".{number:x}");
    let end = object.floor_char_boundary(MAX_NAME_BYTES - suffix.len());
    let object = object.get(..end).unwrap_or_default();
    // No part of a name may end with these characters.
    format!("{}{suffix}", object.trim_end_matches(['-', '.']))
}

#[cfg(test)]
mod tests {

    use super::*;
    use crate::report::{EventAction, ObjectKind};
    use crate::resource::testing::{at, key, source_id};

    fn occurrence(name: &str, note: &str, second: i64) -> Arc<Occurrence> {
        let uid = format!("uid-{name}").into();
        Arc::new(Occurrence {
            at: at(second),
            regarding: Regarding { kind: ObjectKind::McpServer, key: key(name), uid, generation: 1 },
            action: EventAction::Reconcile,
            warning: true,
            reason: Reason::Exited,
            note: note.into(),
            fixed_note: None,
            revision: "r1".into(),
            commit: None,
            previous_digest: None,
            digest: None,
        })
    }

    fn event_lines(snapshot: &StatusSnapshot) -> Vec<String> {
        let line = |event: &Arc<Event>| {
            let Occurrence { regarding, note, at, .. } = &*event.latest;
            let (first, last) = (event.first_at.as_second(), at.as_second());
            format!("{} {note} {}x {first}-{last}", regarding.key.name, event.count)
        };
        snapshot.events.values().map(line).collect()
    }

    #[test]
    fn event_name_is_valid_in_kubernetes() {
        let cut = 253 - ".1a".len();
        for (object, expected) in [
            ("a".to_owned(), "a.1a".to_owned()),
            ("a".repeat(253), format!("{}.1a", "a".repeat(cut))),
            (format!("{}-.{}", "a".repeat(cut - 2), "b".repeat(3)), format!("{}.1a", "a".repeat(cut - 2))),
        ] {
            let name = event_name(&object, 26);
            assert!(crate::resource::is_object_name(&name), "{name}");
            assert_eq!(name, expected);
        }
    }

    #[test]
    fn equal_occurrences_are_aggregated() {
        let (mut aggregator, mut snapshot) =
            (EventAggregator::default(), StatusSnapshot::new(source_id(), at(0)));
        for (name, note, second) in [("a", "x", 1), ("a", "y", 2), ("b", "x", 3), ("a", "x", 9)] {
            aggregator.record(&mut snapshot, &occurrence(name, note, second));
        }
        assert_eq!(event_lines(&snapshot), ["a x 2x 1-9", "a y 1x 2-2", "b x 1x 3-3"]);
        let newest = snapshot.events.values().map(|event| event.resource_version).max();
        assert_eq!(newest, Some(snapshot.resource_version));
    }

    #[test]
    fn repeated_updates_are_one_event_with_the_latest_note() {
        let (mut aggregator, mut snapshot) =
            (EventAggregator::default(), StatusSnapshot::new(source_id(), at(0)));
        let mut record = |reason, note: &str, fixed_note, second| {
            let occurrence =
                Occurrence { reason, fixed_note, ..Occurrence::clone(&occurrence("a", note, second)) };
            aggregator.record(&mut snapshot, &Arc::new(occurrence));
        };
        record(Reason::Created, "declared in a.yaml:1", None, 0);
        record(Reason::CommandNotFound, "no program", None, 0);
        for generation in 2..=50 {
            record(Reason::Updated, &format!("generation {generation}"), None, generation);
        }
        let requested = "a reconcile was requested";
        record(Reason::Updated, requested, Some(requested), 60);
        record(Reason::Updated, requested, Some(requested), 61);
        // A reason with ever new notes displaces only its own events.
        for n in 0..2 * MAX_EVENTS_PER_OBJECT {
            record(Reason::Exited, &format!("n{n}"), None, 70);
        }
        let lines = event_lines(&snapshot);
        for expected in [
            "a declared in a.yaml:1 1x 0-0",
            "a no program 1x 0-0",
            "a generation 50 49x 2-50",
            "a a reconcile was requested 2x 60-61",
        ] {
            assert!(lines.contains(&expected.to_owned()), "{expected}: {lines:?}");
        }
        assert_eq!(lines.len(), MAX_EVENTS_PER_OBJECT);
    }

    #[test]
    fn expired_and_excess_events_are_removed_oldest_first() {
        let (mut aggregator, mut snapshot) =
            (EventAggregator::default(), StatusSnapshot::new(source_id(), at(0)));
        aggregator.record(&mut snapshot, &occurrence("a", "first", 0));
        aggregator.record(&mut snapshot, &occurrence("a", "second", 1));
        aggregator.record(&mut snapshot, &occurrence("a", "first", 2));
        for n in 0..MAX_EVENTS_PER_OBJECT - 1 {
            aggregator.record(&mut snapshot, &occurrence("a", &format!("n{n}"), 3));
        }
        let notes = || snapshot.events.values().map(|event| event.latest.note.as_str());
        assert!(notes().any(|note| note == "first") && !notes().any(|note| note == "second"));
        assert_eq!(snapshot.events.len(), MAX_EVENTS_PER_OBJECT);

        for n in 0..MAX_EVENTS {
            aggregator.record(&mut snapshot, &occurrence(&format!("s{n}"), "x", 4));
        }
        assert_eq!(snapshot.events.len(), MAX_EVENTS);
        assert!(!snapshot.events.values().any(|event| *event.latest.regarding.key.name == *"a"));

        let before = snapshot.resource_version;
        aggregator.expire(&mut snapshot, at(4) + EVENT_RETENTION);
        assert_eq!((snapshot.events.len(), snapshot.resource_version), (MAX_EVENTS, before));
        aggregator.expire(&mut snapshot, at(5) + EVENT_RETENTION);
        assert!(snapshot.events.is_empty() && snapshot.resource_version > before);
        assert!(
            aggregator.keys.is_empty() && aggregator.by_age.is_empty() && aggregator.by_object.is_empty()
        );
    }
}
