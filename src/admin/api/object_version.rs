use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use serde_json::{Value, json};

use super::events;
use super::resource::Resource;
use crate::report::{Event, SourceObject, StatusObject, StatusSnapshot};
use crate::resource::{McpServerSpec, McpServerStatus, ObjectKey, SkillSpec, SkillStatus};

/// One object at one resource version. Cheap to create; rendering its manifest is not.
#[derive(Clone)]
pub(super) struct ObjectVersion {
    pub key: ObjectKey,
    pub version: u64,
    pub object: AnyObject,
}

/// An object of one of the kinds that are served.
#[derive(Clone)]
pub(super) enum AnyObject {
    Server(Arc<StatusObject<McpServerSpec, McpServerStatus>>),
    Skill(Arc<StatusObject<SkillSpec, SkillStatus>>),
    Source(Arc<SourceObject>),
    Event(Arc<Event>),
    Namespace,
}

/// Returns one object of a resource, if it exists.
pub(super) fn find_object(
    snapshot: &StatusSnapshot,
    resource: Resource,
    key: &ObjectKey,
) -> Option<ObjectVersion> {
    match resource {
        Resource::McpServers => snapshot.servers.get(key).map(ObjectVersion::from_server),
        Resource::Skills => snapshot.skills.get(key).map(ObjectVersion::from_skill),
        Resource::Events | Resource::CoreEvents => snapshot.events.get(key).map(ObjectVersion::from_event),
        Resource::Sources | Resource::Namespaces => objects(snapshot, resource).find(|item| item.key == *key),
    }
}

/// Returns the objects of a resource, ordered by their keys.
pub(super) fn objects<'a>(
    snapshot: &'a StatusSnapshot,
    resource: Resource,
) -> Box<dyn Iterator<Item = ObjectVersion> + Send + 'a> {
    match resource {
        Resource::McpServers => Box::new(snapshot.servers.values().map(ObjectVersion::from_server)),
        Resource::Skills => Box::new(snapshot.skills.values().map(ObjectVersion::from_skill)),
        Resource::Sources => Box::new(std::iter::once(ObjectVersion::from_source(&snapshot.source))),
        Resource::Events | Resource::CoreEvents => {
            Box::new(snapshot.events.values().map(ObjectVersion::from_event))
        }
        Resource::Namespaces => {
            // Namespaces have no declaration: those that hold an object exist, and `default`.
            let declared = snapshot.servers.keys().chain(snapshot.skills.keys());
            let names: BTreeSet<Arc<str>> =
                declared.map(|key| key.namespace.clone()).chain(["default".into()]).collect();
            Box::new(names.into_iter().map(ObjectVersion::from_namespace))
        }
    }
}

impl ObjectVersion {
    pub fn from_server(object: &Arc<StatusObject<McpServerSpec, McpServerStatus>>) -> Self {
        let (key, version) = (object.declared.meta.key.clone(), object.resource_version);
        Self { key, version, object: AnyObject::Server(object.clone()) }
    }

    pub fn from_skill(object: &Arc<StatusObject<SkillSpec, SkillStatus>>) -> Self {
        let (key, version) = (object.declared.meta.key.clone(), object.resource_version);
        Self { key, version, object: AnyObject::Skill(object.clone()) }
    }

    pub fn from_source(source: &Arc<SourceObject>) -> Self {
        let key = ObjectKey::new("", source.name());
        Self { key, version: source.resource_version, object: AnyObject::Source(source.clone()) }
    }

    pub fn from_event(event: &Arc<Event>) -> Self {
        Self {
            key: event.key.clone(),
            version: event.resource_version,
            object: AnyObject::Event(event.clone()),
        }
    }

    pub fn from_namespace(name: Arc<str>) -> Self {
        Self { key: ObjectKey::new("", name), version: 1, object: AnyObject::Namespace }
    }

    /// Returns the uid; `None` of kinds whose names are never reused by another object.
    pub fn uid(&self) -> Option<Arc<str>> {
        match &self.object {
            AnyObject::Server(object) => Some(object.declared.meta.uid.clone()),
            AnyObject::Skill(object) => Some(object.declared.meta.uid.clone()),
            AnyObject::Source(_) | AnyObject::Event(_) | AnyObject::Namespace => None,
        }
    }

    pub fn labels(&self) -> Option<&BTreeMap<String, String>> {
        match &self.object {
            AnyObject::Server(object) => Some(&object.declared.meta.labels),
            AnyObject::Skill(object) => Some(&object.declared.meta.labels),
            AnyObject::Source(_) | AnyObject::Event(_) | AnyObject::Namespace => None,
        }
    }

    pub fn annotations(&self) -> Option<&BTreeMap<String, String>> {
        match &self.object {
            AnyObject::Server(object) => Some(&object.declared.meta.annotations),
            AnyObject::Skill(object) => Some(&object.declared.meta.annotations),
            AnyObject::Source(_) | AnyObject::Event(_) | AnyObject::Namespace => None,
        }
    }

    pub fn manifest(&self, resource: Resource) -> Value {
        match &self.object {
            AnyObject::Server(object) => object.manifest(),
            AnyObject::Skill(object) => object.manifest(),
            AnyObject::Source(source) => source.manifest(),
            AnyObject::Event(event) if resource == Resource::CoreEvents => events::core_v1(event),
            AnyObject::Event(event) => events::events_v1(event),
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
