//! File events, as hints to look again and nothing more.
//!
//! Each folder of the tree is watched from before it is read, so that nothing falls in between; so are the
//! folders that hold the root, or a link on the way to it: those are what flips. What an event says is used
//! only to tell that a file may be complete.

use std::collections::{HashMap, HashSet};
use std::ffi::OsString;
use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use notify::{Config, ErrorKind, RecommendedWatcher, RecursiveMode, Watcher as _};

use super::file_events::{FileEventQueue, WatchScope};
use super::read::FileId;

/// Watches folders as they are met.
#[derive(Debug)]
pub struct FolderWatcher {
    events: Arc<FileEventQueue>,
    watcher: Option<RecommendedWatcher>,
    /// What is watched, with the round in which it was last met.
    folders: HashMap<PathBuf, (FileId, u64)>,
    /// What was watched when the round began, once that matters.
    watched_ids: Option<HashSet<FileId>>,
    round: u64,
    polling_only: bool,
    /// Why not everything is watched, in this round.
    failure: Option<String>,
}

impl FolderWatcher {
    /// A watcher that tells `mailbox`; one that never hears anything if `deaf`.
    pub fn new(mailbox: Arc<FileEventQueue>, deaf: bool) -> Self {
        Self {
            events: mailbox,
            watcher: None,
            folders: HashMap::new(),
            watched_ids: None,
            round: 0,
            polling_only: deaf,
            failure: None,
        }
    }

    /// A round begins; a folder that is not met in it is not watched after it.
    pub fn begin_round(&mut self, names: HashSet<PathBuf>, root: PathBuf, secrets: PathBuf) {
        self.round += 1;
        self.watched_ids = None;
        self.failure = None;
        let WatchScope { watched_folders: folders, skill_folders: skills, .. } =
            WatchScope::clone(&self.events.scope.load());
        self.events.scope.store(Arc::new(WatchScope {
            exact_paths: names,
            root,
            secrets_dir: secrets,
            skill_folders: skills,
            watched_folders: folders,
        }));
        if self.watcher.is_none() && !self.polling_only {
            let mailbox = Arc::clone(&self.events);
            // Links are followed by the walk, which knows where they may lead.
            let config = Config::default().with_follow_symlinks(false);
            match RecommendedWatcher::new(move |event| mailbox.push(event), config) {
                Ok(watcher) => self.watcher = Some(watcher),
                Err(error) => self.failure = Some(error.to_string()),
            }
        }
    }

    /// The folders of skills, in which everything matters; true if they are others than before, so that what has
    /// happened there until now was not heard.
    pub fn set_skill_folders(&self, skills: HashSet<PathBuf>) -> bool {
        let scope = self.events.scope.load();
        let differs = *scope.skill_folders != skills;
        if differs {
            self.events
                .scope
                .store(Arc::new(WatchScope { skill_folders: Arc::new(skills), ..WatchScope::clone(&scope) }));
        }
        differs
    }

    /// A folder that matters, if it exists.
    pub fn watch_if_folder(&mut self, path: &Path) {
        if let Ok(found) = path.metadata()
            && found.is_dir()
        {
            self.watch(path, (found.dev(), found.ino()));
        }
    }

    /// A folder that matters.
    pub fn watch(&mut self, path: &Path, id: FileId) {
        let Some(watcher) = &mut self.watcher else { return };
        if let Some((known, round)) = self.folders.get_mut(path) {
            *round = self.round;
            if *known == id {
                return;
            }
            // Another folder has taken the place of the one that is watched, which may be gone.
            let _ = watcher.unwatch(path);
            self.folders.remove(path);
        }
        if self.failure.is_some() {
            return;
        }
        // The system has one watch per folder, whatever its path: that of a folder that was moved here may yet
        // be taken down under its old name, so it is watched once more in the next round.
        let watched =
            self.watched_ids.get_or_insert_with(|| self.folders.values().map(|(id, _)| *id).collect());
        let moved = watched.contains(&id);
        match watcher.watch(path, RecursiveMode::NonRecursive) {
            Ok(()) if moved => {}
            Ok(()) => {
                self.folders.insert(path.to_path_buf(), (id, self.round));
            }
            // It went since it was met, which the folder above has told.
            Err(error) if matches!(error.kind, ErrorKind::PathNotFound) => {}
            Err(error) => self.failure = Some(error.to_string()),
        }
    }

    /// The round is over; says why the source must poll, if it must.
    pub fn end_round(&mut self) -> Option<&str> {
        if let Some(watcher) = &mut self.watcher {
            let round = self.round;
            self.folders.retain(|path, (_, met)| {
                let keep = *met == round;
                if !keep {
                    let _ = watcher.unwatch(path);
                }
                keep
            });
        }
        let scope = self.events.scope.load();
        let same = scope.watched_folders.len() == self.folders.len()
            && self.folders.keys().all(|path| scope.watched_folders.contains(path));
        if !same {
            self.events.scope.store(Arc::new(WatchScope {
                watched_folders: Arc::new(self.folders.keys().cloned().collect()),
                ..WatchScope::clone(&scope)
            }));
        }
        if self.polling_only {
            return Some("that was asked for");
        }
        if self.failure.is_some() {
            // The next round tries again.
            self.events.record_restart("failed");
        }
        self.failure.as_deref()
    }
}

/// The names that decide what `root` leads to: the links on the way, what is missing, and what is there.
pub fn resolution_paths(root: &Path) -> HashSet<PathBuf> {
    let mut names = HashSet::new();
    let mut rest: Vec<_> = reversed_components(root);
    let mut found = PathBuf::new();
    let mut links = 0;
    while let Some(part) = rest.pop() {
        if part == ".." {
            found.pop();
            continue;
        }
        found.push(part);
        match found.read_link() {
            // As many as the system itself would follow.
            Ok(target) if links < 40 => {
                links += 1;
                names.insert(found.clone());
                rest.extend(reversed_components(&target));
                found.pop();
            }
            Err(_) if found.exists() => {}
            Ok(_) | Err(_) => break,
        }
    }
    names.insert(found);
    names
}

/// The parts of a path, the first one last.
fn reversed_components(path: &Path) -> Vec<OsString> {
    let parts = path.components().filter(|part| *part != Component::CurDir);
    let mut parts: Vec<_> = parts.map(|part| part.as_os_str().to_owned()).collect();
    parts.reverse();
    parts
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
        assert_eq!(names("a/b"), ["a"], "what is not there yet");
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
