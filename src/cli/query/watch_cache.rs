use std::collections::BTreeMap;

use hyper::Method;
use serde_json::Value;

use super::super::client::{ResponseLines, StatusClient};
use super::super::error::CommandError;
use super::super::instance::Instance;
use super::object_arg::{ListQuery, WatchLine, items, object_name, text_at};
use crate::report::ObjectKind;

/// The objects of one kind in one namespace or all, kept up to date by a watch of the instance.
#[derive(Debug)]
pub(in crate::cli) struct WatchCache {
    lines: ResponseLines,
    objects: BTreeMap<(String, String), Value>,
    /// The connection of the watch.
    _client: StatusClient,
}

impl WatchCache {
    /// Lists the existing objects and starts a watch.
    pub async fn open(
        instance: &Instance,
        kind: ObjectKind,
        namespace: Option<&str>,
    ) -> Result<Self, CommandError> {
        let mut client = StatusClient::connect(instance).await?;
        let query = ListQuery::new(kind, namespace);
        let list: Value = client.get(&query.path()).await?;
        let version = text_at(&list, "/metadata/resourceVersion").to_owned();
        let objects = items(&list).iter().map(|item| (object_key(item), item.clone())).collect();
        let query = query.with_parameter("watch", "true").with_parameter("resourceVersion", version);
        let body = client.send(Method::GET, &query.path(), "application/json", None).await?;
        Ok(Self { lines: ResponseLines::new(body), objects, _client: client })
    }

    /// Returns the objects, ordered by namespace and name.
    pub fn objects(&self) -> impl Iterator<Item = &Value> {
        self.objects.values()
    }

    /// Returns one object.
    pub fn get(&self, namespace: &str, name: &str) -> Option<&Value> {
        self.objects.get(&(namespace.to_owned(), name.to_owned()))
    }

    /// Waits for the next event and applies it. Cancel safe.
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

/// Returns the key of an object; the namespace is empty for cluster-scoped objects.
fn object_key(object: &Value) -> (String, String) {
    let namespace = text_at(object, "/metadata/namespace");
    (namespace.to_owned(), object_name(object).to_owned())
}
