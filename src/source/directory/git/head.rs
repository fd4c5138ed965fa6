//! What git says about a tree, read from its files without running it: the commit that is checked out, and
//! whether git is at work.

use std::path::{Path, PathBuf};

use crate::source::directory::tree::small_file;

/// Of a pointer: HEAD, a branch, a `.git` file.
const MAX_POINTER: u64 = 4 << 10;
const MAX_PACKED: u64 = 32 << 20;

/// The git directory of a work tree.
#[derive(Debug)]
pub struct Git {
    folder: PathBuf,
    /// Where branches are: another folder, if this is one of several work trees.
    common: PathBuf,
}

impl Git {
    /// Of the work tree that holds `folder`, if it is in one.
    pub fn of(folder: &Path) -> Option<Self> {
        folder.ancestors().find_map(|folder| {
            let entry = folder.join(".git");
            let folder = if entry.is_dir() {
                entry
            } else {
                let pointer = pointer(&entry)?;
                folder.join(pointer.strip_prefix("gitdir:")?.trim_start())
            };
            let common = pointer(&folder.join("commondir"));
            let common = common.map_or_else(|| folder.clone(), |common| folder.join(common));
            Some(Self { folder, common })
        })
    }

    /// The commit that is checked out; `None` before the first one, and for what git keeps in other ways.
    pub fn head(&self) -> Option<String> {
        let head = pointer(&self.folder.join("HEAD"))?;
        let Some(branch) = head.strip_prefix("ref:") else {
            return commit(&head);
        };
        let branch = branch.trim();
        if branch.split('/').any(|part| part.is_empty() || part.starts_with('.')) {
            return None;
        }
        let loose = |folder: &Path| pointer(&folder.join(branch)).as_deref().and_then(commit);
        loose(&self.folder).or_else(|| loose(&self.common)).or_else(|| {
            let (_, packed) = small_file(&self.common.join("packed-refs"), MAX_PACKED).ok()?;
            let text = String::from_utf8_lossy(&packed);
            let line = text.lines().find(|line| line.split(' ').nth(1) == Some(branch))?;
            commit(line.split(' ').next()?)
        })
    }

    /// Whether a git command is changing the work tree now, or died while it did.
    pub fn is_busy(&self) -> bool {
        self.folder.join("index.lock").symlink_metadata().is_ok()
    }

    /// The folder in which [`Git::signs`] appear.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The files whose changes say that a commit was made, or another checked out.
    pub fn signs(&self) -> impl Iterator<Item = PathBuf> {
        ["HEAD", "index", "index.lock"].map(|name| self.folder.join(name)).into_iter()
    }
}

fn pointer(path: &Path) -> Option<String> {
    let (_, bytes) = small_file(path, MAX_POINTER).ok()?;
    Some(String::from_utf8(bytes).ok()?.trim().to_owned())
}

fn commit(text: &str) -> Option<String> {
    let is_hash = matches!(text.len(), 40 | 64) && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    is_hash.then(|| text.to_owned())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    const ONE: &str = "1111111111111111111111111111111111111111";
    const TWO: &str = "2222222222222222222222222222222222222222";

    #[test]
    fn the_commit_that_is_checked_out() {
        type Case<'a> = (&'a str, &'a [(&'a str, &'a str)], Option<&'a str>);
        let table: &[Case<'_>] = &[
            ("detached", &[(".git/HEAD", ONE)], Some(ONE)),
            ("a branch", &[(".git/HEAD", "ref: refs/heads/a/b\n"), (".git/refs/heads/a/b", ONE)], Some(ONE)),
            (
                "a packed branch",
                &[
                    (".git/HEAD", "ref: refs/heads/b"),
                    (
                        ".git/packed-refs",
                        "# pack-refs with: peeled\n1111111111111111111111111111111111111111 refs/heads/bb\n2222222222222222222222222222222222222222 refs/heads/b\n^1111111111111111111111111111111111111111\n",
                    ),
                ],
                Some(TWO),
            ),
            (
                "one of several work trees",
                &[
                    (".git", "gitdir: ../repo/.git/worktrees/w\n"),
                    ("../repo/.git/worktrees/w/HEAD", "ref: refs/heads/b"),
                    ("../repo/.git/worktrees/w/commondir", "../..\n"),
                    ("../repo/.git/refs/heads/b", TWO),
                ],
                Some(TWO),
            ),
            ("before the first commit", &[(".git/HEAD", "ref: refs/heads/b")], None),
            ("broken", &[(".git/HEAD", "what?")], None),
            ("empty", &[(".git/x", "")], None),
            ("a name that climbs", &[(".git/HEAD", "ref: ../../x"), ("x", ONE)], None),
            ("none", &[], None),
        ];
        for (name, files, expected) in table {
            let folder = tempfile::tempdir().unwrap();
            let tree = folder.path().join("tree");
            fs::create_dir(&tree).unwrap();
            for (path, text) in *files {
                let path = tree.join(path);
                fs::create_dir_all(path.parent().unwrap()).unwrap();
                fs::write(path, text).unwrap();
            }
            let found = Git::of(&tree).and_then(|git| git.head());
            assert_eq!(found.as_deref(), *expected, "{name}");
        }
    }
}
