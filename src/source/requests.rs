use std::collections::HashMap;
use std::sync::Arc;

use imbl::OrdMap;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::resource::{
    DeclaredMeta, DeclaredObject, Desired, McpServerSpec, ObjectKey, RequestedAnnotations, RequestedWork,
};

/// Asks for work on one server, by annotations.
#[derive(Clone, Debug)]
pub struct ReconcileRequest {
    /// The server.
    pub key: ObjectKey,
    /// Its uid: another server of the same name is not meant.
    pub uid: Arc<str>,
    /// Those of [`REQUESTS`](crate::resource::REQUESTS) to set, or (`None`) to take back.
    pub annotations: Vec<(&'static str, Option<String>)>,
}

/// Takes requests. They are kept in memory until their server is gone or the process ends.
#[derive(Clone, Debug)]
pub struct ReconcileRequests(watch::Sender<RequestedWork>);

impl ReconcileRequests {
    /// Asks for work. It shows as annotations of the server.
    pub fn submit(&self, request: ReconcileRequest) {
        let ReconcileRequest { key, uid, annotations } = request;
        self.0.send_modify(|asked| {
            let before = asked.get(&key).filter(|before| before.uid == uid);
            let mut values = before.map(|before| before.values.clone()).unwrap_or_default();
            for (name, value) in annotations {
                match value {
                    Some(value) => values.insert(name, value),
                    None => values.remove(name),
                };
            }
            asked.insert(key, Arc::new(RequestedAnnotations { uid, values }));
        });
    }
}

/// A stage between a source and those who read it, which adds what was asked for to the annotations of the
/// servers that it was asked of. Every other object keeps its `Arc`, and so do those until they change.
pub fn requests(
    source: watch::Receiver<Arc<Desired>>,
    stop: CancellationToken,
) -> (ReconcileRequests, watch::Receiver<Arc<Desired>>, impl Future<Output = ()>) {
    let (ask, asked) = watch::channel(OrdMap::new());
    let (sender, desired) = watch::channel(source.borrow().clone());
    let requests = ReconcileRequests(ask);
    let stage = RequestMerger { requests: requests.clone(), merged: HashMap::new() };
    (requests, desired, async move {
        stop.run_until_cancelled(stage.run(source, asked, sender)).await;
    })
}

struct RequestMerger {
    requests: ReconcileRequests,
    /// What was made of a declaration and of what was asked, as long as neither changes.
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
        mut asked: watch::Receiver<RequestedWork>,
        sender: watch::Sender<Arc<Desired>>,
    ) {
        loop {
            let desired = source.borrow_and_update().clone();
            let now = asked.borrow_and_update().clone();
            sender.send_replace(self.merge(desired, &now));
            tokio::select! {
                changed = source.changed() => if changed.is_err() { return },
                // Never closed: `forget` is one of its senders.
                _ = asked.changed() => {}
            }
        }
    }

    fn merge(&mut self, desired: Arc<Desired>, now: &RequestedWork) -> Arc<Desired> {
        let mut gone = Vec::new();
        let mut merged = None;
        for (key, asked) in now {
            let Some(declared) = desired.servers.get(key).filter(|server| server.meta.uid == asked.uid)
            else {
                // Before the first look nothing is there, and nothing is gone.
                if desired.source.synced {
                    gone.push(key.clone());
                }
                continue;
            };
            let known = self.merged.get(key);
            let known =
                known.filter(|made| Arc::ptr_eq(&made.declared, declared) && made.requested == *asked);
            let result = match known {
                Some(made) => made.result.clone(),
                None => with_annotations(declared, asked),
            };
            let made =
                MergedServer { declared: declared.clone(), requested: asked.clone(), result: result.clone() };
            self.merged.insert(key.clone(), made);
            let merged = merged
                .get_or_insert_with(|| Desired { requested_work: now.clone(), ..Desired::clone(&desired) });
            merged.servers.insert(key.clone(), result);
        }
        if !gone.is_empty() {
            self.discard_requests(&gone);
        }
        merged.map_or(desired, Arc::new)
    }

    fn discard_requests(&mut self, gone: &[ObjectKey]) {
        self.merged.retain(|key, _| !gone.contains(key));
        self.requests.0.send_if_modified(|asked| {
            for key in gone {
                asked.remove(key);
            }
            false
        });
    }
}

fn with_annotations(
    declared: &DeclaredObject<McpServerSpec>,
    asked: &RequestedAnnotations,
) -> Arc<DeclaredObject<McpServerSpec>> {
    let mut annotations = declared.meta.annotations.clone();
    annotations.extend(asked.values.iter().map(|(name, value)| ((*name).to_owned(), value.clone())));
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
        let (declare, source) = watch::channel(Arc::default());
        let stop = CancellationToken::new();
        let (requests, mut reader, stage) = requests(source, stop.clone());
        let task = tokio::spawn(stage);
        let first = desired(&["a", "b"]);
        declare.send(first.clone()).unwrap();
        let told = |desired: &Desired, name| {
            desired
                .servers
                .get(&key(name))
                .and_then(|server| server.meta.annotations.get(RECONCILE_REQUESTED_AT).cloned())
        };
        requests.submit(request("a", Some("1")));
        let asked = reader.wait_for(|now| told(now, "a").is_some()).await.unwrap().clone();
        assert!(Arc::ptr_eq(&asked.servers[&key("b")], &first.servers[&key("b")]));

        // Another object changes: what was made for this one stays.
        let mut second = Desired::clone(&first);
        second.servers.insert(key("c"), Arc::new(declared_server("c", 1)));
        declare.send(Arc::new(second)).unwrap();
        let third = reader.wait_for(|now| now.servers.len() == 3).await.unwrap().clone();
        assert!(Arc::ptr_eq(&asked.servers[&key("a")], &third.servers[&key("a")]));

        requests.submit(request("a", None));
        let back = reader.wait_for(|now| told(now, "a").is_none()).await.unwrap().clone();
        assert_eq!(back.servers.len(), 3);

        // Gone with its server, and not for another of that name.
        requests.submit(request("a", Some("2")));
        reader.wait_for(|now| told(now, "a").is_some()).await.unwrap();
        declare.send(desired(&["b"])).unwrap();
        reader.wait_for(|now| now.servers.len() == 1).await.unwrap();
        assert!(requests.0.borrow().is_empty());
        stop.cancel();
        task.await.unwrap();
    }
}
