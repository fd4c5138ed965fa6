//! Attaches every server that is declared in a directory, with as little as that takes: reads the files that are
//! new or differ, shakes hands, lists the tools and opens the stream of notices, and looks again when the system
//! says that the directory has changed. The floor of the fleet part.

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use notify::{Event, RecursiveMode, Watcher as _};
use tokio::sync::{Semaphore, mpsc};
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::timeout;

use super::agent::{Agent, McpTarget};
use super::{Era, Result};

/// How many handshakes go on at once: fewer than the connections that a listener holds back.
const MAX_CONCURRENT_HANDSHAKES: usize = 32;
/// How long one handshake holds back others: a server that hangs costs nothing more.
const HANDSHAKE_SLOT_TIMEOUT: Duration = Duration::from_millis(200);

/// A declaration as it was when it was read last.
struct AttachedFile {
    modified: SystemTime,
    text: String,
    task: AbortHandle,
}

/// Runs until the process ends. Prints a line for each server that is attached and each that is removed.
pub async fn run(directory: PathBuf, era: Era) -> Result<()> {
    let (changed, mut changes) = mpsc::unbounded_channel();
    let mut watcher = notify::recommended_watcher(move |event: notify::Result<Event>| {
        // A look at the directory is an access.
        if !event.is_ok_and(|event| event.kind.is_access()) {
            // The receiver ends with the process.
            let _ = changed.send(());
        }
    })?;
    watcher.watch(&directory, RecursiveMode::NonRecursive)?;
    let limit = Arc::new(Semaphore::new(MAX_CONCURRENT_HANDSHAKES));
    let (mut known, mut servers) = (HashMap::new(), JoinSet::new());
    loop {
        scan_directory(&directory, era, &limit, &mut known, &mut servers)?;
        tokio::select! {
            change = changes.recv() => { change.ok_or("the watch has ended")? }
            // Aborted ones are those that were removed.
            Some(Ok(failed)) = servers.join_next() => return failed,
        }
        while changes.try_recv().is_ok() {}
    }
}

#[expect(clippy::disallowed_methods, clippy::print_stdout, reason = "a process with nothing else to do")]
fn scan_directory(
    directory: &Path,
    era: Era,
    limit: &Arc<Semaphore>,
    known: &mut HashMap<PathBuf, AttachedFile>,
    servers: &mut JoinSet<Result<()>>,
) -> Result<()> {
    let mut seen = HashSet::new();
    for entry in std::fs::read_dir(directory)? {
        let entry = entry?;
        // A file may be removed meanwhile.
        let Ok(metadata) = entry.metadata() else { continue };
        let (path, modified) = (entry.path(), metadata.modified()?);
        seen.insert(path.clone());
        if known.get(&path).is_some_and(|known| known.modified == modified) {
            continue;
        }
        let text = std::fs::read_to_string(&path)?;
        if let Some(known) = known.get_mut(&path).filter(|known| known.text == text) {
            known.modified = modified;
            continue;
        }
        let attached = servers.spawn(attach(parse_target(&text, era)?, limit.clone()));
        if let Some(old) = known.insert(path, AttachedFile { modified, text, task: attached }) {
            old.task.abort();
        }
    }
    known.retain(|path, known| {
        let kept = seen.contains(path);
        if !kept {
            known.task.abort();
            println!("removed");
        }
        kept
    });
    Ok(())
}

fn parse_target(text: &str, era: Era) -> Result<McpTarget> {
    let url = text.lines().find_map(|line| line.trim().strip_prefix("url: http://")).ok_or("no URL")?;
    let (address, path) = url.split_once('/').ok_or("no path")?;
    Ok(McpTarget { address: address.parse()?, path: format!("/{path}"), era })
}

#[expect(clippy::print_stdout, reason = "a helper tells what it has done")]
async fn attach(target: McpTarget, limit: Arc<Semaphore>) -> Result<()> {
    let turn = limit.acquire().await?;
    let attaching = async {
        let mut agent = Agent::connect(&target).await?;
        agent.tool_names().await?;
        // Only the stream stays open.
        agent.notifications().await
    };
    let mut attaching = std::pin::pin!(attaching);
    let attached = timeout(HANDSHAKE_SLOT_TIMEOUT, attaching.as_mut()).await;
    drop(turn);
    let attached = match attached {
        Ok(attached) => attached,
        Err(_) => attaching.await,
    };
    // One that hangs ends nothing but its own attempt.
    let Ok(mut notices) = attached else { return std::future::pending().await };
    println!("attached");
    loop {
        notices.next().await?;
    }
}
