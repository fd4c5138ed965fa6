use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use tokio::sync::mpsc;

use crate::resource::Digest;
use crate::upstream::{Item, ServerLists, read_item};
use crate::wire::{Era, ListKind, ServerDescription};

/// The eras and lists of servers, kept across restarts. Cheap to clone.
///
/// Holds no secret: eras and catalogs are stored by the connection digest, which is keyed itself. The receiver of the
/// [`CacheUpdate`]s writes them to disk.
#[derive(Clone, Debug)]
pub struct ServerCache(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    contents: Mutex<CacheContents>,
    updates: mpsc::UnboundedSender<CacheUpdate>,
}

/// The cached data. The eras are a persistent map, so that an update with all eras needs no copy.
#[derive(Debug)]
struct CacheContents {
    eras: imbl::HashMap<Digest, Era>,
    catalogs: HashMap<Digest, Arc<CachedServer>>,
}

/// The contents of the cache at the end of the last run.
#[derive(Clone, Debug, Default)]
pub struct RestoredCache {
    /// The era of each server, by connection digest: a server is probed once.
    pub eras: HashMap<Digest, Era>,
    /// The lists of each server, by connection digest: they are published before the server is connected again.
    pub catalogs: HashMap<Digest, Arc<CachedServer>>,
}

/// A change of the cache, to be written to disk.
#[derive(Clone, Debug)]
pub enum CacheUpdate {
    /// All eras, one of which changed.
    Eras(imbl::HashMap<Digest, Era>),
    /// The new catalog of a connection.
    Catalog(Digest, Arc<CachedServer>),
}

/// A server's description and lists at its last connection.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(into = "CachedServerFile", from = "CachedServerFile")]
pub struct CachedServer {
    /// The server's description of itself.
    pub description: Arc<ServerDescription>,
    /// The server's lists.
    pub lists: Arc<ServerLists>,
}

/// The file format of [`CachedServer`]: items are stored as the server's own JSON.
#[derive(Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct CachedServerFile {
    about: Arc<ServerDescription>,
    tools: Vec<Box<RawValue>>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    prompts: Vec<Box<RawValue>>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    resources: Vec<Box<RawValue>>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    templates: Vec<Box<RawValue>>,
}

impl ServerCache {
    /// Creates a cache with the contents of the last run; `updates` receives changes from now on.
    pub fn new(restored: RestoredCache, updates: mpsc::UnboundedSender<CacheUpdate>) -> Self {
        let RestoredCache { eras, catalogs } = restored;
        let contents = CacheContents { eras: eras.into_iter().collect(), catalogs };
        Self(Arc::new(Inner { contents: Mutex::new(contents), updates }))
    }

    pub(super) fn era(&self, connection: Digest) -> Option<Era> {
        self.0.contents.lock().eras.get(&connection).copied()
    }

    pub(super) fn store_era(&self, connection: Digest, era: Era) {
        let mut contents = self.0.contents.lock();
        if contents.eras.insert(connection, era) != Some(era) {
            self.send_update(CacheUpdate::Eras(contents.eras.clone()));
        }
    }

    /// Removes an era that did not work, so that the next attempt probes.
    pub(super) fn remove_era(&self, connection: Digest) {
        let mut contents = self.0.contents.lock();
        if contents.eras.remove(&connection).is_some() {
            self.send_update(CacheUpdate::Eras(contents.eras.clone()));
        }
    }

    pub(super) fn catalog(&self, connection: Digest) -> Option<Arc<CachedServer>> {
        self.0.contents.lock().catalogs.get(&connection).cloned()
    }

    pub(super) fn store_catalog(&self, connection: Digest, server: Arc<CachedServer>) {
        let mut contents = self.0.contents.lock();
        if contents
            .catalogs
            .get(&connection)
            .is_some_and(|cached| Arc::ptr_eq(cached, &server) || *cached == server)
        {
            return;
        }
        contents.catalogs.insert(connection, server.clone());
        self.send_update(CacheUpdate::Catalog(connection, server));
    }

    /// Removes all connections except these. Returns those whose catalogs were removed.
    pub fn retain(&self, declared: &HashSet<Digest>) -> Vec<Digest> {
        let mut contents = self.0.contents.lock();
        let eras = contents.eras.len();
        contents.eras.retain(|connection, _| declared.contains(connection));
        if contents.eras.len() < eras {
            self.send_update(CacheUpdate::Eras(contents.eras.clone()));
        }
        contents
            .catalogs
            .extract_if(|digest, _| !declared.contains(digest))
            .map(|(digest, _)| digest)
            .collect()
    }

    fn send_update(&self, update: CacheUpdate) {
        // Without a receiver the cache lasts for this run only.
        let _ = self.0.updates.send(update);
    }
}

impl From<CachedServer> for CachedServerFile {
    fn from(server: CachedServer) -> Self {
        let raw = |item: &Item| RawValue::from_string(item.raw().to_owned()).ok();
        let items = |list| server.lists.items(list).iter().filter_map(raw).collect();
        Self {
            tools: items(ListKind::Tools),
            prompts: items(ListKind::Prompts),
            resources: items(ListKind::Resources),
            templates: items(ListKind::Templates),
            about: server.description,
        }
    }
}

impl From<CachedServerFile> for CachedServer {
    /// Applies the rules for items again: the file may be older than a rule.
    fn from(file: CachedServerFile) -> Self {
        let items = |list: ListKind, entries: Vec<Box<RawValue>>| {
            let read = |entry: Box<RawValue>| Some(read_item(list, entry.get()).ok()?.item);
            entries.into_iter().filter_map(read).collect()
        };
        let lists = ServerLists {
            tools: items(ListKind::Tools, file.tools),
            prompts: items(ListKind::Prompts, file.prompts),
            resources: items(ListKind::Resources, file.resources),
            templates: items(ListKind::Templates, file.templates),
        };
        Self { description: file.about, lists: Arc::new(lists) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cached_server_round_trips_byte_for_byte() {
        let item = |list, entry| vec![Item::parse(list, entry).unwrap()];
        let server = CachedServer {
            description: Arc::new(ServerDescription {
                instructions: Some("Ask first.".into()),
                ..ServerDescription::default()
            }),
            lists: Arc::new(ServerLists {
                tools: item(ListKind::Tools, r#"{"name":"t", "x": 1.0e+2,"inputSchema":{"type":"object"}}"#),
                templates: item(ListKind::Templates, r#"{"uriTemplate":"x:{y}", "x": 1.0e+2,"name":"n"}"#),
                ..ServerLists::default()
            }),
        };
        let text = serde_json::to_string(&server).unwrap();
        assert_eq!(serde_json::from_str::<CachedServer>(&text).unwrap(), server);
    }

    #[test]
    fn item_that_breaks_a_newer_rule_is_left_out() {
        let file = r#"{"about":{"serverInfo":{"name":"s","version":"1"},"protocolVersion":"2025-11-25"},
            "tools":[{"name":"a"},{"name":"b","inputSchema":{"type":"object"}}]}"#;
        let server: CachedServer = serde_json::from_str(file).unwrap();
        let names: Vec<_> = server.lists.tools.iter().map(|tool| &**tool.name()).collect();
        assert_eq!(names, ["b"]);
    }

    #[test]
    fn only_changes_are_sent() {
        let (updates, mut received) = mpsc::unbounded_channel();
        let cache = ServerCache::new(RestoredCache::default(), updates);
        let digest = Digest::of(b"x");
        cache.store_era(digest, Era::Legacy);
        cache.store_era(digest, Era::Legacy);
        cache.remove_era(digest);
        cache.remove_era(digest);
        assert!(matches!(received.try_recv(), Ok(CacheUpdate::Eras(eras)) if eras.len() == 1));
        assert!(matches!(received.try_recv(), Ok(CacheUpdate::Eras(eras)) if eras.is_empty()));
        assert!(received.try_recv().is_err());
    }
}
