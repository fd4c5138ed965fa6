use std::sync::Arc;

use imbl::OrdMap;
use imbl::ordmap::DiffItem;

use super::object_version::{ObjectVersion, objects};
use super::resource::Resource;
use super::selector::Selector;
use crate::report::StatusSnapshot;
use crate::resource::ObjectKey;

/// One change of what a watcher sees.
#[derive(Clone)]
pub(super) struct ObjectChange {
    pub event_type: &'static str,
    pub object: ObjectVersion,
    /// The version to go on from after this change.
    pub version: u64,
}

/// What a watcher of a scope sees change between two snapshots, in order, after the version it has seen last.
/// Costs what changed. A state that did not last from one snapshot to the next is not seen.
///
/// When something was deleted between the two is not known. So deletions come first, with the version of the
/// first snapshot: who goes on from there hears of them twice, and misses nothing.
pub(super) fn changes(
    scope: &Selector,
    before: &StatusSnapshot,
    after: &StatusSnapshot,
    seen: u64,
) -> Vec<ObjectChange> {
    let pairs = match scope.resource {
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
                objects(snapshot, scope.resource).map(|item| (item.key.clone(), Arc::new(item.key))).collect()
            };
            diff(&all(before), &all(after), |key| ObjectVersion::from_namespace(key.name.clone()))
        }
    };
    let mut changes: Vec<_> = pairs
        .into_iter()
        .flat_map(|(old, new)| {
            let [old, new] = [old, new].map(|item| item.filter(|item| scope.matches(item)));
            let gone =
                |item| ObjectChange { event_type: "DELETED", object: item, version: before.resource_version };
            let there = |kind, item: ObjectVersion| ObjectChange {
                event_type: kind,
                version: item.version,
                object: item,
            };
            match (old, new) {
                (None, None) => [None, None],
                (None, Some(item)) => [Some(there("ADDED", item)), None],
                (Some(item), None) => [Some(gone(item)), None],
                // Deleted and created again under the same name.
                (Some(old), Some(new)) if old.uid() != new.uid() => {
                    [Some(gone(old)), Some(there("ADDED", new))]
                }
                (Some(_), Some(item)) => [Some(there("MODIFIED", item)), None],
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
