//! Collects the file events of the watcher, and classifies them.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use arc_swap::ArcSwap;
use notify::event::{AccessKind, AccessMode, CreateKind, ModifyKind, RenameMode};
use notify::{Event, EventKind};
use parking_lot::Mutex;
use tokio::sync::{Notify, watch};

use super::ignore_rules::IGNORE_FILE;
use crate::resource::bundle::SKILL_FILE;
use crate::source::SourceMetrics;
use crate::source::parse::is_declaration_name;

/// The events since the last scan.
#[derive(Debug, Default)]
pub struct FileEvents {
    /// True if any event was received.
    pub any: bool,
    /// The files and folders that were closed after writing or moved here, by the paths by which they are watched.
    pub completed: HashSet<PathBuf>,
    /// True if a person confirmed that the missing objects are intended to be removed.
    pub confirm_removal: bool,
}

/// The number of completed paths that are kept. Further ones are treated as plain changes, which wait for the quiet
/// period.
const MAX_COMPLETED_PATHS: usize = 10_000;

/// The queue between the watcher and the scan loop.
#[derive(Debug, Default)]
pub struct FileEventQueue {
    events: Mutex<FileEvents>,
    notify: Notify,
    /// The number of requested scans, and the number of those that were completed.
    scans_requested: AtomicU64,
    scans_completed: watch::Sender<u64>,
    pub scope: ArcSwap<WatchScope>,
    metrics: SourceMetrics,
}

/// The paths whose events matter.
#[derive(Clone, Debug, Default)]
pub struct WatchScope {
    /// Exact paths: the root, the links that lead to it, and the watched files of git.
    pub exact_paths: HashSet<PathBuf>,
    /// The resolved root; events below it matter for possible declarations and for folders that may contain some.
    pub root: PathBuf,
    /// The secrets directory; all events below it matter.
    pub secrets_dir: PathBuf,
    /// The folders of skills and the files of variables; all events at and below them matter.
    pub referenced_paths: Arc<HashSet<PathBuf>>,
    /// The folders that are watched.
    pub watched_folders: Arc<HashSet<PathBuf>>,
}

impl FileEventQueue {
    /// Creates an empty queue. Events that force a complete scan are counted in `metrics`.
    pub fn new(metrics: SourceMetrics) -> Self {
        Self { metrics, ..Self::default() }
    }

    /// Waits until an event is received. Cancel safe.
    pub async fn notified(&self) {
        self.notify.notified().await;
    }

    /// Removes and returns the received events.
    pub fn drain(&self) -> FileEvents {
        std::mem::take(&mut self.events.lock())
    }

    /// Confirms that the missing objects are intended to be removed.
    pub fn confirm_removal(&self) {
        let mut events = self.events.lock();
        (events.any, events.confirm_removal) = (true, true);
        drop(events);
        self.notify.notify_one();
    }

    /// Requests a scan, and waits until a scan that began after the request is complete.
    pub async fn request_scan(&self) {
        let request_number = self.scans_requested.fetch_add(1, Ordering::SeqCst) + 1;
        self.events.lock().any = true;
        self.notify.notify_one();
        // The channel cannot be closed: its sender is in `self`.
        let _ = self.scans_completed.subscribe().wait_for(|completed| *completed >= request_number).await;
    }

    /// Returns the number of scans that were requested until now.
    pub fn scans_requested(&self) -> u64 {
        self.scans_requested.load(Ordering::SeqCst)
    }

    /// Completes the requests of a scan: the first `scans_requested` requests are done.
    pub fn complete_scans(&self, scans_requested: u64) {
        self.scans_completed.send_replace(scans_requested);
    }

    pub fn record_restart(&self, reason: &'static str) {
        self.metrics.record_watch_restart("directory", reason);
    }

    pub fn push(&self, event: notify::Result<Event>) {
        // An error may mean that events were lost.
        match &event {
            Ok(event) if event.need_rescan() => self.record_restart("overflow"),
            Ok(_) => {}
            Err(_) => self.record_restart("error"),
        }
        let relevance =
            event.as_ref().map_or(Relevance::Changed, |event| classify(event, &self.scope.load()));
        if relevance == Relevance::Irrelevant {
            return;
        }
        let mut events = self.events.lock();
        events.any = true;
        if let (Relevance::Completed, Ok(event)) = (relevance, event)
            && events.completed.len() < MAX_COMPLETED_PATHS
        {
            events.completed.extend(event.paths);
        }
        drop(events);
        self.notify.notify_one();
    }
}

/// The relevance of an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Relevance {
    Irrelevant,
    /// A file may have changed.
    Changed,
    /// A file may have changed and may be complete.
    Completed,
}

fn classify(event: &Event, scope: &WatchScope) -> Relevance {
    if event.need_rescan() {
        return Relevance::Changed;
    }
    let relevance = match event.kind {
        EventKind::Access(AccessKind::Close(AccessMode::Write))
        | EventKind::Modify(ModifyKind::Name(RenameMode::To | RenameMode::Both)) => Relevance::Completed,
        // Reads do not matter, in particular those of evenkeel itself.
        EventKind::Access(_) => Relevance::Irrelevant,
        _ => Relevance::Changed,
    };
    let matches = event.paths.iter().any(|path| scope.matches(path, event.kind));
    if matches { relevance } else { Relevance::Irrelevant }
}

impl WatchScope {
    fn matches(&self, path: &Path, kind: EventKind) -> bool {
        if self.exact_paths.contains(path) || path.starts_with(&self.secrets_dir) {
            return true;
        }
        let name = path.file_name().unwrap_or_default();
        if !path.starts_with(&self.root) {
            return false;
        }
        // `..data` is the link that an update of a Kubernetes volume replaces.
        if is_declaration_name(name)
            || name == SKILL_FILE
            || name == "..data"
            || name == IGNORE_FILE
            || path.ancestors().any(|part| self.referenced_paths.contains(part))
            || self.watched_folders.contains(path)
        {
            return true;
        }
        match kind {
            EventKind::Create(CreateKind::Folder) => true,
            // Servers may write their own files into the tree: a file with another name matters only if it is a folder,
            // or a link to one.
            EventKind::Create(_) | EventKind::Modify(ModifyKind::Name(_)) => {
                let metadata = path.symlink_metadata();
                metadata.is_ok_and(|metadata| metadata.is_dir() || metadata.is_symlink())
            }
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use notify::event::{DataChange, Flag, MetadataKind, RemoveKind};

    use super::*;

    #[test]
    fn events_are_classified_by_path_and_kind() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().join("root");
        for name in ["root", "root/sub", "root/new.d"] {
            std::fs::create_dir(folder.path().join(name)).unwrap();
        }
        symlink("/", root.join("link")).unwrap();
        std::fs::File::create(root.join("file.db")).unwrap();
        let scope = WatchScope {
            exact_paths: HashSet::from([root.clone(), root.join(".git/HEAD")]),
            root: root.clone(),
            secrets_dir: "/run/secrets/evenkeel".into(),
            referenced_paths: Arc::new(HashSet::from([root.join("sub/skill")])),
            watched_folders: Arc::new(HashSet::from([root.clone(), root.join("gone")])),
        };
        let close = EventKind::Access(AccessKind::Close(AccessMode::Write));
        let open = EventKind::Access(AccessKind::Open(AccessMode::Any));
        let data = EventKind::Modify(ModifyKind::Data(DataChange::Any));
        let mode = EventKind::Modify(ModifyKind::Metadata(MetadataKind::Any));
        let to = EventKind::Modify(ModifyKind::Name(RenameMode::To));
        let from = EventKind::Modify(ModifyKind::Name(RenameMode::From));
        let create = EventKind::Create(CreateKind::File);
        let remove = EventKind::Remove(RemoveKind::File);
        for (path, kind, expected) in [
            ("root/a.yaml", close, Relevance::Completed),
            ("root/a.yml", to, Relevance::Completed),
            ("root/a.yaml", create, Relevance::Changed),
            ("root/a.yaml", data, Relevance::Changed),
            ("root/a.yaml", mode, Relevance::Changed),
            ("root/a.yaml", remove, Relevance::Changed),
            ("root/a.yaml", from, Relevance::Changed),
            ("root/a.yaml", open, Relevance::Irrelevant),
            ("root/sub/skill/scripts/a.sh", close, Relevance::Completed),
            ("root/sub/SKILL.md", close, Relevance::Completed),
            ("root/.evenkeelignore", close, Relevance::Completed),
            ("root/.evenkeelignore", remove, Relevance::Changed),
            ("root/.a.yaml", close, Relevance::Irrelevant),
            ("root/a.yaml~", create, Relevance::Irrelevant),
            ("root/file.db", data, Relevance::Irrelevant),
            ("root/file.db", create, Relevance::Irrelevant),
            ("root/file.db", close, Relevance::Irrelevant),
            ("root/file.db", to, Relevance::Irrelevant),
            ("root/went.db", from, Relevance::Irrelevant),
            ("root/new.d", to, Relevance::Completed),
            ("root/new.d", EventKind::Create(CreateKind::Folder), Relevance::Changed),
            ("root/link", create, Relevance::Changed),
            ("root/gone", from, Relevance::Changed),
            ("root/..data", to, Relevance::Completed),
            ("root", to, Relevance::Completed),
            ("root", from, Relevance::Changed),
            ("root/.git/HEAD", to, Relevance::Completed),
            ("root/.git/config", to, Relevance::Irrelevant),
            ("other.yaml", close, Relevance::Irrelevant),
            ("/run/secrets/evenkeel/github/token", close, Relevance::Completed),
            ("/run/secrets/evenkeel/github/token", open, Relevance::Irrelevant),
        ] {
            let event = Event::new(kind).add_path(folder.path().join(path));
            assert_eq!(classify(&event, &scope), expected, "{path} {kind:?}");
        }
        let overflow = Event::new(EventKind::Other).set_flag(Flag::Rescan);
        assert_eq!(classify(&overflow, &scope), Relevance::Changed);
    }

    #[test]
    fn lost_events_are_counted() {
        let metrics = SourceMetrics::default();
        let queue = FileEventQueue::new(metrics.clone());
        queue.push(Ok(Event::new(EventKind::Other).set_flag(Flag::Rescan)));
        queue.push(Err(notify::Error::generic("unmounted")));
        queue.push(Err(notify::Error::generic("unmounted")));
        assert!(queue.drain().any);
        assert_eq!(
            [
                metrics.watch_restart_count("directory", "overflow"),
                metrics.watch_restart_count("directory", "error")
            ],
            [1, 2]
        );
    }
}
