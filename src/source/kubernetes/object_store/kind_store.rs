//! The accepted objects of one kind, and the statuses that they show. Pure.

use std::sync::Arc;

use imbl::OrdMap;

use crate::resource::{DeclaredMeta, DeclaredObject, Digest, Endpoint, ObjectKey, Problem, same_endpoint};
use crate::source::StoredStatus;
use crate::source::kubernetes::object::{LatestObject, WatchedKind};

/// The objects of one kind.
pub(super) struct KindStore<S, T> {
    pub(super) objects: OrdMap<ObjectKey, Arc<DeclaredObject<S>>>,
    pub(super) statuses: OrdMap<ObjectKey, Arc<StoredStatus<T>>>,
}

impl<S, T> Default for KindStore<S, T> {
    fn default() -> Self {
        Self { objects: OrdMap::new(), statuses: OrdMap::new() }
    }
}

impl<S: WatchedKind + PartialEq + serde::Serialize, T: PartialEq> KindStore<S, T> {
    /// Takes up a newest form. An object that does not differ keeps its `Arc`.
    pub(super) fn upsert(
        &mut self,
        newest: LatestObject<S>,
        endpoint: impl FnOnce(&S) -> Option<Result<Arc<Endpoint>, Problem>>,
    ) {
        let key = newest.meta.key.clone();
        let last = self.objects.get(&key).filter(|last| last.meta.uid == newest.meta.uid);
        if let Some(next) = next_object(last, newest, endpoint) {
            self.objects.insert(key, Arc::new(next));
        }
    }

    pub(super) fn update_endpoint(
        &mut self,
        key: &ObjectKey,
        resolve: impl FnOnce(&S) -> Result<Arc<Endpoint>, Problem>,
    ) {
        let Some(last) = self.objects.get(key) else { return };
        let endpoint = last.spec.as_deref().map(resolve);
        if !same_endpoint(last.endpoint.as_ref(), endpoint.as_ref()) {
            let next = DeclaredObject {
                meta: last.meta.clone(),
                spec: last.spec.clone(),
                spec_digest: last.spec_digest,
                rejected: last.rejected.clone(),
                endpoint,
            };
            self.objects.insert(key.clone(), Arc::new(next));
        }
    }

    /// True if there is something new to show. A deletion is never taken back: what says so is older.
    pub(super) fn set_status(&mut self, key: &ObjectKey, status: StoredStatus<T>) -> bool {
        let known = |last: &Arc<StoredStatus<T>>| {
            **last == status
                || last.uid == status.uid
                    && last.terminating_generation.is_some()
                    && status.terminating_generation.is_none()
        };
        if self.statuses.get(key).is_some_and(known) {
            return false;
        }
        self.statuses.insert(key.clone(), Arc::new(status));
        true
    }

    /// True if there is no object, not even one that is being deleted.
    pub(super) fn is_empty(&self) -> bool {
        self.statuses.is_empty()
    }

    /// The same of one namespace.
    pub(super) fn is_namespace_empty(&self, namespace: &str) -> bool {
        let first = self.statuses.range(ObjectKey::new(namespace, "")..).next();
        first.is_none_or(|(key, _)| *key.namespace != *namespace)
    }

    /// True of an object that is being deleted, though somebody's finalizer holds it.
    pub(super) fn is_terminating(&self, key: &ObjectKey) -> bool {
        self.statuses.get(key).is_some_and(|shown| shown.terminating_generation.is_some())
    }
}

/// The next state of an object, from its last one with the same uid; `None` if nothing differs, or if what
/// was read is older than what is known.
fn next_object<S: WatchedKind + PartialEq + serde::Serialize>(
    last: Option<&Arc<DeclaredObject<S>>>,
    newest: LatestObject<S>,
    endpoint: impl FnOnce(&S) -> Option<Result<Arc<Endpoint>, Problem>>,
) -> Option<DeclaredObject<S>> {
    let LatestObject { mut meta, spec } = newest;
    let (spec, refused) = match spec {
        Ok(spec) => (Some(Arc::new(spec)), None),
        Err(mut problem) => {
            let good = last.and_then(|last| last.spec.clone());
            if good.is_some() {
                problem.message.push_str("; the last good declaration stays in force");
            }
            (good, Some(problem))
        }
    };
    if let Some(last) = last {
        if meta.generation < last.meta.generation {
            return None;
        }
        if same_meta(&meta, &last.meta) {
            // Only its status was written.
            meta.revision = last.meta.revision.clone();
            meta.origin = last.meta.origin.clone();
        }
    }
    let endpoint = spec.as_deref().and_then(endpoint);
    if let Some(last) = last
        && same_meta(&meta, &last.meta)
        && last.spec == spec
        && last.rejected == refused
        && same_endpoint(last.endpoint.as_ref(), endpoint.as_ref())
    {
        return None;
    }
    Some(DeclaredObject {
        spec_digest: spec.as_ref().map(Digest::of_json),
        meta,
        spec,
        rejected: refused,
        endpoint,
    })
}

fn same_meta(one: &DeclaredMeta, other: &DeclaredMeta) -> bool {
    one.generation == other.generation && one.labels == other.labels && one.annotations == other.annotations
}
