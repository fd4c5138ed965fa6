//! One walk of the tree, with the watches that were set before it. Blocks.

use std::io;
use std::path::Path;

use crate::resource::{Problem, Reason, SourceProblem};
use crate::source::directory::git::GitDirectory;
use crate::source::directory::history::{DeclarationFiles, ScanContext, UnreadableFolder};
use crate::source::directory::tree::{
    FileId, FolderWatcher, FoundFile, TreeRoot, TreeVisitor, resolution_paths, walk,
};
use crate::source::parse::display_path;

/// As often is looked again, within one look, for a root that is flipped meanwhile.
const MAX_WALKS: usize = 3;

/// What is at the root.
pub struct TreeSnapshot {
    pub git: Option<GitDirectory>,
    /// False if it is not known what is there.
    pub readable: bool,
    pub faults: Vec<SourceProblem>,
}

/// Walks the tree at `given`. The root may be flipped meanwhile: then it is walked again.
pub fn take_snapshot(
    given: &Path,
    secrets: &Path,
    files: &mut DeclarationFiles,
    watcher: &mut FolderWatcher,
    moment: &ScanContext<'_>,
) -> TreeSnapshot {
    let unknown = |why: &str| TreeSnapshot {
        git: None,
        readable: false,
        faults: vec![source_unavailable(format!("{} {why}", display_path(given)))],
    };
    for _ in 0..MAX_WALKS {
        // First the watches, then the look, so that nothing falls in between.
        let path = given.canonicalize().unwrap_or_else(|_| given.to_path_buf());
        let git = GitDirectory::containing(&path);
        watch_paths(given, &path, secrets, git.as_ref(), watcher);
        let root = match TreeRoot::open(given) {
            Ok(root) if root.path == path => root,
            Ok(_) => continue,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return unknown("does not exist; it is waited for");
            }
            Err(error) => {
                return unknown(&format!("cannot be read: {error}; nothing changes until it can"));
            }
        };
        files.begin_scan();
        let mut sight = SnapshotVisitor { files, watcher, context: moment, unreadable_folders: Vec::new() };
        walk(&root, &mut sight);
        let blind = sight.unreadable_folders;
        if TreeRoot::open(given).is_ok_and(|after| after.is_same(&root)) {
            files.end_scan(&blind, moment);
            let told = |(folder, why): &UnreadableFolder| {
                source_unavailable(format!("{} {why}", display_path(&given.join(folder))))
            };
            return TreeSnapshot { git, readable: true, faults: blind.iter().map(told).collect() };
        }
    }
    unknown("leads elsewhere at every look; nothing changes until it rests")
}

fn watch_paths(
    given: &Path,
    root: &Path,
    secrets: &Path,
    git: Option<&GitDirectory>,
    watcher: &mut FolderWatcher,
) {
    let mut names = resolution_paths(given);
    names.extend(resolution_paths(secrets));
    let mut folders: Vec<_> = names.iter().filter_map(|name| name.parent()).map(Path::to_path_buf).collect();
    if let Some(git) = git {
        names.extend(git.watched_files());
        folders.push(git.path().to_path_buf());
    }
    watcher.begin_round(names, root.to_path_buf(), secrets.to_path_buf());
    for folder in folders {
        watcher.watch_if_folder(&folder);
    }
}

fn source_unavailable(message: String) -> SourceProblem {
    SourceProblem::new(None, Problem::new(Reason::SourceUnavailable, message))
}

/// What a walk does to the files and the watches.
struct SnapshotVisitor<'a> {
    files: &'a mut DeclarationFiles,
    watcher: &'a mut FolderWatcher,
    context: &'a ScanContext<'a>,
    unreadable_folders: Vec<UnreadableFolder>,
}

impl TreeVisitor for SnapshotVisitor<'_> {
    fn visit_folder(&mut self, real: &Path, id: FileId) {
        self.watcher.watch(real, id);
    }

    fn visit_file(&mut self, file: &FoundFile<'_>) {
        self.files.record_file(file, self.context);
    }

    fn unreadable_file(&mut self, path: &Path, why: &str) {
        self.files.record_unreadable(&path.to_path_buf(), why.to_owned(), self.context);
    }

    fn unreadable_folder(&mut self, path: &Path, why: &str) {
        self.unreadable_folders.push((path.to_path_buf(), why.to_owned()));
    }
}
