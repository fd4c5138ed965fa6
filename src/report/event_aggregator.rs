use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};

use super::{Event, Occurrence, Regarding, StatusSnapshot};
use crate::resource::{ObjectKey, Reason};

/// How long an event is kept after its last occurrence.
const KEPT: SignedDuration = SignedDuration::from_hours(1);
/// The longest name of an object in Kubernetes, in bytes.
const LONGEST_NAME: usize = 253;
/// How many events are kept.
const MOST: usize = 5_000;
/// How many are kept about one object, so that it does not push out what is known of others.
const MOST_OF_ONE: usize = 32;

/// Keeps the events of the store: equal occurrences are one event, and there are never too many.
#[derive(Debug, Default)]
pub(super) struct EventAggregator {
    /// The event that a further equal occurrence belongs to.
    events: HashMap<Same, ObjectKey>,
    /// Every event by the resource version of its last occurrence: the oldest first.
    ages: BTreeMap<u64, Same>,
    /// The same, of each object by its uid.
    of_object: HashMap<Arc<str>, BTreeSet<u64>>,
}

/// What equal occurrences have in common.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Same {
    uid: Arc<str>,
    reason: Reason,
    common: Arc<str>,
}

impl EventAggregator {
    /// Adds an occurrence to the store.
    pub fn record(&mut self, store: &mut StatusSnapshot, occurrence: &Arc<Occurrence>) {
        self.expire(store, occurrence.at);
        let Regarding { key, uid, .. } = &occurrence.regarding;
        let same = Same { uid: uid.clone(), reason: occurrence.reason, common: occurrence.common().into() };
        let earlier = self.events.get(&same).and_then(|key| store.events.get(key)).cloned();
        let resource_version = store.next_version();
        let (event_key, first, count) = if let Some(earlier) = earlier {
            self.forget_age(earlier.resource_version);
            (earlier.key.clone(), earlier.first, earlier.count.saturating_add(1))
        } else {
            let name = event_name(&key.name, resource_version);
            (ObjectKey::new(occurrence.regarding.event_namespace(), name), occurrence.at, 1)
        };
        self.of_object.entry(uid.clone()).or_default().insert(resource_version);
        self.ages.insert(resource_version, same.clone());
        self.events.insert(same, event_key.clone());
        let event =
            Event { key: event_key.clone(), latest: occurrence.clone(), first, count, resource_version };
        store.events.insert(event_key, Arc::new(event));

        if let Some(age) = self.too_many(uid) {
            self.forget(store, age);
        }
        if self.ages.len() > MOST {
            self.forget_oldest(store);
        }
    }

    /// Forgets what happened too long ago.
    pub fn expire(&mut self, store: &mut StatusSnapshot, now: Timestamp) {
        let over = |store: &StatusSnapshot, same: &Same| {
            let event = self.events.get(same).and_then(|key| store.events.get(key));
            event.is_none_or(|event| now.duration_since(event.latest.at) > KEPT)
        };
        let ages = self.ages.iter();
        let old: Vec<_> = ages.take_while(|(_, same)| over(store, same)).map(|(age, _)| *age).collect();
        for age in old {
            self.forget(store, age);
        }
    }

    /// The event to forget of an object that has too many: the oldest of the reason that has most.
    fn too_many(&self, uid: &str) -> Option<u64> {
        let ages = self.of_object.get(uid).filter(|ages| ages.len() > MOST_OF_ONE)?;
        let mut reasons: HashMap<Reason, (usize, u64)> = HashMap::new();
        for (age, same) in ages.iter().filter_map(|age| Some((*age, self.ages.get(age)?))) {
            reasons.entry(same.reason).or_insert((0, age)).0 += 1;
        }
        reasons.into_values().max_by_key(|(count, age)| (*count, Reverse(*age))).map(|(_, age)| age)
    }

    fn forget_oldest(&mut self, store: &mut StatusSnapshot) {
        if let Some(oldest) = self.ages.keys().next().copied() {
            self.forget(store, oldest);
        }
    }

    fn forget(&mut self, store: &mut StatusSnapshot, age: u64) {
        if let Some(key) = self.forget_age(age).and_then(|same| self.events.remove(&same)) {
            store.events.remove(&key);
            store.next_version();
        }
    }

    /// Takes an event out of the order of ages.
    fn forget_age(&mut self, age: u64) -> Option<Same> {
        let same = self.ages.remove(&age)?;
        if let Some(ages) = self.of_object.get_mut(&same.uid) {
            ages.remove(&age);
            if ages.is_empty() {
                self.of_object.remove(&same.uid);
            }
        }
        Some(same)
    }
}

/// The name of an event: that of its object, as far as the name of an event may hold it, and a number of its own.
fn event_name(object: &str, number: u64) -> String {
    let tail = format!(".{number:x}");
    let end = object.floor_char_boundary(LONGEST_NAME - tail.len());
    let object = object.get(..end).unwrap_or_default();
    // No part of a name may end with these.
    format!("{}{tail}", object.trim_end_matches(['-', '.']))
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
            steady: None,
            revision: "r1".into(),
            commit: None,
            digest_before: None,
            digest: None,
        })
    }

    fn told(store: &StatusSnapshot) -> Vec<String> {
        let line = |event: &Arc<Event>| {
            let Occurrence { regarding, note, at, .. } = &*event.latest;
            let (first, last) = (event.first.as_second(), at.as_second());
            format!("{} {note} {}x {first}-{last}", regarding.key.name, event.count)
        };
        store.events.values().map(line).collect()
    }

    #[test]
    fn the_name_of_an_event_is_one_that_kubernetes_takes() {
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
    fn equal_occurrences_are_one_event() {
        let (mut ledger, mut store) = (EventAggregator::default(), StatusSnapshot::new(source_id(), at(0)));
        for (name, note, second) in [("a", "x", 1), ("a", "y", 2), ("b", "x", 3), ("a", "x", 9)] {
            ledger.record(&mut store, &occurrence(name, note, second));
        }
        assert_eq!(told(&store), ["a x 2x 1-9", "a y 1x 2-2", "b x 1x 3-3"]);
        let newest = store.events.values().map(|event| event.resource_version).max();
        assert_eq!(newest, Some(store.resource_version));
    }

    #[test]
    fn a_declaration_that_changes_often_is_one_event_that_says_the_newest() {
        let (mut ledger, mut store) = (EventAggregator::default(), StatusSnapshot::new(source_id(), at(0)));
        let mut record = |reason, note: &str, steady, second| {
            let occurrence =
                Occurrence { reason, steady, ..Occurrence::clone(&occurrence("a", note, second)) };
            ledger.record(&mut store, &Arc::new(occurrence));
        };
        record(Reason::Created, "declared in a.yaml:1", None, 0);
        record(Reason::CommandNotFound, "no program", None, 0);
        for generation in 2..=50 {
            record(Reason::Updated, &format!("generation {generation}"), None, generation);
        }
        let look = "a look was asked for";
        record(Reason::Updated, look, Some(look), 60);
        record(Reason::Updated, look, Some(look), 61);
        // What tells something else each time pushes out only its own.
        for n in 0..2 * MOST_OF_ONE {
            record(Reason::Exited, &format!("n{n}"), None, 70);
        }
        let told = told(&store);
        for expected in [
            "a declared in a.yaml:1 1x 0-0",
            "a no program 1x 0-0",
            "a generation 50 49x 2-50",
            "a a look was asked for 2x 60-61",
        ] {
            assert!(told.contains(&expected.to_owned()), "{expected}: {told:?}");
        }
        assert_eq!(told.len(), MOST_OF_ONE);
    }

    #[test]
    fn old_events_and_too_many_are_forgotten_the_oldest_first() {
        let (mut ledger, mut store) = (EventAggregator::default(), StatusSnapshot::new(source_id(), at(0)));
        ledger.record(&mut store, &occurrence("a", "first", 0));
        ledger.record(&mut store, &occurrence("a", "second", 1));
        ledger.record(&mut store, &occurrence("a", "first", 2));
        for n in 0..MOST_OF_ONE - 1 {
            ledger.record(&mut store, &occurrence("a", &format!("n{n}"), 3));
        }
        let notes = || store.events.values().map(|event| event.latest.note.as_str());
        assert!(notes().any(|note| note == "first") && !notes().any(|note| note == "second"));
        assert_eq!(store.events.len(), MOST_OF_ONE);

        for n in 0..MOST {
            ledger.record(&mut store, &occurrence(&format!("s{n}"), "x", 4));
        }
        assert_eq!(store.events.len(), MOST);
        assert!(!store.events.values().any(|event| *event.latest.regarding.key.name == *"a"));

        let before = store.resource_version;
        ledger.expire(&mut store, at(4) + KEPT);
        assert_eq!((store.events.len(), store.resource_version), (MOST, before));
        ledger.expire(&mut store, at(5) + KEPT);
        assert!(store.events.is_empty() && store.resource_version > before);
        assert!(ledger.events.is_empty() && ledger.ages.is_empty() && ledger.of_object.is_empty());
    }
}
