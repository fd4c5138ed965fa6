use std::sync::Arc;

use imbl::OrdMap;
use jiff::Timestamp;
use serde_json::Value;

use super::conditions::find_condition;
use super::event::Event;
use super::object::{ObjectKind, StatusObject};
use super::readiness::Readiness;
use super::source::SourceStatus;
use super::source_object::SourceObject;
use crate::resource::{
    ConditionType, McpServerSpec, McpServerStatus, ObjectKey, SkillSpec, SkillStatus, SourceId,
};

/// The content of the status API at one instant. Immutable, cheap to clone and to derive from.
#[derive(Clone, Debug)]
pub struct StatusSnapshot {
    /// The servers.
    pub servers: OrdMap<ObjectKey, Arc<StatusObject<McpServerSpec, McpServerStatus>>>,
    /// The skills.
    pub skills: OrdMap<ObjectKey, Arc<StatusObject<SkillSpec, SkillStatus>>>,
    /// The source.
    pub source: Arc<SourceObject>,
    /// The events of the last hour.
    pub events: OrdMap<ObjectKey, Arc<Event>>,
    /// The readiness of the process.
    pub readiness: Readiness,
    /// The resource version of the latest change.
    pub resource_version: u64,
    /// The [`Desired::sequence`] of the declared objects.
    ///
    /// [`Desired::sequence`]: crate::resource::Desired::sequence
    pub desired_number: u64,
}

impl StatusSnapshot {
    /// Creates the empty snapshot of a source. Resource versions begin at the start time in milliseconds, so that all
    /// versions of an earlier run are lower.
    pub(super) fn new(id: SourceId, now: Timestamp) -> Self {
        let resource_version = u64::try_from(now.as_millisecond()).unwrap_or(1);
        Self {
            servers: OrdMap::new(),
            skills: OrdMap::new(),
            source: Arc::new(SourceObject {
                id,
                created: now,
                status: SourceStatus::default(),
                resource_version,
            }),
            events: OrdMap::new(),
            readiness: Readiness::default(),
            resource_version,
            desired_number: 0,
        }
    }

    /// Increments the resource version and returns it.
    pub(super) fn next_resource_version(&mut self) -> u64 {
        self.resource_version += 1;
        self.resource_version
    }

    /// Returns one object. The namespace of a cluster-scoped kind is empty.
    pub fn get(&self, kind: ObjectKind, key: &ObjectKey) -> Option<Value> {
        match kind {
            ObjectKind::McpServer => self.servers.get(key).map(|object| object.manifest()),
            ObjectKind::Skill => self.skills.get(key).map(|object| object.manifest()),
            ObjectKind::Source => {
                (*key == ObjectKey::new("", self.source.name())).then(|| self.source.manifest())
            }
        }
    }

    /// Returns the objects of a kind sorted by key, from one namespace or from all.
    pub fn list(&self, kind: ObjectKind, namespace: Option<&str>) -> Vec<Value> {
        let within = |key: &ObjectKey| namespace.is_none_or(|namespace| *key.namespace == *namespace);
        match kind {
            ObjectKind::McpServer => {
                let objects = self.servers.iter().filter(|(key, _)| within(key));
                objects.map(|(_, object)| object.manifest()).collect()
            }
            ObjectKind::Skill => {
                let objects = self.skills.iter().filter(|(key, _)| within(key));
                objects.map(|(_, object)| object.manifest()).collect()
            }
            ObjectKind::Source => vec![self.source.manifest()],
        }
    }

    /// Returns the reasons why the process is not ready, one line each; empty if it is ready. With `required_only`,
    /// first attempts at servers that are not required are ignored.
    pub fn unready_reasons(&self, required_only: bool) -> Vec<String> {
        let readiness = &self.readiness;
        if readiness.is_ready() || (required_only && readiness.required_ready()) {
            return Vec::new();
        }
        let ready = |conditions| {
            find_condition(conditions, ConditionType::Ready)
                .map(|condition| format!("{}: {}", condition.reason, condition.message))
                .unwrap_or_default()
        };
        let source = (!readiness.is_synced())
            .then(|| format!("Source/{}: {}", self.source.name(), ready(&self.source.status.conditions)));
        let first = readiness.unattempted().filter(|_| !required_only);
        let servers = readiness.pending().chain(first).filter_map(|key| {
            let object = self.servers.get(key)?;
            Some(format!("McpServer/{key}: {}", ready(&object.status.conditions)))
        });
        source.into_iter().chain(servers).collect()
    }
}
