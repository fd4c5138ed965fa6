//! How the files differ from the commit that is checked out. Asks git once per commit, and blocks then.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use crate::resource::Commit;
use crate::source::directory::git::{CommitFiles, GitDirectory, GitHead};
use crate::source::directory::history::DeclarationFiles;

/// As long is waited for a git command that is at work; a lock that is older was left behind.
pub const GIT_LOCK_TIMEOUT: Duration = Duration::from_secs(10);

/// What git told of the commit that is checked out.
#[derive(Default)]
pub struct Checkout {
    current: Option<CommitState>,
    head: GitHead,
    /// Since when git has been at work.
    busy_since: Option<Instant>,
}

/// A commit, what git told of it, and whether the files of this version differ from it.
struct CommitState {
    head: String,
    commits: Option<CommitFiles>,
    version: u64,
    dirty: bool,
}

impl Checkout {
    /// The commit that is checked out; `None` before the first one.
    pub fn head(&mut self, git: &GitDirectory) -> Option<String> {
        git.head(&mut self.head)
    }

    /// The commit, `-dirty` if a declaration is not as it has it; without one a digest of all.
    pub fn revision(&mut self, root: &Path, head: Option<&str>, files: &mut DeclarationFiles) -> Arc<str> {
        let Some(head) = head else {
            self.current = None;
            return files.digest().to_string().into();
        };
        let version = files.version();
        let known = match self.current.take().filter(|known| known.head == head) {
            Some(known) if known.version == version => known,
            earlier => {
                let ask = || CommitFiles::load(root, head);
                let commits = earlier.map_or_else(ask, |earlier| earlier.commits);
                let dirty = commits.as_ref().is_some_and(|commits| !files.all_committed(commits));
                CommitState { head: head.to_owned(), commits, version, dirty }
            }
        };
        let suffix = if known.dirty { "-dirty" } else { "" };
        self.current = Some(known);
        format!("{head}{suffix}").into()
    }

    /// Whether a git command is changing the tree, and not for so long that its lock must have been left behind.
    pub fn is_git_busy(&mut self, git: Option<&GitDirectory>, now: Instant) -> bool {
        if !git.is_some_and(GitDirectory::is_busy) {
            self.busy_since = None;
            return false;
        }
        now < *self.busy_since.get_or_insert(now) + GIT_LOCK_TIMEOUT
    }

    /// Whether the files are those of the commit that is checked out.
    pub fn is_clean(&self) -> bool {
        self.current.as_ref().is_some_and(|known| known.commits.is_some() && !known.dirty)
    }

    /// The commit that changed a file last, or took it away, if what is seen of the file is what that commit says.
    pub fn last_change(&self, files: &DeclarationFiles, path: &Path) -> Option<Arc<Commit>> {
        let commits = self.current.as_ref()?.commits.as_ref()?;
        commits.last_commit(path).filter(|_| files.is_committed(path, commits)).cloned()
    }
}
