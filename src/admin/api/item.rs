use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use serde_json::{Value, json};

use super::events;
use super::resource::Resource;
use crate::report::{Event, SourceObject, StatusObject, StatusSnapshot};
use crate::resource::{McpServerSpec, McpServerStatus, ObjectKey, SkillSpec, SkillStatus};

/// One object as it was at one version; cheap to make, its manifest is not.
#[derive(Clone)]
pub(super) struct ObjectVersion {
    pub key: ObjectKey,
    pub version: u64,
    pub entry: AnyObject,
}

#[derive(Clone)]
pub(super) enum AnyObject {
    Server(Arc<StatusObject<McpServerSpec, McpServerStatus>>),
    Skill(Arc<StatusObject<SkillSpec, SkillStatus>>),
    Source(Arc<SourceObject>),
    Event(Arc<Event>),
    Namespace,
}

/// One object of a kind.
pub(super) fn item(snapshot: &StatusSnapshot, resource: Resource, key: &ObjectKey) -> Option<ObjectVersion> {
    match resource {
        Resource::McpServers => snapshot.servers.get(key).map(ObjectVersion::server),
        Resource::Skills => snapshot.skills.get(key).map(ObjectVersion::skill),
        Resource::Events | Resource::CoreEvents => snapshot.events.get(key).map(ObjectVersion::event),
        Resource::Sources | Resource::Namespaces => items(snapshot, resource).find(|item| item.key == *key),
    }
}

/// The objects of a kind in the order of their keys.
pub(super) fn items<'a>(
    snapshot: &'a StatusSnapshot,
    resource: Resource,
) -> Box<dyn Iterator<Item = ObjectVersion> + Send + 'a> {
    match resource {
        Resource::McpServers => Box::new(snapshot.servers.values().map(ObjectVersion::server)),
        Resource::Skills => Box::new(snapshot.skills.values().map(ObjectVersion::skill)),
        Resource::Sources => Box::new(std::iter::once(ObjectVersion::source(&snapshot.source))),
        Resource::Events | Resource::CoreEvents => {
            Box::new(snapshot.events.values().map(ObjectVersion::event))
        }
        Resource::Namespaces => {
            // They have no declaration: there are those that something is in, and `default`.
            let declared = snapshot.servers.keys().chain(snapshot.skills.keys());
            let names: BTreeSet<Arc<str>> =
                declared.map(|key| key.namespace.clone()).chain(["default".into()]).collect();
            Box::new(names.into_iter().map(ObjectVersion::namespace))
        }
    }
}

impl ObjectVersion {
    pub fn server(object: &Arc<StatusObject<McpServerSpec, McpServerStatus>>) -> Self {
        let (key, version) = (object.declared.meta.key.clone(), object.resource_version);
        Self { key, version, entry: AnyObject::Server(object.clone()) }
    }

    pub fn skill(object: &Arc<StatusObject<SkillSpec, SkillStatus>>) -> Self {
        let (key, version) = (object.declared.meta.key.clone(), object.resource_version);
        Self { key, version, entry: AnyObject::Skill(object.clone()) }
    }

    pub fn source(source: &Arc<SourceObject>) -> Self {
        let key = ObjectKey::new("", source.name());
        Self { key, version: source.resource_version, entry: AnyObject::Source(source.clone()) }
    }

    pub fn event(event: &Arc<Event>) -> Self {
        Self {
            key: event.key.clone(),
            version: event.resource_version,
            entry: AnyObject::Event(event.clone()),
        }
    }

    pub fn namespace(name: Arc<str>) -> Self {
        Self { key: ObjectKey::new("", name), version: 1, entry: AnyObject::Namespace }
    }

    /// The uid, where another object may come to have the same name.
    pub fn uid(&self) -> Option<Arc<str>> {
        match &self.entry {
            AnyObject::Server(object) => Some(object.declared.meta.uid.clone()),
            AnyObject::Skill(object) => Some(object.declared.meta.uid.clone()),
            AnyObject::Source(_) | AnyObject::Event(_) | AnyObject::Namespace => None,
        }
    }

    pub fn labels(&self) -> Option<&BTreeMap<String, String>> {
        match &self.entry {
            AnyObject::Server(object) => Some(&object.declared.meta.labels),
            AnyObject::Skill(object) => Some(&object.declared.meta.labels),
            AnyObject::Source(_) | AnyObject::Event(_) | AnyObject::Namespace => None,
        }
    }

    pub fn annotations(&self) -> Option<&BTreeMap<String, String>> {
        match &self.entry {
            AnyObject::Server(object) => Some(&object.declared.meta.annotations),
            AnyObject::Skill(object) => Some(&object.declared.meta.annotations),
            AnyObject::Source(_) | AnyObject::Event(_) | AnyObject::Namespace => None,
        }
    }

    pub fn manifest(&self, resource: Resource) -> Value {
        match &self.entry {
            AnyObject::Server(object) => object.manifest(),
            AnyObject::Skill(object) => object.manifest(),
            AnyObject::Source(source) => source.manifest(),
            AnyObject::Event(event) if resource == Resource::CoreEvents => events::core(event),
            AnyObject::Event(event) => events::newer(event),
            AnyObject::Namespace => json!({
                "apiVersion": "v1",
                "kind": "Namespace",
                "metadata": { "name": self.key.name, "resourceVersion": self.version.to_string() },
                "spec": { "finalizers": [] },
                "status": { "phase": "Active" },
            }),
        }
    }
}
