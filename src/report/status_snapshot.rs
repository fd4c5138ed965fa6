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

/// Everything that the status API tells, at one instant: immutable, and cheap to clone and to change.
#[derive(Clone, Debug)]
pub struct StatusSnapshot {
    /// The servers.
    pub servers: OrdMap<ObjectKey, Arc<StatusObject<McpServerSpec, McpServerStatus>>>,
    /// The skills.
    pub skills: OrdMap<ObjectKey, Arc<StatusObject<SkillSpec, SkillStatus>>>,
    /// The directory itself.
    pub source: Arc<SourceObject>,
    /// What happened in the last hour.
    pub events: OrdMap<ObjectKey, Arc<Event>>,
    /// Whether the process may be sent work.
    pub readiness: Readiness,
    /// That of the newest change.
    pub resource_version: u64,
    /// The [`Desired::number`] of what it tells of.
    ///
    /// [`Desired::number`]: crate::resource::Desired::number
    pub desired_number: u64,
}

impl StatusSnapshot {
    /// Nothing yet, of one place. Resource versions begin at the time of the start in milliseconds, so
    /// that those of an earlier run are all older.
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

    /// The resource version of the next change.
    pub(super) fn next_resource_version(&mut self) -> u64 {
        self.resource_version += 1;
        self.resource_version
    }

    /// One object; a kind without namespaces is asked for with an empty one.
    pub fn get(&self, kind: ObjectKind, key: &ObjectKey) -> Option<Value> {
        match kind {
            ObjectKind::McpServer => self.servers.get(key).map(|object| object.manifest()),
            ObjectKind::Skill => self.skills.get(key).map(|object| object.manifest()),
            ObjectKind::Source => {
                (*key == ObjectKey::new("", self.source.name())).then(|| self.source.manifest())
            }
        }
    }

    /// The objects of a kind in the order of their keys, of one namespace or of all.
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

    /// Tells why the process may not be sent work yet, a line for each reason; nothing if it may. With `required_only`
    /// the first attempts at other servers do not count.
    pub fn unready_reasons(&self, required_only: bool) -> Vec<String> {
        let readiness = &self.readiness;
        if readiness.is_ready() || (required_only && readiness.required_ready()) {
            return Vec::new();
        }
        let ready = |conditions| {
            find_condition(conditions, ConditionType::Ready)
                .map(|told| format!("{}: {}", told.reason, told.message))
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
