use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use crate::fleet::{CacheUpdate, RestoredCache, ServerCache};
use crate::resource::{Desired, Digest};
use crate::state_dir::StateDir;

/// The file with the protocol eras of servers.
const ERAS_FILE: &str = "eras.json";
/// The directory of the servers' catalogs: one file for each, named by its connection digest.
const CATALOGS_DIR: &str = "catalogs";

/// The time for which updates are collected before they are written.
const WRITE_DELAY: Duration = Duration::from_millis(500);

/// The delay before a cleanup of undeclared servers, and the longest wait for startup to complete.
const CLEANUP_INTERVAL: Duration = Duration::from_secs(30);

/// Loads the cache of the last run. Blocks.
///
/// Entries that cannot be read are logged and left out. They are fetched again.
pub(super) fn load(state: &StateDir) -> RestoredCache {
    let mut cache = RestoredCache::default();
    if let Some(eras) = read_json(state, ERAS_FILE) {
        cache.eras = eras;
    }
    let files = state.list(CATALOGS_DIR).unwrap_or_else(|error| {
        tracing::warn!(%error, "cannot list the cached catalogs; they are fetched again");
        Vec::new()
    });
    for file in files {
        let digest = file
            .strip_prefix("catalogs/")
            .and_then(|name| name.strip_suffix(".json"))
            .and_then(|digits| Digest::try_from(format!("sha256:{digits}")).ok());
        if let Some(digest) = digest
            && let Some(server) = read_json(state, &file)
        {
            cache.catalogs.insert(digest, Arc::new(server));
        }
    }
    cache
}

/// Writes cache updates until `stop` is cancelled, then those received before that.
///
/// Waits until startup has settled, so that writing does not slow it down.
pub(super) async fn write_updates(
    state: Arc<StateDir>,
    mut updates: mpsc::UnboundedReceiver<CacheUpdate>,
    mut settled: watch::Receiver<bool>,
    stop: CancellationToken,
) {
    let startup = async { drop(settled.wait_for(|settled| *settled).await) };
    stop.run_until_cancelled(tokio::time::timeout(CLEANUP_INTERVAL, startup)).await;
    let mut batch = Vec::new();
    loop {
        let update = tokio::select! {
            update = updates.recv() => update,
            () = stop.cancelled() => updates.try_recv().ok(),
        };
        let Some(update) = update else { return };
        batch.push(update);
        // At startup, updates of all servers come at once and are written together.
        stop.run_until_cancelled(tokio::time::sleep(WRITE_DELAY)).await;
        // Many of them are older states of the same file.
        while let Ok(update) = updates.try_recv() {
            batch.push(update);
        }
        let (state, batch) = (state.clone(), std::mem::take(&mut batch));
        let result = tokio::task::spawn_blocking(move || write_batch(&state, &batch)).await;
        if let Err(error) = result {
            tracing::warn!(%error, "cannot write the server cache; servers are listed again at the next start");
        }
    }
}

/// Removes the cache entries of undeclared servers until `stop` is cancelled.
pub(super) async fn run_cleanup(
    state: Arc<StateDir>,
    cache: ServerCache,
    mut desired: watch::Receiver<Arc<Desired>>,
    stop: CancellationToken,
) {
    while let Some(Ok(())) = stop.run_until_cancelled(desired.changed()).await {
        // Frequent changes lead to one cleanup only.
        stop.run_until_cancelled(tokio::time::sleep(CLEANUP_INTERVAL)).await;
        let now = desired.borrow_and_update().clone();
        let (state, cache) = (state.clone(), cache.clone());
        let result = tokio::task::spawn_blocking(move || remove_undeclared(&state, &cache, &now)).await;
        if let Err(error) = result {
            tracing::warn!(%error, "cannot clean up the server cache");
        }
    }
}

/// Removes cache entries of undeclared servers. Does nothing while the source has faults: a missing server may still
/// be declared.
fn remove_undeclared(state: &StateDir, cache: &ServerCache, desired: &Desired) {
    if !desired.source.synced || !desired.source.problems.is_empty() {
        return;
    }
    // Without a secret, the connection digest of a server is unknown.
    let connections: Option<HashSet<_>> = desired
        .servers
        .values()
        .map(|declared| Some(declared.endpoint.as_ref()?.as_ref().ok()?.digest()))
        .collect();
    let Some(connections) = connections else { return };
    for digest in cache.retain(&connections) {
        if let Err(error) = state.remove(&catalog_file(digest)) {
            tracing::warn!(%error, "cannot remove the cached catalog of a removed server");
        }
    }
}

fn catalog_file(digest: Digest) -> String {
    format!("{CATALOGS_DIR}/{}.json", digest.hex_prefix(64))
}

fn write_batch(state: &StateDir, batch: &[CacheUpdate]) {
    let eras = batch.iter().rev().find_map(|update| match update {
        CacheUpdate::Eras(eras) => {
            Some((ERAS_FILE.to_owned(), serde_json::to_vec(&eras.iter().collect::<BTreeMap<_, _>>())))
        }
        CacheUpdate::Catalog(..) => None,
    });
    let catalogs = batch.iter().filter_map(|update| match update {
        CacheUpdate::Catalog(digest, server) => Some((catalog_file(*digest), serde_json::to_vec(&**server))),
        CacheUpdate::Eras(_) => None,
    });
    for (file, bytes) in eras.into_iter().chain(catalogs) {
        match bytes {
            Ok(bytes) => {
                if let Err(error) = state.write(&file, &bytes) {
                    tracing::warn!(%error, "cannot write the server cache; servers are listed again at the next start");
                }
            }
            Err(error) => {
                tracing::warn!(
                    %error,
                    file,
                    "cannot write the server cache; servers are listed again at the next start"
                );
            }
        }
    }
}

fn read_json<T: serde::de::DeserializeOwned>(state: &StateDir, file: &str) -> Option<T> {
    let bytes = state.read(file).unwrap_or_else(|error| {
        tracing::warn!(%error, "cannot read the server cache");
        None
    })?;
    serde_json::from_slice(&bytes)
        .map_err(|error| tracing::warn!(%error, file, "the server cache is damaged; the file is ignored"))
        .ok()
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;
    use crate::fleet::CachedServer;
    use crate::resource::testing::declared_server;
    use crate::resource::{Problem, Reason, SourceProblem, SourceState};
    use crate::upstream::{Item, ServerLists};
    use crate::wire::{Era, ListKind};

    fn cached_server() -> Arc<CachedServer> {
        Arc::new(CachedServer {
            description: Arc::default(),
            lists: Arc::new(ServerLists {
                tools: vec![
                    Item::parse(ListKind::Tools, r#"{"name":"t","inputSchema":{"type":"object"}}"#).unwrap(),
                ],
                ..ServerLists::default()
            }),
        })
    }

    #[test]
    fn undeclared_servers_are_removed_after_a_complete_scan() {
        let home = tempfile::tempdir().unwrap();
        let state = StateDir::open(home.path(), std::path::Path::new("/fleet")).unwrap();
        let (declared_one, removed) = (declared_server("here", 1), Digest::of(b"gone"));
        let digest = declared_one.endpoint.as_ref().unwrap().as_ref().unwrap().digest();
        write_batch(
            &state,
            &[CacheUpdate::Catalog(digest, cached_server()), CacheUpdate::Catalog(removed, cached_server())],
        );
        let cache = ServerCache::new(load(&state), mpsc::unbounded_channel().0);
        let files = || load(&state).catalogs.len();

        let mut desired = Desired::default();
        remove_undeclared(&state, &cache, &desired);
        let fault = SourceProblem::new(None, Problem::new(Reason::SourceUnavailable, "away"));
        desired.source =
            Arc::new(SourceState { synced: true, problems: vec![fault], ..SourceState::default() });
        remove_undeclared(&state, &cache, &desired);
        assert_eq!(files(), 2, "a missing server may still be declared while the source has faults");

        desired.source = Arc::new(SourceState { synced: true, ..SourceState::default() });
        desired.servers.insert(declared_one.meta.key.clone(), Arc::new(declared_one));
        remove_undeclared(&state, &cache, &desired);
        assert_eq!(load(&state).catalogs.keys().collect::<Vec<_>>(), [&digest]);
    }

    #[tokio::test]
    async fn cache_survives_a_restart() {
        let home = tempfile::tempdir().unwrap();
        let state = Arc::new(StateDir::open(home.path(), std::path::Path::new("/fleet")).unwrap());
        let (sender, updates) = mpsc::unbounded_channel();
        let (digest, other) = (Digest::of(b"one"), Digest::of(b"other"));
        let server = cached_server();
        sender.send(CacheUpdate::Eras([(other, Era::Legacy)].into_iter().collect())).unwrap();
        sender.send(CacheUpdate::Catalog(digest, server.clone())).unwrap();
        sender.send(CacheUpdate::Eras([(digest, Era::Modern)].into_iter().collect())).unwrap();
        // Updates sent before `stop` are written.
        let stop = CancellationToken::new();
        stop.cancel();
        write_updates(state.clone(), updates, watch::channel(false).1, stop).await;

        let restored = load(&state);
        assert_eq!(restored.eras, HashMap::from([(digest, Era::Modern)]));
        assert_eq!(restored.catalogs[&digest], server);

        state.write(ERAS_FILE, b"nonsense").unwrap();
        state.write("catalogs/nonsense", b"nonsense").unwrap();
        let restored = load(&state);
        assert!(restored.eras.is_empty());
        assert_eq!(restored.catalogs.len(), 1);
    }
}
