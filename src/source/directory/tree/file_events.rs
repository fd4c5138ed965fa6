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
use crate::source::parse::is_declaration;

/// What was heard since the last look.
#[derive(Debug, Default)]
pub struct FileEvents {
    /// Anything at all.
    pub any: bool,
    /// Files and folders that were closed after writing or moved here, by the paths they are watched by.
    pub landed: HashSet<PathBuf>,
    /// A person said that what vanished is meant to be gone.
    pub prune: bool,
}

/// More than these wait for quiet, like changes.
const MAX_LANDED: usize = 10_000;

/// Where hints are left by the watcher, and found by the source.
#[derive(Debug, Default)]
pub struct FileEventQueue {
    hints: Mutex<FileEvents>,
    bell: Notify,
    /// How often a look was asked for, and how many of these were answered.
    asked: AtomicU64,
    answered: watch::Sender<u64>,
    pub scope: ArcSwap<WatchScope>,
    metrics: SourceMetrics,
}

/// What matters.
#[derive(Clone, Debug, Default)]
pub struct WatchScope {
    /// Paths of exactly this name: the root and the links on the way to it, signs of git.
    pub names: HashSet<PathBuf>,
    /// The resolved root; below it, what may be a declaration or a folder of some.
    pub root: PathBuf,
    /// Everything below.
    pub secrets: PathBuf,
    /// The folders of skills: everything below.
    pub skills: Arc<HashSet<PathBuf>>,
    /// The folders that are watched.
    pub folders: Arc<HashSet<PathBuf>>,
}

impl FileEventQueue {
    /// An empty one; what makes everything be looked at anew is counted.
    pub fn new(metrics: SourceMetrics) -> Self {
        Self { metrics, ..Self::default() }
    }

    /// Waits until something is heard.
    pub async fn heard(&self) {
        self.bell.notified().await;
    }

    /// What was heard, once.
    pub fn take(&self) -> FileEvents {
        std::mem::take(&mut self.hints.lock())
    }

    /// Takes the word of a person that what vanished is meant to be gone.
    pub fn prune(&self) {
        let mut hints = self.hints.lock();
        (hints.any, hints.prune) = (true, true);
        drop(hints);
        self.bell.notify_one();
    }

    /// Asks for a look, and waits until one that began after that is done.
    pub async fn look(&self) {
        let number = self.asked.fetch_add(1, Ordering::SeqCst) + 1;
        self.hints.lock().any = true;
        self.bell.notify_one();
        // It cannot be closed: its sender is here.
        let _ = self.answered.subscribe().wait_for(|answered| *answered >= number).await;
    }

    /// How often a look was asked for until now.
    pub fn asked(&self) -> u64 {
        self.asked.load(Ordering::SeqCst)
    }

    /// A look is done that began when so many were asked for.
    pub fn answer(&self, asked: u64) {
        self.answered.send_replace(asked);
    }

    pub fn restarted(&self, reason: &'static str) {
        self.metrics.restarted("directory", reason);
    }

    pub fn put(&self, event: notify::Result<Event>) {
        // An error may mean that events were lost.
        match &event {
            Ok(event) if event.need_rescan() => self.restarted("overflow"),
            Ok(_) => {}
            Err(_) => self.restarted("error"),
        }
        let weight = event.as_ref().map_or(Weight::Touched, |event| weigh(event, &self.scope.load()));
        if weight == Weight::Nothing {
            return;
        }
        let mut hints = self.hints.lock();
        hints.any = true;
        if let (Weight::Landed, Ok(event)) = (weight, event)
            && hints.landed.len() < MAX_LANDED
        {
            hints.landed.extend(event.paths);
        }
        drop(hints);
        self.bell.notify_one();
    }
}

/// How much an event says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Weight {
    Nothing,
    /// Something may have changed.
    Touched,
    /// And may be complete.
    Landed,
}

fn weigh(event: &Event, scope: &WatchScope) -> Weight {
    if event.need_rescan() {
        return Weight::Touched;
    }
    let weight = match event.kind {
        EventKind::Access(AccessKind::Close(AccessMode::Write))
        | EventKind::Modify(ModifyKind::Name(RenameMode::To | RenameMode::Both)) => Weight::Landed,
        // Reading is no news; above all not our own.
        EventKind::Access(_) => Weight::Nothing,
        _ => Weight::Touched,
    };
    let heard = event.paths.iter().any(|path| scope.hears(path, event.kind));
    if heard { weight } else { Weight::Nothing }
}

impl WatchScope {
    fn hears(&self, path: &Path, kind: EventKind) -> bool {
        if self.names.contains(path) || path.starts_with(&self.secrets) {
            return true;
        }
        let name = path.file_name().unwrap_or_default();
        if !path.starts_with(&self.root) {
            return false;
        }
        // `..data` is the link that volumes of Kubernetes flip.
        if is_declaration(name)
            || name == SKILL_FILE
            || name == "..data"
            || path.ancestors().any(|folder| self.skills.contains(folder))
            || self.folders.contains(path)
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
    fn events_that_matter() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().join("root");
        for name in ["root", "root/sub", "root/new.d"] {
            std::fs::create_dir(folder.path().join(name)).unwrap();
        }
        symlink("/", root.join("link")).unwrap();
        std::fs::File::create(root.join("file.db")).unwrap();
        let scope = WatchScope {
            names: HashSet::from([root.clone(), root.join(".git/HEAD")]),
            root: root.clone(),
            secrets: "/run/secrets/evenkeel".into(),
            skills: Arc::new(HashSet::from([root.join("sub/skill")])),
            folders: Arc::new(HashSet::from([root.clone(), root.join("gone")])),
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
            ("root/a.yaml", close, Weight::Landed),
            ("root/a.yml", to, Weight::Landed),
            ("root/a.yaml", create, Weight::Touched),
            ("root/a.yaml", data, Weight::Touched),
            ("root/a.yaml", mode, Weight::Touched),
            ("root/a.yaml", remove, Weight::Touched),
            ("root/a.yaml", from, Weight::Touched),
            ("root/a.yaml", open, Weight::Nothing),
            ("root/sub/skill/scripts/a.sh", close, Weight::Landed),
            ("root/sub/SKILL.md", close, Weight::Landed),
            ("root/.a.yaml", close, Weight::Nothing),
            ("root/a.yaml~", create, Weight::Nothing),
            ("root/file.db", data, Weight::Nothing),
            ("root/file.db", create, Weight::Nothing),
            ("root/file.db", close, Weight::Nothing),
            ("root/file.db", to, Weight::Nothing),
            ("root/went.db", from, Weight::Nothing),
            ("root/new.d", to, Weight::Landed),
            ("root/new.d", EventKind::Create(CreateKind::Folder), Weight::Touched),
            ("root/link", create, Weight::Touched),
            ("root/gone", from, Weight::Touched),
            ("root/..data", to, Weight::Landed),
            ("root", to, Weight::Landed),
            ("root", from, Weight::Touched),
            ("root/.git/HEAD", to, Weight::Landed),
            ("root/.git/config", to, Weight::Nothing),
            ("other.yaml", close, Weight::Nothing),
            ("/run/secrets/evenkeel/github/token", close, Weight::Landed),
            ("/run/secrets/evenkeel/github/token", open, Weight::Nothing),
        ] {
            let event = Event::new(kind).add_path(folder.path().join(path));
            assert_eq!(weigh(&event, &scope), expected, "{path} {kind:?}");
        }
        let overflow = Event::new(EventKind::Other).set_flag(Flag::Rescan);
        assert_eq!(weigh(&overflow, &scope), Weight::Touched);
    }

    #[test]
    fn what_makes_everything_be_looked_at_anew_is_counted() {
        let metrics = SourceMetrics::default();
        let mailbox = FileEventQueue::new(metrics.clone());
        mailbox.put(Ok(Event::new(EventKind::Other).set_flag(Flag::Rescan)));
        mailbox.put(Err(notify::Error::generic("unmounted")));
        mailbox.put(Err(notify::Error::generic("unmounted")));
        assert!(mailbox.take().any);
        assert_eq!(
            [metrics.restarts("directory", "overflow"), metrics.restarts("directory", "error")],
            [1, 2]
        );
    }
}
