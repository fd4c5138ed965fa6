//! The floor of the fleet part: attaches every server that is declared in a directory, with the least work. It reads
//! the files that are new or changed, performs the handshake, lists the tools and opens the notification stream. It
//! scans the directory again when the system reports a change.

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

/// The number of concurrent handshakes: fewer than the backlog of a listener.
const MAX_CONCURRENT_HANDSHAKES: usize = 32;
/// The time after which a handshake no longer delays others, so that a hanging server has no further effect.
const HANDSHAKE_SLOT_TIMEOUT: Duration = Duration::from_millis(200);

/// A declaration as last read, with the task of its server.
struct AttachedFile {
    modified: SystemTime,
    text: String,
    task: AbortHandle,
}

/// Runs until the process ends. Prints a line for each server that is attached and each that is removed.
pub async fn run(directory: PathBuf, era: Era) -> Result<()> {
    let (changed, mut changes) = mpsc::unbounded_channel();
    let mut watcher = notify::recommended_watcher(move |event: notify::Result<Event>| {
        // Scanning the directory is an access event.
        if !event.is_ok_and(|event| event.kind.is_access()) {
            // The receiver lives as long as the process.
            let _ = changed.send(());
        }
    })?;
    watcher.watch(&directory, RecursiveMode::NonRecursive)?;
    let handshake_slots = Arc::new(Semaphore::new(MAX_CONCURRENT_HANDSHAKES));
    let (mut attached_files, mut servers) = (HashMap::new(), JoinSet::new());
    loop {
        scan_directory(&directory, era, &handshake_slots, &mut attached_files, &mut servers)?;
        tokio::select! {
            change = changes.recv() => { change.ok_or("the watch has ended")? }
            // Tasks of removed servers end with a JoinError and do not match.
            Some(Ok(failed)) = servers.join_next() => return failed,
        }
        while changes.try_recv().is_ok() {}
    }
}

#[expect(clippy::disallowed_methods, clippy::print_stdout, reason = "a process with nothing else to do")]
fn scan_directory(
    directory: &Path,
    era: Era,
    handshake_slots: &Arc<Semaphore>,
    attached_files: &mut HashMap<PathBuf, AttachedFile>,
    servers: &mut JoinSet<Result<()>>,
) -> Result<()> {
    let mut found = HashSet::new();
    for entry in std::fs::read_dir(directory)? {
        let entry = entry?;
        // A file may be removed during the scan.
        let Ok(metadata) = entry.metadata() else { continue };
        let (path, modified) = (entry.path(), metadata.modified()?);
        found.insert(path.clone());
        if attached_files.get(&path).is_some_and(|file| file.modified == modified) {
            continue;
        }
        let text = std::fs::read_to_string(&path)?;
        if let Some(file) = attached_files.get_mut(&path).filter(|file| file.text == text) {
            file.modified = modified;
            continue;
        }
        let task = servers.spawn(attach(parse_target(&text, era)?, handshake_slots.clone()));
        if let Some(old) = attached_files.insert(path, AttachedFile { modified, text, task }) {
            old.task.abort();
        }
    }
    attached_files.retain(|path, file| {
        let exists = found.contains(path);
        if !exists {
            file.task.abort();
            println!("removed");
        }
        exists
    });
    Ok(())
}

fn parse_target(text: &str, era: Era) -> Result<McpTarget> {
    let url = text.lines().find_map(|line| line.trim().strip_prefix("url: http://")).ok_or("no URL")?;
    let (address, path) = url.split_once('/').ok_or("no path")?;
    Ok(McpTarget { address: address.parse()?, path: format!("/{path}"), era })
}

#[expect(clippy::print_stdout, reason = "the benchmark reads these lines")]
async fn attach(target: McpTarget, handshake_slots: Arc<Semaphore>) -> Result<()> {
    let slot = handshake_slots.acquire().await?;
    let attempt = async {
        let mut agent = Agent::connect(&target).await?;
        agent.tool_names().await?;
        // Only the stream stays open.
        agent.notifications().await
    };
    let mut attempt = std::pin::pin!(attempt);
    let attached = timeout(HANDSHAKE_SLOT_TIMEOUT, attempt.as_mut()).await;
    drop(slot);
    let attached = match attached {
        Ok(attached) => attached,
        Err(_) => attempt.await,
    };
    // A failed attempt affects no other server.
    let Ok(mut notifications) = attached else { return std::future::pending().await };
    println!("attached");
    loop {
        notifications.next().await?;
    }
}
