//! Holds the accepted objects of one kind and their stored statuses. Pure.

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
    /// Inserts or updates an object. An object that does not differ keeps its `Arc`.
    pub(super) fn upsert(
        &mut self,
        latest: LatestObject<S>,
        endpoint: impl FnOnce(&S) -> Option<Result<Arc<Endpoint>, Problem>>,
    ) {
        let key = latest.meta.key.clone();
        let last = self.objects.get(&key).filter(|last| last.meta.uid == latest.meta.uid);
        if let Some(next) = next_object(last, latest, endpoint) {
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

    /// Sets the stored status of an object; returns true if it changed. A deletion is never reverted, because a status
    /// without it is older.
    pub(super) fn set_status(&mut self, key: &ObjectKey, status: StoredStatus<T>) -> bool {
        let is_outdated = |last: &Arc<StoredStatus<T>>| {
            **last == status
                || last.uid == status.uid
                    && last.terminating_generation.is_some()
                    && status.terminating_generation.is_none()
        };
        if self.statuses.get(key).is_some_and(is_outdated) {
            return false;
        }
        self.statuses.insert(key.clone(), Arc::new(status));
        true
    }

    /// True if there is no object, not even one that is being deleted.
    pub(super) fn is_empty(&self) -> bool {
        self.statuses.is_empty()
    }

    /// True if a namespace has no object, not even one that is being deleted.
    pub(super) fn is_namespace_empty(&self, namespace: &str) -> bool {
        let first = self.statuses.range(ObjectKey::new(namespace, "")..).next();
        first.is_none_or(|(key, _)| *key.namespace != *namespace)
    }

    /// True if an object is being deleted while a finalizer holds it.
    pub(super) fn is_terminating(&self, key: &ObjectKey) -> bool {
        self.statuses.get(key).is_some_and(|status| status.terminating_generation.is_some())
    }
}

/// Returns the next state of an object from its last one with the same uid; `None` if nothing differs, or if `latest`
/// is older than the last state.
fn next_object<S: WatchedKind + PartialEq + serde::Serialize>(
    last: Option<&Arc<DeclaredObject<S>>>,
    latest: LatestObject<S>,
    endpoint: impl FnOnce(&S) -> Option<Result<Arc<Endpoint>, Problem>>,
) -> Option<DeclaredObject<S>> {
    let LatestObject { mut meta, spec } = latest;
    let (spec, refused) = match spec {
        Ok(spec) => (Some(Arc::new(spec)), None),
        Err(mut problem) => {
            let last_good = last.and_then(|last| last.spec.clone());
            if last_good.is_some() {
                problem.message.push_str("; the last good declaration stays in force");
            }
            (last_good, Some(problem))
        }
    };
    if let Some(last) = last {
        if meta.generation < last.meta.generation {
            return None;
        }
        if same_meta(&meta, &last.meta) {
            // Only the status was written.
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
