use std::sync::Arc;

use imbl::OrdMap;

use crate::resource::{McpServerStatus, ObjectKey, SkillStatus};

/// The statuses that the source itself holds of its objects: what an earlier run, another replica or this one
/// wrote there. Stays empty for a source that holds none.
#[derive(Clone, Debug, Default)]
pub struct StoredStatuses {
    /// Of the servers.
    pub servers: OrdMap<ObjectKey, Arc<StoredStatus<McpServerStatus>>>,
    /// Of the skills.
    pub skills: OrdMap<ObjectKey, Arc<StoredStatus<SkillStatus>>>,
}

/// The status of one object as its source holds it.
#[derive(Debug, PartialEq)]
pub struct StoredStatus<T> {
    /// The object's.
    pub uid: Arc<str>,
    /// Grows with every change of the object.
    pub resource_version: u64,
    /// `None` if there is none, or none that can be read.
    pub status: Option<T>,
    /// The generation of an object that is being deleted while somebody's finalizer holds it: it is declared no more.
    pub terminating_generation: Option<i64>,
}
