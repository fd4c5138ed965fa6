use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use tokio::sync::mpsc;

use crate::resource::Digest;
use crate::upstream::{Item, ServerLists};
use crate::wire::{Era, ListKind, ServerDescription};

/// What was learned of servers and is worth keeping across restarts. Cheap to clone.
///
/// Holds no secret: eras and catalogs are kept by the connection digest, which is keyed itself. Whoever made it writes
/// the [`CacheUpdate`] down.
#[derive(Clone, Debug)]
pub struct ServerCache(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    contents: Mutex<CacheContents>,
    updates: mpsc::UnboundedSender<CacheUpdate>,
}

/// What is remembered now. The eras are a persistent map: telling of one more costs no copy of all.
#[derive(Debug)]
struct CacheContents {
    eras: imbl::HashMap<Digest, Era>,
    catalogs: HashMap<Digest, Arc<CachedServer>>,
}

/// Everything that was remembered at the last run.
#[derive(Clone, Debug, Default)]
pub struct RestoredCache {
    /// The era that a server was found to speak, by connection digest: a server is probed once.
    pub eras: HashMap<Digest, Era>,
    /// Everything that a server lists, by connection digest, so that it is offered before it is connected again.
    pub catalogs: HashMap<Digest, Arc<CachedServer>>,
}

/// Something to write down.
#[derive(Clone, Debug)]
pub enum CacheUpdate {
    /// All eras, one of which is new.
    Eras(imbl::HashMap<Digest, Era>),
    /// A catalog.
    Catalog(Digest, Arc<CachedServer>),
}

/// What a server told of itself when it was connected last.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(into = "CachedServerFile", try_from = "CachedServerFile")]
pub struct CachedServer {
    /// Its own words.
    pub description: Arc<ServerDescription>,
    /// Everything it lists.
    pub lists: Arc<ServerLists>,
}

/// [`CachedServer`] as it is written: items stay the JSON that they are.
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
    /// A memory of what was known at the last run; `news` gets what is learned from now on.
    pub fn new(known: RestoredCache, news: mpsc::UnboundedSender<CacheUpdate>) -> Self {
        let RestoredCache { eras, catalogs } = known;
        let shelf = CacheContents { eras: eras.into_iter().collect(), catalogs };
        Self(Arc::new(Inner { contents: Mutex::new(shelf), updates: news }))
    }

    pub(super) fn era(&self, connection: Digest) -> Option<Era> {
        self.0.contents.lock().eras.get(&connection).copied()
    }

    pub(super) fn store_era(&self, connection: Digest, era: Era) {
        let mut known = self.0.contents.lock();
        if known.eras.insert(connection, era) != Some(era) {
            self.send_update(CacheUpdate::Eras(known.eras.clone()));
        }
    }

    /// Forgets an era that did not work, so that the next attempt probes.
    pub(super) fn remove_era(&self, connection: Digest) {
        let mut known = self.0.contents.lock();
        if known.eras.remove(&connection).is_some() {
            self.send_update(CacheUpdate::Eras(known.eras.clone()));
        }
    }

    pub(super) fn catalog(&self, connection: Digest) -> Option<Arc<CachedServer>> {
        self.0.contents.lock().catalogs.get(&connection).cloned()
    }

    pub(super) fn store_catalog(&self, connection: Digest, kept: Arc<CachedServer>) {
        let mut known = self.0.contents.lock();
        if known.catalogs.get(&connection).is_some_and(|before| Arc::ptr_eq(before, &kept) || *before == kept)
        {
            return;
        }
        known.catalogs.insert(connection, kept.clone());
        self.send_update(CacheUpdate::Catalog(connection, kept));
    }

    /// Forgets all connections but these; gives those whose catalogs it forgot.
    pub fn retain(&self, declared: &HashSet<Digest>) -> Vec<Digest> {
        let mut known = self.0.contents.lock();
        let eras = known.eras.len();
        known.eras.retain(|connection, _| declared.contains(connection));
        if known.eras.len() < eras {
            self.send_update(CacheUpdate::Eras(known.eras.clone()));
        }
        known.catalogs.extract_if(|digest, _| !declared.contains(digest)).map(|(digest, _)| digest).collect()
    }

    fn send_update(&self, news: CacheUpdate) {
        // Nobody writes it down: it is remembered for this run.
        let _ = self.0.updates.send(news);
    }
}

impl From<CachedServer> for CachedServerFile {
    fn from(kept: CachedServer) -> Self {
        let raw = |item: &Item| RawValue::from_string(item.raw().to_owned()).ok();
        let written = |list| kept.lists.items(list).iter().filter_map(raw).collect();
        Self {
            tools: written(ListKind::Tools),
            prompts: written(ListKind::Prompts),
            resources: written(ListKind::Resources),
            templates: written(ListKind::Templates),
            about: kept.description,
        }
    }
}

impl TryFrom<CachedServerFile> for CachedServer {
    type Error = String;

    fn try_from(written: CachedServerFile) -> Result<Self, String> {
        let items = |list: ListKind, entries: Vec<Box<RawValue>>| {
            let read = |entry: Box<RawValue>| {
                Item::parse(list, entry.get()).map_err(|why| format!("a {}: {why}", list.item_noun()))
            };
            entries.into_iter().map(read).collect::<Result<_, _>>()
        };
        let lists = ServerLists {
            tools: items(ListKind::Tools, written.tools)?,
            prompts: items(ListKind::Prompts, written.prompts)?,
            resources: items(ListKind::Resources, written.resources)?,
            templates: items(ListKind::Templates, written.templates)?,
        };
        Ok(Self { description: written.about, lists: Arc::new(lists) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cached_server_round_trips_byte_for_byte() {
        let item = |list, entry| vec![Item::parse(list, entry).unwrap()];
        let kept = CachedServer {
            description: Arc::new(ServerDescription {
                instructions: Some("Ask first.".into()),
                ..ServerDescription::default()
            }),
            lists: Arc::new(ServerLists {
                tools: item(ListKind::Tools, r#"{"name":"t", "x": 1.0e+2}"#),
                templates: item(ListKind::Templates, r#"{"uriTemplate":"x:{y}", "x": 1.0e+2}"#),
                ..ServerLists::default()
            }),
        };
        let text = serde_json::to_string(&kept).unwrap();
        assert_eq!(serde_json::from_str::<CachedServer>(&text).unwrap(), kept);
    }

    #[test]
    fn only_changes_are_sent() {
        let (news, mut told) = mpsc::unbounded_channel();
        let memory = ServerCache::new(RestoredCache::default(), news);
        let digest = Digest::of(b"x");
        memory.store_era(digest, Era::Legacy);
        memory.store_era(digest, Era::Legacy);
        memory.remove_era(digest);
        memory.remove_era(digest);
        assert!(matches!(told.try_recv(), Ok(CacheUpdate::Eras(eras)) if eras.len() == 1));
        assert!(matches!(told.try_recv(), Ok(CacheUpdate::Eras(eras)) if eras.is_empty()));
        assert!(told.try_recv().is_err());
    }
}
