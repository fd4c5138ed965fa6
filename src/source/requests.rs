use std::collections::HashMap;
use std::sync::Arc;

use imbl::OrdMap;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::net::restart_on_panic;
use crate::resource::{
    DeclaredMeta, DeclaredObject, Desired, McpServerSpec, ObjectKey, RequestedAnnotations, RequestedWork,
};

/// A request for work on one server, made by annotations.
#[derive(Clone, Debug)]
pub struct ReconcileRequest {
    /// The key of the server.
    pub key: ObjectKey,
    /// The uid of the server. The request does not apply to another server of the same name.
    pub uid: Arc<str>,
    /// The annotations to set, or to remove (`None`), out of
    /// [`REQUEST_ANNOTATIONS`](crate::resource::REQUEST_ANNOTATIONS).
    pub annotations: Vec<(&'static str, Option<String>)>,
}

/// A handle that accepts reconcile requests. They are kept in memory until their server is gone or the process ends.
#[derive(Clone, Debug)]
pub struct ReconcileRequests(watch::Sender<RequestedWork>);

impl ReconcileRequests {
    /// Submits a request. It becomes visible as annotations of the server.
    pub fn submit(&self, request: ReconcileRequest) {
        let ReconcileRequest { key, uid, annotations } = request;
        self.0.send_modify(|requests| {
            let earlier = requests.get(&key).filter(|earlier| earlier.uid == uid);
            let mut values = earlier.map(|earlier| earlier.values.clone()).unwrap_or_default();
            for (name, value) in annotations {
                match value {
                    Some(value) => values.insert(name, value),
                    None => values.remove(name),
                };
            }
            requests.insert(key, Arc::new(RequestedAnnotations { uid, values }));
        });
    }
}

/// Adds the requested annotations to the servers that a source publishes.
///
/// Returns a handle to submit requests, a receiver of the merged [`Desired`], and a future that does the merging until
/// `stop` is cancelled. An object without a request keeps its `Arc`; an object with one keeps its merged `Arc` until
/// the object or the request changes.
pub fn merge_requests(
    source: watch::Receiver<Arc<Desired>>,
    stop: CancellationToken,
) -> (ReconcileRequests, watch::Receiver<Arc<Desired>>, impl Future<Output = ()>) {
    let (request_sender, requested) = watch::channel(OrdMap::new());
    let (sender, desired) = watch::channel(source.borrow().clone());
    let requests = ReconcileRequests(request_sender);
    let task_requests = requests.clone();
    (requests, desired, async move {
        let merging = restart_on_panic("the task that merges requests", || {
            let merger = RequestMerger { requests: task_requests.clone(), merged: HashMap::new() };
            merger.run(source.clone(), requested.clone(), sender.clone())
        });
        stop.run_until_cancelled(merging).await;
    })
}

struct RequestMerger {
    requests: ReconcileRequests,
    /// The merged servers, kept as long as neither the declaration nor the request changes.
    merged: HashMap<ObjectKey, MergedServer>,
}

struct MergedServer {
    declared: Arc<DeclaredObject<McpServerSpec>>,
    requested: Arc<RequestedAnnotations>,
    result: Arc<DeclaredObject<McpServerSpec>>,
}

impl RequestMerger {
    async fn run(
        mut self,
        mut source: watch::Receiver<Arc<Desired>>,
        mut requested: watch::Receiver<RequestedWork>,
        sender: watch::Sender<Arc<Desired>>,
    ) {
        loop {
            let desired = source.borrow_and_update().clone();
            let work = requested.borrow_and_update().clone();
            sender.send_replace(self.merge(desired, &work));
            tokio::select! {
                changed = source.changed() => if changed.is_err() { return },
                // Never closed: `self.requests` is one of its senders.
                _ = requested.changed() => {}
            }
        }
    }

    fn merge(&mut self, desired: Arc<Desired>, work: &RequestedWork) -> Arc<Desired> {
        let mut expired = Vec::new();
        let mut merged = None;
        for (key, requested) in work {
            let Some(declared) = desired.servers.get(key).filter(|server| server.meta.uid == requested.uid)
            else {
                // Before the source is synced a server may only be missing because it was not read yet.
                if desired.source.synced {
                    expired.push(key.clone());
                }
                continue;
            };
            let cached = self.merged.get(key);
            let cached = cached
                .filter(|entry| Arc::ptr_eq(&entry.declared, declared) && entry.requested == *requested);
            let result = match cached {
                Some(entry) => entry.result.clone(),
                None => with_annotations(declared, requested),
            };
            let entry = MergedServer {
                declared: declared.clone(),
                requested: requested.clone(),
                result: result.clone(),
            };
            self.merged.insert(key.clone(), entry);
            let merged = merged
                .get_or_insert_with(|| Desired { requested_work: work.clone(), ..Desired::clone(&desired) });
            merged.servers.insert(key.clone(), result);
        }
        if !expired.is_empty() {
            self.discard_requests(&expired);
        }
        merged.map_or(desired, Arc::new)
    }

    fn discard_requests(&mut self, expired: &[ObjectKey]) {
        self.merged.retain(|key, _| !expired.contains(key));
        self.requests.0.send_if_modified(|work| {
            for key in expired {
                work.remove(key);
            }
            false
        });
    }
}

fn with_annotations(
    declared: &DeclaredObject<McpServerSpec>,
    requested: &RequestedAnnotations,
) -> Arc<DeclaredObject<McpServerSpec>> {
    let mut annotations = declared.meta.annotations.clone();
    annotations.extend(requested.values.iter().map(|(name, value)| ((*name).to_owned(), value.clone())));
    let meta = DeclaredMeta { annotations, ..declared.meta.clone() };
    Arc::new(DeclaredObject { meta, ..declared.clone() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resource::RECONCILE_REQUESTED_AT;
    use crate::resource::SourceState;
    use crate::resource::testing::{declared_server, key};

    fn desired(names: &[&str]) -> Arc<Desired> {
        let servers = names.iter().map(|name| (key(name), Arc::new(declared_server(name, 1)))).collect();
        let source = Arc::new(SourceState { synced: true, ..SourceState::default() });
        Arc::new(Desired { servers, source, ..Desired::default() })
    }

    fn request(name: &str, value: Option<&str>) -> ReconcileRequest {
        let annotations = vec![(RECONCILE_REQUESTED_AT, value.map(str::to_owned))];
        ReconcileRequest { key: key(name), uid: format!("uid-{name}").into(), annotations }
    }

    #[tokio::test]
    async fn request_changes_only_its_server() {
        let (source_sender, source) = watch::channel(Arc::default());
        let stop = CancellationToken::new();
        let (requests, mut reader, stage) = merge_requests(source, stop.clone());
        let task = tokio::spawn(stage);
        let first = desired(&["a", "b"]);
        source_sender.send(first.clone()).unwrap();
        let requested_at = |desired: &Desired, name| {
            desired
                .servers
                .get(&key(name))
                .and_then(|server| server.meta.annotations.get(RECONCILE_REQUESTED_AT).cloned())
        };
        requests.submit(request("a", Some("1")));
        let merged = reader.wait_for(|now| requested_at(now, "a").is_some()).await.unwrap().clone();
        assert!(Arc::ptr_eq(&merged.servers[&key("b")], &first.servers[&key("b")]));

        // Another object changes: the merged object of this one keeps its `Arc`.
        let mut second = Desired::clone(&first);
        second.servers.insert(key("c"), Arc::new(declared_server("c", 1)));
        source_sender.send(Arc::new(second)).unwrap();
        let third = reader.wait_for(|now| now.servers.len() == 3).await.unwrap().clone();
        assert!(Arc::ptr_eq(&merged.servers[&key("a")], &third.servers[&key("a")]));

        requests.submit(request("a", None));
        let withdrawn = reader.wait_for(|now| requested_at(now, "a").is_none()).await.unwrap().clone();
        assert_eq!(withdrawn.servers.len(), 3);

        // The request ends with its server and does not apply to another server of the same name.
        requests.submit(request("a", Some("2")));
        reader.wait_for(|now| requested_at(now, "a").is_some()).await.unwrap();
        source_sender.send(desired(&["b"])).unwrap();
        reader.wait_for(|now| now.servers.len() == 1).await.unwrap();
        assert!(requests.0.borrow().is_empty());
        stop.cancel();
        task.await.unwrap();
    }
}
