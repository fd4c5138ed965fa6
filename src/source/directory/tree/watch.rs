//! Watches folders for file events, which only trigger scans.
//!
//! Each folder of the tree is watched before it is read, so no change in between is missed. The folders that contain
//! the root, or a link that leads to it, are watched too, because those links are what is replaced. The content of an
//! event is used only to recognize that a file may be complete.

use std::collections::{HashMap, HashSet};
use std::ffi::OsString;
use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use notify::{Config, ErrorKind, RecommendedWatcher, RecursiveMode, Watcher as _};

use super::file_events::{FileEventQueue, WatchScope};
use super::read::FileId;

/// Watches the folders that a walk visits.
#[derive(Debug)]
pub struct FolderWatcher {
    events: Arc<FileEventQueue>,
    watcher: Option<RecommendedWatcher>,
    /// The watched folders, each with the number of the round in which it was last visited.
    folders: HashMap<PathBuf, (FileId, u64)>,
    /// The folders that were watched at the start of the round; computed when first needed.
    watched_ids: Option<HashSet<FileId>>,
    round: u64,
    polling_only: bool,
    /// The reason that not every folder is watched, in this round.
    failure: Option<String>,
}

impl FolderWatcher {
    /// Creates a watcher that sends events to `events`. With `polling_only`, it never receives any.
    pub fn new(events: Arc<FileEventQueue>, polling_only: bool) -> Self {
        Self {
            events,
            watcher: None,
            folders: HashMap::new(),
            watched_ids: None,
            round: 0,
            polling_only,
            failure: None,
        }
    }

    /// Begins a round. A folder that is not visited in it is no longer watched afterwards.
    pub fn begin_round(&mut self, exact_paths: HashSet<PathBuf>, root: PathBuf, secrets_dir: PathBuf) {
        self.round += 1;
        self.watched_ids = None;
        self.failure = None;
        let WatchScope { watched_folders, referenced_paths, .. } =
            WatchScope::clone(&self.events.scope.load());
        self.events.scope.store(Arc::new(WatchScope {
            exact_paths,
            root,
            secrets_dir,
            referenced_paths,
            watched_folders,
        }));
        if self.watcher.is_none() && !self.polling_only {
            let events = Arc::clone(&self.events);
            // Links are followed by the walk, which checks their targets.
            let config = Config::default().with_follow_symlinks(false);
            match RecommendedWatcher::new(move |event| events.push(event), config) {
                Ok(watcher) => self.watcher = Some(watcher),
                Err(error) => self.failure = Some(error.to_string()),
            }
        }
    }

    /// Sets the folders of skills and the files of variables, of which every event matters. Returns true if they differ
    /// from the previous ones: earlier events of the new ones were then missed.
    pub fn set_referenced_paths(&self, referenced_paths: HashSet<PathBuf>) -> bool {
        let scope = self.events.scope.load();
        let changed = *scope.referenced_paths != referenced_paths;
        if changed {
            self.events.scope.store(Arc::new(WatchScope {
                referenced_paths: Arc::new(referenced_paths),
                ..WatchScope::clone(&scope)
            }));
        }
        changed
    }

    /// Watches a folder, if it exists.
    pub fn watch_if_folder(&mut self, path: &Path) {
        if let Ok(metadata) = path.metadata()
            && metadata.is_dir()
        {
            self.watch(path, (metadata.dev(), metadata.ino()));
        }
    }

    /// Watches a folder.
    pub fn watch(&mut self, path: &Path, id: FileId) {
        let Some(watcher) = &mut self.watcher else { return };
        if let Some((watched_id, round)) = self.folders.get_mut(path) {
            *round = self.round;
            if *watched_id == id {
                return;
            }
            // Another folder has replaced the watched one, which may be deleted.
            let _ = watcher.unwatch(path);
            self.folders.remove(path);
        }
        if self.failure.is_some() {
            return;
        }
        // The system has one watch per folder, whatever its path. A folder that was moved here may still lose its watch
        // under its old name, so it is watched again in the next round.
        let watched_ids =
            self.watched_ids.get_or_insert_with(|| self.folders.values().map(|(id, _)| *id).collect());
        let is_watched = watched_ids.contains(&id);
        match watcher.watch(path, RecursiveMode::NonRecursive) {
            Ok(()) if is_watched => {}
            Ok(()) => {
                self.folders.insert(path.to_path_buf(), (id, self.round));
            }
            // It was deleted after it was visited; the folder above it has reported that.
            Err(error) if matches!(error.kind, ErrorKind::PathNotFound) => {}
            Err(error) => self.failure = Some(error.to_string()),
        }
    }

    /// Ends the round. Returns the reason that the source must poll, if it must.
    pub fn end_round(&mut self) -> Option<&str> {
        if let Some(watcher) = &mut self.watcher {
            let round = self.round;
            self.folders.retain(|path, (_, last_round)| {
                let keep = *last_round == round;
                if !keep {
                    let _ = watcher.unwatch(path);
                }
                keep
            });
        }
        let scope = self.events.scope.load();
        let unchanged = scope.watched_folders.len() == self.folders.len()
            && self.folders.keys().all(|path| scope.watched_folders.contains(path));
        if !unchanged {
            self.events.scope.store(Arc::new(WatchScope {
                watched_folders: Arc::new(self.folders.keys().cloned().collect()),
                ..WatchScope::clone(&scope)
            }));
        }
        if self.polling_only {
            return Some("polling was requested");
        }
        if self.failure.is_some() {
            // The next round tries again.
            self.events.record_restart("failed");
        }
        self.failure.as_deref()
    }
}

/// Returns the paths that determine the directory that `root` resolves to: the links on the way, the first missing
/// component, and the final directory.
pub fn resolution_paths(root: &Path) -> HashSet<PathBuf> {
    let mut paths = HashSet::new();
    let mut remaining: Vec<_> = reversed_components(root);
    let mut resolved = PathBuf::new();
    let mut link_count = 0;
    while let Some(component) = remaining.pop() {
        if component == ".." {
            resolved.pop();
            continue;
        }
        resolved.push(component);
        match resolved.read_link() {
            // The number of links that the system itself would follow.
            Ok(target) if link_count < 40 => {
                link_count += 1;
                paths.insert(resolved.clone());
                remaining.extend(reversed_components(&target));
                resolved.pop();
            }
            Err(_) if resolved.exists() => {}
            Ok(_) | Err(_) => break,
        }
    }
    paths.insert(resolved);
    paths
}

/// Returns the components of a path in reverse order.
fn reversed_components(path: &Path) -> Vec<OsString> {
    let components = path.components().filter(|component| *component != Component::CurDir);
    let mut components: Vec<_> = components.map(|component| component.as_os_str().to_owned()).collect();
    components.reverse();
    components
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn resolution_paths_include_every_link_and_the_target() {
        let folder = tempfile::tempdir().unwrap();
        let top = folder.path().canonicalize().unwrap();
        let names = |root: &str| {
            let names = resolution_paths(&top.join(root));
            let mut names: Vec<_> =
                names.iter().map(|name| name.strip_prefix(&top).unwrap().display().to_string()).collect();
            names.sort();
            names
        };
        assert_eq!(names("a/b"), ["a"], "a missing directory");
        std::fs::create_dir_all(top.join("v1/fleet")).unwrap();
        assert_eq!(names("v1/fleet"), ["v1/fleet"]);
        symlink("v1", top.join("current")).unwrap();
        assert_eq!(names("current"), ["current", "v1"]);
        assert_eq!(names("current/./fleet"), ["current", "v1/fleet"]);
        assert_eq!(names("current/../v1/fleet"), ["current", "v1/fleet"]);
        symlink(top.join("current/fleet"), top.join("v1/link")).unwrap();
        assert_eq!(names("v1/link"), ["current", "v1/fleet", "v1/link"]);
        symlink("loop", top.join("loop")).unwrap();
        assert_eq!(names("loop"), ["loop"]);
    }
}
