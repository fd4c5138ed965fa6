use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use crate::fleet::{CacheUpdate, RestoredCache, ServerCache};
use crate::resource::{Desired, Digest};
use crate::state_dir::StateDir;

/// The eras of servers, in one file.
const ERAS_FILE: &str = "eras.json";
/// Catalogs of servers, a file for each, named by the connection digest.
const CATALOGS_DIR: &str = "catalogs";

/// How long news is collected before it is written.
const WRITE_DELAY: Duration = Duration::from_millis(500);

/// The time between two looks for what is declared no more.
const CLEANUP_INTERVAL: Duration = Duration::from_secs(30);

/// What the fleet knew at the last run. Blocks.
///
/// What cannot be read is left out, and said: it is only learned again.
pub(super) fn load(state: &StateDir) -> RestoredCache {
    let mut known = RestoredCache::default();
    if let Some(eras) = read_json(state, ERAS_FILE) {
        known.eras = eras;
    }
    let files = state.list(CATALOGS_DIR).unwrap_or_else(|error| {
        tracing::warn!(%error, "what servers offered before is not known");
        Vec::new()
    });
    for file in files {
        let digest = file
            .strip_prefix("catalogs/")
            .and_then(|name| name.strip_suffix(".json"))
            .and_then(|digits| Digest::try_from(format!("sha256:{digits}")).ok());
        if let Some(digest) = digest
            && let Some(kept) = read_json(state, &file)
        {
            known.catalogs.insert(digest, Arc::new(kept));
        }
    }
    known
}

/// Writes down what the fleet learns, until it is stopped; during the start nothing, so that it takes no time from it.
pub(super) async fn write_updates(
    state: Arc<StateDir>,
    mut news: mpsc::UnboundedReceiver<CacheUpdate>,
    mut settled: watch::Receiver<bool>,
    stop: CancellationToken,
) {
    let started = async { drop(settled.wait_for(|settled| *settled).await) };
    stop.run_until_cancelled(tokio::time::timeout(CLEANUP_INTERVAL, started)).await;
    let mut batch = Vec::new();
    loop {
        let learned = tokio::select! {
            learned = news.recv() => learned,
            () = stop.cancelled() => news.try_recv().ok(),
        };
        let Some(learned) = learned else { return };
        batch.push(learned);
        // A start learns of all servers at once: one write does for them.
        stop.run_until_cancelled(tokio::time::sleep(WRITE_DELAY)).await;
        // Of many, most are older states of one file.
        while let Ok(learned) = news.try_recv() {
            batch.push(learned);
        }
        let (state, batch) = (state.clone(), std::mem::take(&mut batch));
        let written = tokio::task::spawn_blocking(move || write_batch(&state, &batch)).await;
        if let Err(error) = written {
            tracing::warn!(%error, "what was learned of servers is not kept");
        }
    }
}

/// Forgets what was learned of declarations that are gone, until it is stopped.
pub(super) async fn run_cleanup(
    state: Arc<StateDir>,
    memory: ServerCache,
    mut desired: watch::Receiver<Arc<Desired>>,
    stop: CancellationToken,
) {
    while let Some(Ok(())) = stop.run_until_cancelled(desired.changed()).await {
        // What changes often is looked through once.
        stop.run_until_cancelled(tokio::time::sleep(CLEANUP_INTERVAL)).await;
        let now = desired.borrow_and_update().clone();
        let (state, memory) = (state.clone(), memory.clone());
        let done = tokio::task::spawn_blocking(move || remove_undeclared(&state, &memory, &now)).await;
        if let Err(error) = done {
            tracing::warn!(%error, "what was learned of servers that are gone is not forgotten");
        }
    }
}

/// Does nothing while something cannot be read: what is missing then may be declared all the same.
fn remove_undeclared(state: &StateDir, memory: &ServerCache, desired: &Desired) {
    if !desired.source.synced || !desired.source.problems.is_empty() {
        return;
    }
    // Where a secret is missing it is not known which connection is meant.
    let connections: Option<HashSet<_>> = desired
        .servers
        .values()
        .map(|declared| Some(declared.endpoint.as_ref()?.as_ref().ok()?.digest()))
        .collect();
    let Some(connections) = connections else { return };
    for digest in memory.retain(&connections) {
        if let Err(error) = state.remove(&catalog_file(digest)) {
            tracing::warn!(%error, "what was learned of a server that is gone is not forgotten");
        }
    }
}

fn catalog_file(digest: Digest) -> String {
    format!("{CATALOGS_DIR}/{}.json", digest.hex_prefix(64))
}

fn write_batch(state: &StateDir, batch: &[CacheUpdate]) {
    let eras = batch.iter().rev().find_map(|news| match news {
        CacheUpdate::Eras(eras) => {
            Some((ERAS_FILE.to_owned(), serde_json::to_vec(&eras.iter().collect::<BTreeMap<_, _>>())))
        }
        CacheUpdate::Catalog(..) => None,
    });
    let catalogs = batch.iter().filter_map(|news| match news {
        CacheUpdate::Catalog(digest, kept) => Some((catalog_file(*digest), serde_json::to_vec(&**kept))),
        CacheUpdate::Eras(_) => None,
    });
    for (file, bytes) in eras.into_iter().chain(catalogs) {
        match bytes {
            Ok(bytes) => {
                if let Err(error) = state.write(&file, &bytes) {
                    tracing::warn!(%error, "what was learned of servers is not kept");
                }
            }
            Err(error) => tracing::warn!(%error, file, "what was learned of servers is not kept"),
        }
    }
}

fn read_json<T: serde::de::DeserializeOwned>(state: &StateDir, file: &str) -> Option<T> {
    let bytes = state.read(file).unwrap_or_else(|error| {
        tracing::warn!(%error, "what was known of servers cannot be read");
        None
    })?;
    serde_json::from_slice(&bytes)
        .map_err(|error| tracing::warn!(%error, file, "what was known of servers is damaged"))
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
                tools: vec![Item::parse(ListKind::Tools, r#"{"name":"t"}"#).unwrap()],
                ..ServerLists::default()
            }),
        })
    }

    #[test]
    fn undeclared_servers_are_removed_after_a_complete_scan() {
        let home = tempfile::tempdir().unwrap();
        let state = StateDir::open(home.path(), std::path::Path::new("/fleet")).unwrap();
        let (here, gone) = (declared_server("here", 1), Digest::of(b"gone"));
        let digest = here.endpoint.as_ref().unwrap().as_ref().unwrap().digest();
        write_batch(
            &state,
            &[CacheUpdate::Catalog(digest, cached_server()), CacheUpdate::Catalog(gone, cached_server())],
        );
        let memory = ServerCache::new(load(&state), mpsc::unbounded_channel().0);
        let files = || load(&state).catalogs.len();

        let mut desired = Desired::default();
        remove_undeclared(&state, &memory, &desired);
        let fault = SourceProblem::new(None, Problem::new(Reason::SourceUnavailable, "away"));
        desired.source =
            Arc::new(SourceState { synced: true, problems: vec![fault], ..SourceState::default() });
        remove_undeclared(&state, &memory, &desired);
        assert_eq!(files(), 2, "what is missing may be declared all the same");

        desired.source = Arc::new(SourceState { synced: true, ..SourceState::default() });
        desired.servers.insert(here.meta.key.clone(), Arc::new(here));
        remove_undeclared(&state, &memory, &desired);
        assert_eq!(load(&state).catalogs.keys().collect::<Vec<_>>(), [&digest]);
    }

    #[tokio::test]
    async fn cache_survives_a_restart() {
        let home = tempfile::tempdir().unwrap();
        let state = Arc::new(StateDir::open(home.path(), std::path::Path::new("/fleet")).unwrap());
        let (tell, news) = mpsc::unbounded_channel();
        let (digest, other) = (Digest::of(b"one"), Digest::of(b"other"));
        let kept = cached_server();
        tell.send(CacheUpdate::Eras([(other, Era::Legacy)].into_iter().collect())).unwrap();
        tell.send(CacheUpdate::Catalog(digest, kept.clone())).unwrap();
        tell.send(CacheUpdate::Eras([(digest, Era::Modern)].into_iter().collect())).unwrap();
        // What was told before the end is written all the same.
        let stop = CancellationToken::new();
        stop.cancel();
        write_updates(state.clone(), news, watch::channel(false).1, stop).await;

        let known = load(&state);
        assert_eq!(known.eras, HashMap::from([(digest, Era::Modern)]));
        assert_eq!(known.catalogs[&digest], kept);

        state.write(ERAS_FILE, b"nonsense").unwrap();
        state.write("catalogs/nonsense", b"nonsense").unwrap();
        let known = load(&state);
        assert!(known.eras.is_empty());
        assert_eq!(known.catalogs.len(), 1);
    }
}
