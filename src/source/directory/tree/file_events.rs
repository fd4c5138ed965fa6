//! What the watcher heard, and how much of it matters.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use arc_swap::ArcSwap;
use notify::event::{AccessKind, AccessMode, CreateKind, ModifyKind, RenameMode};
use notify::{Event, EventKind};
use parking_lot::Mutex;
use tokio::sync::{Notify, watch};

use crate::resource::bundle::SKILL_FILE;
use crate::source::SourceMetrics;
use crate::source::parse::is_declaration_name;

/// What was heard since the last look.
#[derive(Debug, Default)]
pub struct FileEvents {
    /// Anything at all.
    pub any: bool,
    /// Files and folders that were closed after writing or moved here, by the paths they are watched by.
    pub completed: HashSet<PathBuf>,
    /// A person said that what vanished is meant to be gone.
    pub confirm_removal: bool,
}

/// More than these wait for quiet, like changes.
const MAX_COMPLETED_PATHS: usize = 10_000;

/// Where hints are left by the watcher, and found by the source.
#[derive(Debug, Default)]
pub struct FileEventQueue {
    events: Mutex<FileEvents>,
    notify: Notify,
    /// How often a look was asked for, and how many of these were answered.
    scans_requested: AtomicU64,
    scans_completed: watch::Sender<u64>,
    pub scope: ArcSwap<WatchScope>,
    metrics: SourceMetrics,
}

/// What matters.
#[derive(Clone, Debug, Default)]
pub struct WatchScope {
    /// Paths of exactly this name: the root and the links on the way to it, signs of git.
    pub exact_paths: HashSet<PathBuf>,
    /// The resolved root; below it, what may be a declaration or a folder of some.
    pub root: PathBuf,
    /// Everything below.
    pub secrets_dir: PathBuf,
    /// The folders of skills: everything below.
    pub skill_folders: Arc<HashSet<PathBuf>>,
    /// The folders that are watched.
    pub watched_folders: Arc<HashSet<PathBuf>>,
}

impl FileEventQueue {
    /// An empty one; what makes everything be looked at anew is counted.
    pub fn new(metrics: SourceMetrics) -> Self {
        Self { metrics, ..Self::default() }
    }

    /// Waits until something is heard.
    pub async fn notified(&self) {
        self.notify.notified().await;
    }

    /// What was heard, once.
    pub fn drain(&self) -> FileEvents {
        std::mem::take(&mut self.events.lock())
    }

    /// Takes the word of a person that what vanished is meant to be gone.
    pub fn confirm_removal(&self) {
        let mut hints = self.events.lock();
        (hints.any, hints.confirm_removal) = (true, true);
        drop(hints);
        self.notify.notify_one();
    }

    /// Asks for a look, and waits until one that began after that is done.
    pub async fn request_scan(&self) {
        let number = self.scans_requested.fetch_add(1, Ordering::SeqCst) + 1;
        self.events.lock().any = true;
        self.notify.notify_one();
        // It cannot be closed: its sender is here.
        let _ = self.scans_completed.subscribe().wait_for(|answered| *answered >= number).await;
    }

    /// How often a look was asked for until now.
    pub fn scans_requested(&self) -> u64 {
        self.scans_requested.load(Ordering::SeqCst)
    }

    /// A look is done that began when so many were asked for.
    pub fn complete_scans(&self, asked: u64) {
        self.scans_completed.send_replace(asked);
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
        let weight = event.as_ref().map_or(Relevance::Changed, |event| classify(event, &self.scope.load()));
        if weight == Relevance::Irrelevant {
            return;
        }
        let mut hints = self.events.lock();
        hints.any = true;
        if let (Relevance::Completed, Ok(event)) = (weight, event)
            && hints.completed.len() < MAX_COMPLETED_PATHS
        {
            hints.completed.extend(event.paths);
        }
        drop(hints);
        self.notify.notify_one();
    }
}

/// How much an event says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Relevance {
    Irrelevant,
    /// Something may have changed.
    Changed,
    /// And may be complete.
    Completed,
}

fn classify(event: &Event, scope: &WatchScope) -> Relevance {
    if event.need_rescan() {
        return Relevance::Changed;
    }
    let weight = match event.kind {
        EventKind::Access(AccessKind::Close(AccessMode::Write))
        | EventKind::Modify(ModifyKind::Name(RenameMode::To | RenameMode::Both)) => Relevance::Completed,
        // Reading is no news; above all not our own.
        EventKind::Access(_) => Relevance::Irrelevant,
        _ => Relevance::Changed,
    };
    let heard = event.paths.iter().any(|path| scope.matches(path, event.kind));
    if heard { weight } else { Relevance::Irrelevant }
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
        // `..data` is the link that volumes of Kubernetes flip.
        if is_declaration_name(name)
            || name == SKILL_FILE
            || name == "..data"
            || path.ancestors().any(|folder| self.skill_folders.contains(folder))
            || self.watched_folders.contains(path)
        {
            return true;
        }
        match kind {
            EventKind::Create(CreateKind::Folder) => true,
            // Servers may write files of their own in the tree: what has another name matters only if it is
            // a folder, or a link to one.
            EventKind::Create(_) | EventKind::Modify(ModifyKind::Name(_)) => {
                let found = path.symlink_metadata();
                found.is_ok_and(|found| found.is_dir() || found.is_symlink())
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
            skill_folders: Arc::new(HashSet::from([root.join("sub/skill")])),
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
        let mailbox = FileEventQueue::new(metrics.clone());
        mailbox.push(Ok(Event::new(EventKind::Other).set_flag(Flag::Rescan)));
        mailbox.push(Err(notify::Error::generic("unmounted")));
        mailbox.push(Err(notify::Error::generic("unmounted")));
        assert!(mailbox.drain().any);
        assert_eq!(
            [
                metrics.watch_restart_count("directory", "overflow"),
                metrics.watch_restart_count("directory", "error")
            ],
            [1, 2]
        );
    }
}
