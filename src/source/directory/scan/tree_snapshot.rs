//! One walk of the tree, with the watches that were set before it. Blocks.

use std::io;
use std::path::Path;

use crate::resource::{Problem, Reason, SourceProblem};
use crate::source::directory::git::GitDirectory;
use crate::source::directory::history::{DeclarationFiles, ScanContext, UnreadableFolder};
use crate::source::directory::tree::{
    FileId, FolderWatcher, FoundFile, TreeRoot, TreeVisitor, names_of, walk,
};
use crate::source::parse::shown;

/// As often is looked again, within one look, for a root that is flipped meanwhile.
const FLIPS: usize = 3;

/// What is at the root.
pub struct TreeSnapshot {
    pub git: Option<GitDirectory>,
    /// False if it is not known what is there.
    pub seen: bool,
    pub faults: Vec<SourceProblem>,
}

/// Walks the tree at `given`. The root may be flipped meanwhile: then it is walked again.
pub fn see(
    given: &Path,
    secrets: &Path,
    files: &mut DeclarationFiles,
    watcher: &mut FolderWatcher,
    moment: &ScanContext<'_>,
) -> TreeSnapshot {
    let unknown = |why: &str| TreeSnapshot {
        git: None,
        seen: false,
        faults: vec![unavailable(format!("{} {why}", shown(given)))],
    };
    for _ in 0..FLIPS {
        // First the watches, then the look, so that nothing falls in between.
        let path = given.canonicalize().unwrap_or_else(|_| given.to_path_buf());
        let git = GitDirectory::of(&path);
        watch(given, &path, secrets, git.as_ref(), watcher);
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
        files.begin();
        let mut sight = Sight { files, watcher, moment, blind: Vec::new() };
        walk(&root, &mut sight);
        let blind = sight.blind;
        if TreeRoot::open(given).is_ok_and(|after| after.is(&root)) {
            files.end(&blind, moment);
            let told = |(folder, why): &UnreadableFolder| {
                unavailable(format!("{} {why}", shown(&given.join(folder))))
            };
            return TreeSnapshot { git, seen: true, faults: blind.iter().map(told).collect() };
        }
    }
    unknown("leads elsewhere at every look; nothing changes until it rests")
}

fn watch(given: &Path, root: &Path, secrets: &Path, git: Option<&GitDirectory>, watcher: &mut FolderWatcher) {
    let mut names = names_of(given);
    names.extend(names_of(secrets));
    let mut folders: Vec<_> = names.iter().filter_map(|name| name.parent()).map(Path::to_path_buf).collect();
    if let Some(git) = git {
        names.extend(git.signs());
        folders.push(git.folder().to_path_buf());
    }
    watcher.begin(names, root.to_path_buf(), secrets.to_path_buf());
    for folder in folders {
        watcher.folder(&folder);
    }
}

fn unavailable(message: String) -> SourceProblem {
    SourceProblem::new(None, Problem::new(Reason::SourceUnavailable, message))
}

/// What a walk does to the files and the watches.
struct Sight<'a> {
    files: &'a mut DeclarationFiles,
    watcher: &'a mut FolderWatcher,
    moment: &'a ScanContext<'a>,
    blind: Vec<UnreadableFolder>,
}

impl TreeVisitor for Sight<'_> {
    fn folder(&mut self, real: &Path, id: FileId) {
        self.watcher.met(real, id);
    }

    fn file(&mut self, file: &FoundFile<'_>) {
        self.files.met(file, self.moment);
    }

    fn unreadable(&mut self, path: &Path, why: &str) {
        self.files.unreadable(&path.to_path_buf(), why.to_owned(), self.moment);
    }

    fn blind(&mut self, path: &Path, why: &str) {
        self.blind.push((path.to_path_buf(), why.to_owned()));
    }
}
