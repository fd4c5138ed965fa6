use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::fleet::{Known, News};
use crate::resource::Digest;
use crate::state::StateDir;

/// The eras of servers, in one file.
const ERAS: &str = "eras.json";
/// The catalogs of `OnDemand` servers, a file for each, named by the digest of the declaration.
const CATALOGS: &str = "catalogs";

/// How long news is collected before it is written.
const PAUSE: Duration = Duration::from_millis(500);

/// What the fleet knew at the last run. Blocks.
///
/// What cannot be read is left out, and said: it is only learned again.
pub(super) fn load(state: &StateDir) -> Known {
    let mut known = Known::default();
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

/// Writes down what the fleet learns, until it is stopped.
pub(super) async fn keep(
    state: Arc<StateDir>,
    mut news: mpsc::UnboundedReceiver<News>,
    stop: CancellationToken,
) {
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

fn write(state: &StateDir, batch: &[News]) {
    let eras = batch.iter().rev().find_map(|news| match news {
        News::Eras(eras) => {
            Some((ERAS.to_owned(), serde_json::to_vec(&eras.iter().collect::<BTreeMap<_, _>>())))
        }
        News::Catalog(..) => None,
    });
    let catalogs = batch.iter().filter_map(|news| match news {
        News::Catalog(digest, kept) => {
            Some((format!("{CATALOGS}/{}.json", digest.short(64)), serde_json::to_vec(&**kept)))
        }
        News::Eras(_) => None,
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
    use crate::catalog::{Item, Lists};
    use crate::fleet::Kept;
    use crate::wire::{Era, List};

    #[tokio::test]
    async fn what_is_learned_is_known_at_the_next_start() {
        let home = tempfile::tempdir().unwrap();
        let state = Arc::new(StateDir::open(home.path(), std::path::Path::new("/fleet")).unwrap());
        let (tell, news) = mpsc::unbounded_channel();
        let (digest, other) = (Digest::of(b"one"), Digest::of(b"other"));
        let kept = Arc::new(Kept {
            about: Arc::default(),
            lists: Arc::new(Lists {
                tools: vec![Item::read(List::Tools, r#"{"name":"t"}"#).unwrap()],
                ..Lists::default()
            }),
        });
        tell.send(News::Eras([(other, Era::Legacy)].into_iter().collect())).unwrap();
        tell.send(News::Catalog(digest, kept.clone())).unwrap();
        tell.send(News::Eras([(digest, Era::Modern)].into_iter().collect())).unwrap();
        // What was told before the end is written all the same.
        let stop = CancellationToken::new();
        stop.cancel();
        keep(state.clone(), news, stop).await;

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
