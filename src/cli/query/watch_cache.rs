use std::collections::BTreeMap;

use hyper::Method;
use serde_json::Value;

use super::super::client::{ResponseLines, StatusClient};
use super::super::error::CommandError;
use super::super::instance::Instance;
use super::object_arg::{ListQuery, WatchLine, items, object_name, text_at};
use crate::report::ObjectKind;

/// The objects of one kind in one namespace or all, as the daemon has them, kept up to date by a watch.
#[derive(Debug)]
pub(in crate::cli) struct WatchCache {
    lines: ResponseLines,
    objects: BTreeMap<(String, String), Value>,
    /// Its connection, which carries the watch.
    _client: StatusClient,
}

impl WatchCache {
    /// Begins with everything there is.
    pub async fn open(
        whose: &Instance,
        kind: ObjectKind,
        namespace: Option<&str>,
    ) -> Result<Self, CommandError> {
        let mut client = StatusClient::connect(whose).await?;
        let query = ListQuery::new(kind, namespace);
        let list: Value = client.get(&query.path()).await?;
        let version = text_at(&list, "/metadata/resourceVersion").to_owned();
        let objects = items(&list).iter().map(|item| (object_key(item), item.clone())).collect();
        let query = query.with_parameter("watch", "true").with_parameter("resourceVersion", version);
        let body = client.send(Method::GET, &query.path(), "application/json", None).await?;
        Ok(Self { lines: ResponseLines::new(body), objects, _client: client })
    }

    /// The objects, in the order of namespaces and names.
    pub fn objects(&self) -> impl Iterator<Item = &Value> {
        self.objects.values()
    }

    /// One of them.
    pub fn get(&self, namespace: &str, name: &str) -> Option<&Value> {
        self.objects.get(&(namespace.to_owned(), name.to_owned()))
    }

    /// Waits for the next change. Cancel safe.
    pub async fn changed(&mut self) -> Result<(), CommandError> {
        let WatchLine { event_type: kind, object } = WatchLine::next(&mut self.lines).await?;
        match &*kind {
            "ADDED" | "MODIFIED" => {
                self.objects.insert(object_key(&object), object);
            }
            "DELETED" => {
                self.objects.remove(&object_key(&object));
            }

            _ => {}
        }
        Ok(())
    }
}

/// An object without a namespace is found under the empty one.
fn object_key(object: &Value) -> (String, String) {
    let namespace = text_at(object, "/metadata/namespace");
    (namespace.to_owned(), object_name(object).to_owned())
}
