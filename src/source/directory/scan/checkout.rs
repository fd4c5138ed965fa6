//! Compares the files with the checked-out commit. Runs git once per commit, and blocks then.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use crate::resource::Commit;
use crate::source::directory::git::{CommitFiles, GitDirectory, GitHead};
use crate::source::directory::history::DeclarationFiles;

/// The time to wait for a running git command; an older lock was left behind.
pub const GIT_LOCK_TIMEOUT: Duration = Duration::from_secs(10);

/// The information that git returned about the checked-out commit.
#[derive(Default)]
pub struct Checkout {
    current: Option<CommitState>,
    head: GitHead,
    /// The time since which git has been running.
    busy_since: Option<Instant>,
}

/// A commit, its files, and whether the files of this version differ from it.
struct CommitState {
    head: String,
    commits: Option<CommitFiles>,
    version: u64,
    dirty: bool,
}

impl Checkout {
    /// Returns the checked-out commit; `None` before the first commit.
    pub fn head(&mut self, git: &GitDirectory) -> Option<String> {
        git.head(&mut self.head)
    }

    /// Returns the revision: the commit, with `-dirty` if a declaration differs from it; without a commit a digest of
    /// all files.
    pub fn revision(&mut self, root: &Path, head: Option<&str>, files: &mut DeclarationFiles) -> Arc<str> {
        let Some(head) = head else {
            self.current = None;
            return files.digest().to_string().into();
        };
        let version = files.version();
        let state = match self.current.take().filter(|state| state.head == head) {
            Some(state) if state.version == version => state,
            previous => {
                let load = || CommitFiles::load(root, head);
                let commits = previous.map_or_else(load, |previous| previous.commits);
                let dirty = commits.as_ref().is_some_and(|commits| !files.all_committed(commits));
                CommitState { head: head.to_owned(), commits, version, dirty }
            }
        };
        let suffix = if state.dirty { "-dirty" } else { "" };
        self.current = Some(state);
        format!("{head}{suffix}").into()
    }

    /// True if a git command is changing the tree, and not for so long that its lock must have been left behind.
    pub fn is_git_busy(&mut self, git: Option<&GitDirectory>, now: Instant) -> bool {
        if !git.is_some_and(GitDirectory::is_busy) {
            self.busy_since = None;
            return false;
        }
        now < *self.busy_since.get_or_insert(now) + GIT_LOCK_TIMEOUT
    }

    /// True if the files are those of the checked-out commit.
    pub fn is_clean(&self) -> bool {
        self.current.as_ref().is_some_and(|state| state.commits.is_some() && !state.dirty)
    }

    /// Returns the commit that last changed or removed a file, if the observed state of the file is that of the commit.
    pub fn last_change(&self, files: &DeclarationFiles, path: &Path) -> Option<Arc<Commit>> {
        let commits = self.current.as_ref()?.commits.as_ref()?;
        commits.last_commit(path).filter(|_| files.is_committed(path, commits)).cloned()
    }
}
