use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use crate::fleet::{CacheUpdate, RestoredCache, ServerCache};
use crate::resource::{Desired, Digest};
use crate::state_dir::StateDir;

/// The eras of servers, in one file.
const ERAS: &str = "eras.json";
/// Catalogs of servers, a file for each, named by the connection digest.
const CATALOGS: &str = "catalogs";

/// How long news is collected before it is written.
const PAUSE: Duration = Duration::from_millis(500);

/// The time between two looks for what is declared no more.
const LEISURE: Duration = Duration::from_secs(30);

/// What the fleet knew at the last run. Blocks.
///
/// What cannot be read is left out, and said: it is only learned again.
pub(super) fn load(state: &StateDir) -> RestoredCache {
    let mut known = RestoredCache::default();
    if let Some(eras) = read(state, ERAS) {
        known.eras = eras;
    }
    let files = state.list(CATALOGS).unwrap_or_else(|error| {
        tracing::warn!(%error, "what servers offered before is not known");
        Vec::new()
    });
    for file in files {
        let digest = file
            .strip_prefix("catalogs/")
            .and_then(|name| name.strip_suffix(".json"))
            .and_then(|digits| Digest::try_from(format!("sha256:{digits}")).ok());
        if let Some(digest) = digest
            && let Some(kept) = read(state, &file)
        {
            known.catalogs.insert(digest, Arc::new(kept));
        }
    }
    known
}

/// Writes down what the fleet learns, until it is stopped; during the start nothing, so that it takes no time from it.
pub(super) async fn keep(
    state: Arc<StateDir>,
    mut news: mpsc::UnboundedReceiver<CacheUpdate>,
    mut settled: watch::Receiver<bool>,
    stop: CancellationToken,
) {
    let started = async { drop(settled.wait_for(|settled| *settled).await) };
    stop.run_until_cancelled(tokio::time::timeout(LEISURE, started)).await;
    let mut batch = Vec::new();
    loop {
        let learned = tokio::select! {
            learned = news.recv() => learned,
            () = stop.cancelled() => news.try_recv().ok(),
        };
        let Some(learned) = learned else { return };
        batch.push(learned);
        // A start learns of all servers at once: one write does for them.
        stop.run_until_cancelled(tokio::time::sleep(PAUSE)).await;
        // Of many, most are older states of one file.
        while let Ok(learned) = news.try_recv() {
            batch.push(learned);
        }
        let (state, batch) = (state.clone(), std::mem::take(&mut batch));
        let written = tokio::task::spawn_blocking(move || write(&state, &batch)).await;
        if let Err(error) = written {
            tracing::warn!(%error, "what was learned of servers is not kept");
        }
    }
}

/// Forgets what was learned of declarations that are gone, until it is stopped.
pub(super) async fn forget(
    state: Arc<StateDir>,
    memory: ServerCache,
    mut desired: watch::Receiver<Arc<Desired>>,
    stop: CancellationToken,
) {
    while let Some(Ok(())) = stop.run_until_cancelled(desired.changed()).await {
        // What changes often is looked through once.
        stop.run_until_cancelled(tokio::time::sleep(LEISURE)).await;
        let now = desired.borrow_and_update().clone();
        let (state, memory) = (state.clone(), memory.clone());
        let done = tokio::task::spawn_blocking(move || forget_undeclared(&state, &memory, &now)).await;
        if let Err(error) = done {
            tracing::warn!(%error, "what was learned of servers that are gone is not forgotten");
        }
    }
}

/// Does nothing while something cannot be read: what is missing then may be declared all the same.
fn forget_undeclared(state: &StateDir, memory: &ServerCache, desired: &Desired) {
    if !desired.source.synced || !desired.source.faults.is_empty() {
        return;
    }
    // Where a secret is missing it is not known which connection is meant.
    let connections: Option<HashSet<_>> = desired
        .servers
        .values()
        .map(|declared| Some(declared.endpoint.as_ref()?.as_ref().ok()?.digest()))
        .collect();
    let Some(connections) = connections else { return };
    for digest in memory.keep_only(&connections) {
        if let Err(error) = state.remove(&file_of(digest)) {
            tracing::warn!(%error, "what was learned of a server that is gone is not forgotten");
        }
    }
}

fn file_of(digest: Digest) -> String {
    format!("{CATALOGS}/{}.json", digest.short(64))
}

fn write(state: &StateDir, batch: &[CacheUpdate]) {
    let eras = batch.iter().rev().find_map(|news| match news {
        CacheUpdate::Eras(eras) => {
            Some((ERAS.to_owned(), serde_json::to_vec(&eras.iter().collect::<BTreeMap<_, _>>())))
        }
        CacheUpdate::Catalog(..) => None,
    });
    let catalogs = batch.iter().filter_map(|news| match news {
        CacheUpdate::Catalog(digest, kept) => Some((file_of(*digest), serde_json::to_vec(&**kept))),
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

fn read<T: serde::de::DeserializeOwned>(state: &StateDir, file: &str) -> Option<T> {
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
    use crate::resource::testing::declared;
    use crate::resource::{Problem, Reason, SourceProblem, SourceState};
    use crate::upstream::{Item, ServerLists};
    use crate::wire::{Era, ListKind};

    fn offer() -> Arc<CachedServer> {
        Arc::new(CachedServer {
            about: Arc::default(),
            lists: Arc::new(ServerLists {
                tools: vec![Item::read(ListKind::Tools, r#"{"name":"t"}"#).unwrap()],
                ..ServerLists::default()
            }),
        })
    }

    #[test]
    fn what_is_declared_no_more_is_forgotten_once_everything_was_read() {
        let home = tempfile::tempdir().unwrap();
        let state = StateDir::open(home.path(), std::path::Path::new("/fleet")).unwrap();
        let (here, gone) = (declared("here", 1), Digest::of(b"gone"));
        let digest = here.endpoint.as_ref().unwrap().as_ref().unwrap().digest();
        write(&state, &[CacheUpdate::Catalog(digest, offer()), CacheUpdate::Catalog(gone, offer())]);
        let memory = ServerCache::new(load(&state), mpsc::unbounded_channel().0);
        let files = || load(&state).catalogs.len();

        let mut desired = Desired::default();
        forget_undeclared(&state, &memory, &desired);
        let fault = SourceProblem::new(None, Problem::new(Reason::SourceUnavailable, "away"));
        desired.source =
            Arc::new(SourceState { synced: true, faults: vec![fault], ..SourceState::default() });
        forget_undeclared(&state, &memory, &desired);
        assert_eq!(files(), 2, "what is missing may be declared all the same");

        desired.source = Arc::new(SourceState { synced: true, ..SourceState::default() });
        desired.servers.insert(here.meta.key.clone(), Arc::new(here));
        forget_undeclared(&state, &memory, &desired);
        assert_eq!(load(&state).catalogs.keys().collect::<Vec<_>>(), [&digest]);
    }

    #[tokio::test]
    async fn what_is_learned_is_known_at_the_next_start() {
        let home = tempfile::tempdir().unwrap();
        let state = Arc::new(StateDir::open(home.path(), std::path::Path::new("/fleet")).unwrap());
        let (tell, news) = mpsc::unbounded_channel();
        let (digest, other) = (Digest::of(b"one"), Digest::of(b"other"));
        let kept = offer();
        tell.send(CacheUpdate::Eras([(other, Era::Legacy)].into_iter().collect())).unwrap();
        tell.send(CacheUpdate::Catalog(digest, kept.clone())).unwrap();
        tell.send(CacheUpdate::Eras([(digest, Era::Modern)].into_iter().collect())).unwrap();
        // What was told before the end is written all the same.
        let stop = CancellationToken::new();
        stop.cancel();
        keep(state.clone(), news, watch::channel(false).1, stop).await;

        let known = load(&state);
        assert_eq!(known.eras, HashMap::from([(digest, Era::Modern)]));
        assert_eq!(known.catalogs[&digest], kept);

        state.write(ERAS, b"nonsense").unwrap();
        state.write("catalogs/nonsense", b"nonsense").unwrap();
        let known = load(&state);
        assert!(known.eras.is_empty());
        assert_eq!(known.catalogs.len(), 1);
    }
}
