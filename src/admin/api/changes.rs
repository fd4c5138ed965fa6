use std::sync::Arc;

use imbl::OrdMap;
use imbl::ordmap::DiffItem;

use super::object_version::{ObjectVersion, objects};
use super::resource::Resource;
use super::selector::Selector;
use crate::report::StatusSnapshot;
use crate::resource::ObjectKey;

/// One change of the objects that a watch selects.
#[derive(Clone)]
pub(super) struct ObjectChange {
    /// `ADDED`, `MODIFIED` or `DELETED`.
    pub event_type: &'static str,
    pub object: ObjectVersion,
    /// The resource version from which a watch can resume after this change.
    pub version: u64,
}

/// Returns the changes between two snapshots that match a selector, ordered by version, newer than `seen`.
///
/// The cost is proportional to the number of changes. A state that existed only between the two snapshots is not
/// reported.
///
/// The time of a deletion between the two is not known. Deletions therefore come first, with the version of the first
/// snapshot: a client that resumes from there receives them twice and misses none.
pub(super) fn changes(
    selector: &Selector,
    before: &StatusSnapshot,
    after: &StatusSnapshot,
    seen: u64,
) -> Vec<ObjectChange> {
    let pairs = match selector.resource {
        Resource::McpServers => diff(&before.servers, &after.servers, ObjectVersion::from_server),
        Resource::Skills => diff(&before.skills, &after.skills, ObjectVersion::from_skill),
        Resource::Events | Resource::CoreEvents => {
            diff(&before.events, &after.events, ObjectVersion::from_event)
        }
        Resource::Sources => {
            let [before, after] =
                [before, after].map(|snapshot| ObjectVersion::from_source(&snapshot.source));
            if before.version == after.version { Vec::new() } else { vec![(Some(before), Some(after))] }
        }
        Resource::Namespaces => {
            let all = |snapshot: &StatusSnapshot| -> OrdMap<ObjectKey, Arc<ObjectKey>> {
                objects(snapshot, selector.resource)
                    .map(|item| (item.key.clone(), Arc::new(item.key)))
                    .collect()
            };
            diff(&all(before), &all(after), |key| ObjectVersion::from_namespace(key.name.clone()))
        }
    };
    let mut changes: Vec<_> = pairs
        .into_iter()
        .flat_map(|(old, new)| {
            let [old, new] = [old, new].map(|item| item.filter(|item| selector.matches(item)));
            let deleted =
                |item| ObjectChange { event_type: "DELETED", object: item, version: before.resource_version };
            let present = |event_type, item: ObjectVersion| ObjectChange {
                event_type,
                version: item.version,
                object: item,
            };
            match (old, new) {
                (None, None) => [None, None],
                (None, Some(item)) => [Some(present("ADDED", item)), None],
                (Some(item), None) => [Some(deleted(item)), None],
                // The object was deleted and created again under the same name.
                (Some(old), Some(new)) if old.uid() != new.uid() => {
                    [Some(deleted(old)), Some(present("ADDED", new))]
                }
                (Some(_), Some(item)) => [Some(present("MODIFIED", item)), None],
            }
        })
        .flatten()
        .filter(|change| change.event_type == "DELETED" || change.version > seen)
        .collect();
    changes.sort_by_key(|change| change.version);
    changes
}

type OldAndNew = (Option<ObjectVersion>, Option<ObjectVersion>);

fn diff<V: PartialEq>(
    before: &OrdMap<ObjectKey, Arc<V>>,
    after: &OrdMap<ObjectKey, Arc<V>>,
    item: impl Fn(&Arc<V>) -> ObjectVersion,
) -> Vec<OldAndNew> {
    let pair = |change| match change {
        DiffItem::Add(_, new) => (None, Some(item(new))),
        DiffItem::Update { old: (_, old), new: (_, new) } => (Some(item(old)), Some(item(new))),
        DiffItem::Remove(_, old) => (Some(item(old)), None),
    };
    before.diff(after).map(pair).collect()
}
