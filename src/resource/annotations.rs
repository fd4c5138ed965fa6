use std::collections::BTreeMap;
use std::sync::Arc;

use imbl::OrdMap;

use super::ObjectKey;
use super::declared::DeclaredMeta;

/// The annotation that requests an immediate reconcile of one object. Each new value is a new request.
pub const RECONCILE_REQUESTED_AT: &str = "evenkeel.dev/reconcile-requested-at";

/// The annotation that requests a new connection to one server, even if the current one is healthy. Each new value is
/// a new request.
pub const RECONNECT_REQUESTED_AT: &str = "evenkeel.dev/reconnect-requested-at";

/// The annotations that request work. They can be set through the status API, without editing a file.
pub const REQUEST_ANNOTATIONS: [&str; 2] = [RECONCILE_REQUESTED_AT, RECONNECT_REQUESTED_AT];

/// The requested annotations of each server.
pub type RequestedWork = OrdMap<ObjectKey, Arc<RequestedAnnotations>>;

/// The request annotations that were set on one server through the status API.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RequestedAnnotations {
    /// The server's uid. The request does not apply to another server that later gets the same name.
    pub uid: Arc<str>,
    /// The values of the [`REQUEST_ANNOTATIONS`] that are set.
    pub values: BTreeMap<&'static str, String>,
}

impl RequestedAnnotations {
    /// Returns true if these annotations account for the difference between `before` and `after`: the object, its
    /// revision and its generation are unchanged, and each request annotation that differs has its value from here.
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
