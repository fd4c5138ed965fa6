use std::sync::Arc;

use imbl::OrdMap;

use crate::resource::{McpServerStatus, ObjectKey, SkillStatus};

/// The statuses that the source itself stores for its objects: those that an earlier run, another replica or this
/// process wrote there. Stays empty for a source that stores none.
#[derive(Clone, Debug, Default)]
pub struct StoredStatuses {
    /// The statuses of the servers.
    pub servers: OrdMap<ObjectKey, Arc<StoredStatus<McpServerStatus>>>,
    /// The statuses of the skills.
    pub skills: OrdMap<ObjectKey, Arc<StoredStatus<SkillStatus>>>,
}

/// The status of one object as its source stores it.
#[derive(Debug, PartialEq)]
pub struct StoredStatus<T> {
    /// The uid of the object.
    pub uid: Arc<str>,
    /// The resourceVersion, which grows with every change of the object.
    pub resource_version: u64,
    /// The status; `None` if there is none or if it cannot be decoded.
    pub status: Option<T>,
    /// The generation of an object that is being deleted while a finalizer holds it; such an object is no longer
    /// declared.
    pub terminating_generation: Option<i64>,
}
