//! Reads the checked-out commit of a work tree and whether git is running, from the files of git and without running
//! it. Only refs in a reftable require the `git` program.

use std::path::{Path, PathBuf};

use super::program::{block_on_with_timeout, run_git};
use crate::source::directory::tree::read_file;

/// The size limit of a pointer file: HEAD, a branch, or a `.git` file.
const MAX_POINTER_BYTES: u64 = 4 << 10;
const MAX_PACKED_REFS_BYTES: u64 = 32 << 20;
/// The content of HEAD if the refs are in a reftable, for programs that only support files.
const REFTABLE_HEAD_REF: &str = "refs/heads/.invalid";
/// The list of the tables that hold the refs; every change of a ref changes it.
const REFTABLE_LIST_FILE: &str = "reftable/tables.list";
const MAX_REFTABLE_LIST_BYTES: u64 = 64 << 10;

/// The git directory of a work tree.
#[derive(Debug)]
pub struct GitDirectory {
    /// The work tree.
    work_tree: PathBuf,
    git_dir: PathBuf,
    /// The directory that holds the branches: a different one if this is one of several work trees.
    common_dir: PathBuf,
}

/// The last commit that the `git` program returned, if it is needed, and the tables that held the refs then.
#[derive(Debug, Default)]
pub struct GitHead {
    tables: Vec<Option<Vec<u8>>>,
    commit: Option<String>,
}

impl GitDirectory {
    /// Returns the git directory of the work tree that contains `folder`, if there is one.
    pub fn containing(folder: &Path) -> Option<Self> {
        folder.ancestors().find_map(|tree| {
            let dot_git = tree.join(".git");
            let folder = if dot_git.is_dir() {
                dot_git
            } else {
                let pointer = read_pointer(&dot_git)?;
                tree.join(pointer.strip_prefix("gitdir:")?.trim_start())
            };
            let common = read_pointer(&folder.join("commondir"));
            let common = common.map_or_else(|| folder.clone(), |common| folder.join(common));
            Some(Self { work_tree: tree.to_path_buf(), git_dir: folder, common_dir: common })
        })
    }

    /// Returns the checked-out commit; `None` before the first commit. If the refs are in a reftable, git runs once for
    /// each state of it, which `last` caches; the call then blocks and must be in a runtime.
    pub fn head(&self, last: &mut GitHead) -> Option<String> {
        let head = read_pointer(&self.git_dir.join("HEAD"))?;
        let Some(branch) = head.strip_prefix("ref:") else {
            return parse_commit_id(&head);
        };
        let branch = branch.trim();
        if branch == REFTABLE_HEAD_REF {
            return self.query_head(last);
        }
        if branch.split('/').any(|part| part.is_empty() || part.starts_with('.')) {
            return None;
        }
        let read_loose_ref =
            |folder: &Path| read_pointer(&folder.join(branch)).as_deref().and_then(parse_commit_id);
        read_loose_ref(&self.git_dir).or_else(|| read_loose_ref(&self.common_dir)).or_else(|| {
            let (_, packed_refs) =
                read_file(&self.common_dir.join("packed-refs"), MAX_PACKED_REFS_BYTES).ok()?;
            let text = String::from_utf8_lossy(&packed_refs);
            let line = text.lines().find(|line| line.split(' ').nth(1) == Some(branch))?;
            parse_commit_id(line.split(' ').next()?)
        })
    }

    fn query_head(&self, last: &mut GitHead) -> Option<String> {
        let read_list = |folder: &Path| {
            Some(read_file(&folder.join(REFTABLE_LIST_FILE), MAX_REFTABLE_LIST_BYTES).ok()?.1)
        };
        let tables = vec![read_list(&self.git_dir), read_list(&self.common_dir)];
        if last.tables != tables {
            let output = block_on_with_timeout(run_git(
                &self.work_tree,
                &["rev-parse", "--verify", "--quiet", "HEAD"],
            ))
            .flatten();
            *last = GitHead { tables, commit: output.and_then(|output| parse_commit_id(output.trim())) };
        }
        last.commit.clone()
    }

    /// True if a git command is changing the work tree now, or died while it did.
    pub fn is_busy(&self) -> bool {
        self.git_dir.join("index.lock").symlink_metadata().is_ok()
    }

    /// Returns the directory that contains the [`GitDirectory::watched_files`].
    pub fn path(&self) -> &Path {
        &self.git_dir
    }

    /// Returns the files that change when a commit is made or another commit is checked out.
    pub fn watched_files(&self) -> impl Iterator<Item = PathBuf> {
        ["HEAD", "index", "index.lock"].map(|name| self.git_dir.join(name)).into_iter()
    }
}

fn read_pointer(path: &Path) -> Option<String> {
    let (_, bytes) = read_file(path, MAX_POINTER_BYTES).ok()?;
    Some(String::from_utf8(bytes).ok()?.trim().to_owned())
}

fn parse_commit_id(text: &str) -> Option<String> {
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
    fn head_is_read_from_the_files_of_git() {
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
                        "# pack-refs with: peeled\n\
                         1111111111111111111111111111111111111111 refs/heads/bb\n\
                         2222222222222222222222222222222222222222 refs/heads/b\n\
                         ^1111111111111111111111111111111111111111\n",
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
            ("broken", &[(".git/HEAD", "invalid")], None),
            ("empty", &[(".git/x", "")], None),
            ("a ref above the directory", &[(".git/HEAD", "ref: ../../x"), ("x", ONE)], None),
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
            let head = GitDirectory::containing(&tree).and_then(|git| git.head(&mut GitHead::default()));
            assert_eq!(head.as_deref(), *expected, "{name}");
        }
    }

    /// Emulates a reftable with any version of git: a stub git directory points to a reftable next to a repository that
    /// git can read.
    #[tokio::test]
    async fn git_is_run_once_per_state_of_a_reftable() {
        let folder = tempfile::tempdir().unwrap();
        let run = |args: &[&str]| {
            let output = std::process::Command::new("git")
                .args(["-c", "user.name=a", "-c", "user.email=a@example.com", "-c", "commit.gpgsign=false"])
                .args(args)
                .current_dir(folder.path())
                .output()
                .unwrap();
            assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
            String::from_utf8(output.stdout).unwrap().trim().to_owned()
        };
        let write = |name: &str, text: &str| fs::write(folder.path().join(name), text).unwrap();
        run(&["init", "-q"]);
        fs::create_dir_all(folder.path().join("stub/reftable")).unwrap();
        write("stub/HEAD", "ref: refs/heads/.invalid\n");
        write("stub/reftable/tables.list", "one\n");
        let (tree, stub) = (folder.path().to_path_buf(), folder.path().join("stub"));
        let mut last = GitHead::default();
        let mut read_head = async || {
            let git =
                GitDirectory { work_tree: tree.clone(), git_dir: stub.clone(), common_dir: stub.clone() };
            let mut head = std::mem::take(&mut last);
            let task = tokio::task::spawn_blocking(move || (git.head(&mut head), head));
            let (commit, head) = task.await.unwrap();
            last = head;
            commit
        };
        assert_eq!(read_head().await, None, "before the first commit");
        run(&["commit", "-q", "--allow-empty", "-m", "x"]);
        let commit = run(&["rev-parse", "HEAD"]);
        assert_eq!(read_head().await, None, "the tables are the same, so git is not run again");
        write("stub/reftable/tables.list", "one\ntwo\n");
        assert_eq!(read_head().await, Some(commit));
    }
}
