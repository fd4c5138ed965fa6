use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use serde_json::{Value, json};

use super::events;
use super::resource::Resource;
use crate::report::{Event, Object, Snapshot, Source};
use crate::resource::{McpServerSpec, McpServerStatus, ObjectKey, SkillSpec, SkillStatus};

/// One object as it was at one version; cheap to make, its manifest is not.
#[derive(Clone)]
pub(super) struct Item {
    pub key: ObjectKey,
    pub version: u64,
    pub entry: Entry,
}

#[derive(Clone)]
pub(super) enum Entry {
    Server(Arc<Object<McpServerSpec, McpServerStatus>>),
    Skill(Arc<Object<SkillSpec, SkillStatus>>),
    Source(Arc<Source>),
    Event(Arc<Event>),
    Namespace,
}

/// One object of a kind.
pub(super) fn item(snapshot: &Snapshot, resource: Resource, key: &ObjectKey) -> Option<Item> {
    match resource {
        Resource::McpServers => snapshot.servers.get(key).map(Item::server),
        Resource::Skills => snapshot.skills.get(key).map(Item::skill),
        Resource::Events | Resource::CoreEvents => snapshot.events.get(key).map(Item::event),
        Resource::Sources | Resource::Namespaces => items(snapshot, resource).find(|item| item.key == *key),
    }
}

/// The objects of a kind in the order of their keys.
pub(super) fn items<'a>(
    snapshot: &'a Snapshot,
    resource: Resource,
) -> Box<dyn Iterator<Item = Item> + Send + 'a> {
    match resource {
        Resource::McpServers => Box::new(snapshot.servers.values().map(Item::server)),
        Resource::Skills => Box::new(snapshot.skills.values().map(Item::skill)),
        Resource::Sources => Box::new(std::iter::once(Item::source(&snapshot.source))),
        Resource::Events | Resource::CoreEvents => Box::new(snapshot.events.values().map(Item::event)),
        Resource::Namespaces => {
            // They have no declaration: there are those that something is in, and `default`.
            let declared = snapshot.servers.keys().chain(snapshot.skills.keys());
            let names: BTreeSet<Arc<str>> =
                declared.map(|key| key.namespace.clone()).chain(["default".into()]).collect();
            Box::new(names.into_iter().map(Item::namespace))
        }
    }
}

impl Item {
    pub fn server(object: &Arc<Object<McpServerSpec, McpServerStatus>>) -> Self {
        let (key, version) = (object.declared.meta.key.clone(), object.resource_version);
        Self { key, version, entry: Entry::Server(object.clone()) }
    }

    pub fn skill(object: &Arc<Object<SkillSpec, SkillStatus>>) -> Self {
        let (key, version) = (object.declared.meta.key.clone(), object.resource_version);
        Self { key, version, entry: Entry::Skill(object.clone()) }
    }

    pub fn source(source: &Arc<Source>) -> Self {
        let key = ObjectKey::new("", source.name());
        Self { key, version: source.resource_version, entry: Entry::Source(source.clone()) }
    }

    pub fn event(event: &Arc<Event>) -> Self {
        Self { key: event.key.clone(), version: event.resource_version, entry: Entry::Event(event.clone()) }
    }

    pub fn namespace(name: Arc<str>) -> Self {
        Self { key: ObjectKey::new("", name), version: 1, entry: Entry::Namespace }
    }

    /// The uid, where another object may come to have the same name.
    pub fn uid(&self) -> Option<Arc<str>> {
        match &self.entry {
            Entry::Server(object) => Some(object.declared.meta.uid.clone()),
            Entry::Skill(object) => Some(object.declared.meta.uid.clone()),
            Entry::Source(_) | Entry::Event(_) | Entry::Namespace => None,
        }
    }

    pub fn labels(&self) -> Option<&BTreeMap<String, String>> {
        match &self.entry {
            Entry::Server(object) => Some(&object.declared.meta.labels),
            Entry::Skill(object) => Some(&object.declared.meta.labels),
            Entry::Source(_) | Entry::Event(_) | Entry::Namespace => None,
        }
    }

    pub fn annotations(&self) -> Option<&BTreeMap<String, String>> {
        match &self.entry {
            Entry::Server(object) => Some(&object.declared.meta.annotations),
            Entry::Skill(object) => Some(&object.declared.meta.annotations),
            Entry::Source(_) | Entry::Event(_) | Entry::Namespace => None,
        }
    }

    pub fn manifest(&self, resource: Resource) -> Value {
        match &self.entry {
            Entry::Server(object) => object.manifest(),
            Entry::Skill(object) => object.manifest(),
            Entry::Source(source) => source.manifest(),
            Entry::Event(event) if resource == Resource::CoreEvents => events::core(event),
            Entry::Event(event) => events::newer(event),
            Entry::Namespace => json!({
                "apiVersion": "v1",
                "kind": "Namespace",
                "metadata": { "name": self.key.name, "resourceVersion": self.version.to_string() },
                "spec": { "finalizers": [] },
                "status": { "phase": "Active" },
            }),
        }
    }
}
