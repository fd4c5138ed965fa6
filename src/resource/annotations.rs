use std::collections::BTreeMap;
use std::sync::Arc;

use imbl::OrdMap;

use super::ObjectKey;
use super::declared::DeclaredMeta;

/// The annotation that asks for one object to be reconciled now; any new value does.
pub const RECONCILE_REQUESTED_AT: &str = "evenkeel.dev/reconcile-requested-at";

/// The annotation that asks for a new connection of one server, healthy or not; any new value does.
pub const RECONNECT_REQUESTED_AT: &str = "evenkeel.dev/reconnect-requested-at";

/// The annotations that ask for work, and that may be set without touching a file.
pub const REQUEST_ANNOTATIONS: [&str; 2] = [RECONCILE_REQUESTED_AT, RECONNECT_REQUESTED_AT];

/// What was asked of servers.
pub type RequestedWork = OrdMap<ObjectKey, Arc<RequestedAnnotations>>;

/// What was asked of one server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RequestedAnnotations {
    /// Its uid: another server of the same name is not meant.
    pub uid: Arc<str>,
    /// The values of those of [`REQUESTS`] that are set.
    pub values: BTreeMap<&'static str, String>,
}

impl RequestedAnnotations {
    /// True if this is what makes the annotations of a server others than they were before.
    pub fn accounts_for(&self, before: &DeclaredMeta, after: &DeclaredMeta) -> bool {
        let differing: Vec<_> = REQUEST_ANNOTATIONS
            .iter()
            .filter(|name| before.annotations.get(**name) != after.annotations.get(**name))
            .collect();
        self.uid == after.uid
            && before.revision == after.revision
            && before.generation == after.generation
            && !differing.is_empty()
            && differing.into_iter().all(|name| after.annotations.get(*name) == self.values.get(name))
    }
}
