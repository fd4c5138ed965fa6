//! Walks the tree once, after setting the watches for it. Blocks.

use std::io;
use std::path::Path;

use crate::resource::{Problem, Reason, SourceProblem};
use crate::source::directory::git::GitDirectory;
use crate::source::directory::history::{DeclarationFiles, ScanContext, UnreadableFolder};
use crate::source::directory::tree::{
    FileId, FolderWatcher, FoundFile, IGNORE_FILE, IgnoreRules, TreeRoot, TreeVisitor, resolution_paths, walk,
};
use crate::source::parse::display_path;

/// The number of walks within one scan, for a root that is replaced meanwhile.
const MAX_WALKS: usize = 3;

/// The state of the root.
pub struct TreeSnapshot {
    pub git: Option<GitDirectory>,
    /// False if the content of the root could not be read.
    pub readable: bool,
    pub faults: Vec<SourceProblem>,
}

/// Walks the tree at `root_path`. If the root is replaced meanwhile, walks it again.
pub fn take_snapshot(
    root_path: &Path,
    secrets: &Path,
    files: &mut DeclarationFiles,
    watcher: &mut FolderWatcher,
    context: &ScanContext<'_>,
) -> TreeSnapshot {
    let unavailable = |reason: &str| TreeSnapshot {
        git: None,
        readable: false,
        faults: vec![source_unavailable(format!("{} {reason}", display_path(root_path)))],
    };
    for _ in 0..MAX_WALKS {
        // The watches are set before the walk, so that no change in between is missed.
        let path = root_path.canonicalize().unwrap_or_else(|_| root_path.to_path_buf());
        let git = GitDirectory::containing(&path);
        watch_paths(root_path, &path, secrets, git.as_ref(), watcher);
        let root = match TreeRoot::open(root_path) {
            Ok(root) if root.path == path => root,
            Ok(_) => continue,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return unavailable("not found; waiting for it to be created");
            }
            Err(error) => {
                return unavailable(&format!(
                    "cannot be read: {error}; the current state is kept until it can be read"
                ));
            }
        };
        let (rules, invalid_rules) = match IgnoreRules::read(&root) {
            Ok(read) => read,
            Err(error) => {
                return unavailable(&format!(
                    "cannot be read, because of its {IGNORE_FILE}: {error}; the current state is kept until it can \
                     be read"
                ));
            }
        };
        files.begin_scan(&rules);
        let mut visitor = SnapshotVisitor { files, watcher, context, unreadable_folders: Vec::new() };
        walk(&root, &rules, &mut visitor);
        let unreadable_folders = visitor.unreadable_folders;
        if TreeRoot::open(root_path).is_ok_and(|current| current.is_same(&root)) {
            files.end_scan(&unreadable_folders, context);
            let to_problem = |(folder, reason): &UnreadableFolder| {
                source_unavailable(format!("{} {reason}", display_path(&root_path.join(folder))))
            };
            return TreeSnapshot {
                git,
                readable: true,
                faults: unreadable_folders.iter().map(to_problem).chain(invalid_rules).collect(),
            };
        }
    }
    unavailable("is a link whose target keeps changing; the current state is kept until it is stable")
}

fn watch_paths(
    root: &Path,
    resolved_root: &Path,
    secrets: &Path,
    git: Option<&GitDirectory>,
    watcher: &mut FolderWatcher,
) {
    let mut paths = resolution_paths(root);
    paths.extend(resolution_paths(secrets));
    let mut folders: Vec<_> = paths.iter().filter_map(|path| path.parent()).map(Path::to_path_buf).collect();
    if let Some(git) = git {
        paths.extend(git.watched_files());
        folders.push(git.path().to_path_buf());
    }
    watcher.begin_round(paths, resolved_root.to_path_buf(), secrets.to_path_buf());
    for folder in folders {
        watcher.watch_if_folder(&folder);
    }
}

fn source_unavailable(message: String) -> SourceProblem {
    SourceProblem::new(None, Problem::new(Reason::SourceUnavailable, message))
}

/// Passes what a walk visits to the files and the watches.
struct SnapshotVisitor<'a> {
    files: &'a mut DeclarationFiles,
    watcher: &'a mut FolderWatcher,
    context: &'a ScanContext<'a>,
    unreadable_folders: Vec<UnreadableFolder>,
}

impl TreeVisitor for SnapshotVisitor<'_> {
    fn visit_folder(&mut self, real_path: &Path, id: FileId) {
        self.watcher.watch(real_path, id);
    }

    fn visit_file(&mut self, file: &FoundFile<'_>) {
        self.files.record_file(file, self.context);
    }

    fn unreadable_file(&mut self, path: &Path, reason: &str) {
        self.files.record_unreadable(&path.to_path_buf(), reason.to_owned(), self.context);
    }

    fn unreadable_folder(&mut self, path: &Path, reason: &str) {
        self.unreadable_folders.push((path.to_path_buf(), reason.to_owned()));
    }
}
