//! Reads the committed content of each file and its last commit, with the `git` program, once per commit and within a
//! time limit. If git is missing or slow, no information is available. A query without a result is not repeated before
//! the next commit; the time limit is long enough for a machine that stalls for a moment.

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use ring::digest::{Context, SHA1_FOR_LEGACY_USE_ONLY};

use super::program::{block_on_with_timeout, run_git};
use crate::resource::Commit;
use crate::resource::bundle::SKILL_FILE;
use crate::source::parse::{is_skill_file, is_visited, printable};

/// The number of commits that are searched for the last commit of each file.
const MAX_COMMITS_ARG: &str = "--max-count=1000";
/// The number of characters of an author and of a subject that are kept.
const MAX_TEXT_CHARS: usize = 200;

/// The object id that git gives a content, in repositories that use SHA-1.
pub type BlobId = [u8; 20];

/// The files of one commit below the root, with paths relative to it.
#[derive(Debug, Default)]
pub struct CommitFiles {
    blobs: HashMap<PathBuf, BlobId>,
    last_commits: HashMap<PathBuf, Arc<Commit>>,
}

impl CommitFiles {
    /// Reads the files of the commit `head` in the folder `root`; returns `None` if git fails. Blocks; must be called
    /// in a runtime.
    pub fn load(root: &Path, head: &str) -> Option<Self> {
        let tree = ["ls-tree", "-r", "-z", head];
        let format = "--format=%x01%H%x00%an <%ae>%x00%s";
        let log = [
            "log",
            "--no-merges",
            "--no-renames",
            "--name-only",
            "--relative",
            MAX_COMMITS_ARG,
            format,
            head,
            "--",
            ".",
        ];
        let (tree, log) =
            block_on_with_timeout(async { tokio::join!(run_git(root, &tree), run_git(root, &log)) })?;
        Some(Self { blobs: parse_tree(&tree?), last_commits: parse_log(&log?) })
    }

    /// True if the commit has this content at this path.
    pub fn contains(&self, path: &Path, blob: &BlobId) -> bool {
        self.blobs.get(path) == Some(blob)
    }

    /// True if the commit has a file at this path.
    pub fn contains_path(&self, path: &Path) -> bool {
        self.blobs.contains_key(path)
    }

    /// Returns the paths of the declaration files of the commit.
    pub fn paths(&self) -> impl Iterator<Item = &PathBuf> {
        self.blobs.keys()
    }

    /// Returns the last commit that changed a file.
    pub fn last_commit(&self, path: &Path) -> Option<&Arc<Commit>> {
        self.last_commits.get(path)
    }
}

/// Returns the object id of a content.
pub fn blob_id(bytes: &[u8]) -> BlobId {
    let mut context = Context::new(&SHA1_FOR_LEGACY_USE_ONLY);
    context.update(format!("blob {}\0", bytes.len()).as_bytes());
    context.update(bytes);
    let mut blob = BlobId::default();
    for (target, source) in blob.iter_mut().zip(context.finish().as_ref()) {
        *target = *source;
    }
    blob
}

/// Parses the output of `ls-tree -z`: `mode type name TAB path NUL`. Links are omitted, because their targets have
/// other content.
fn parse_tree(tree: &str) -> HashMap<PathBuf, BlobId> {
    let entry = |entry: &str| {
        let (attributes, path) = entry.split_once('\t')?;
        let mut attributes = attributes.split(' ');
        let is_file = attributes.next()?.starts_with("100");
        let path = Path::new(path);
        Some((path.to_path_buf(), parse_blob_id(attributes.nth(1)?)?)).filter(|_| is_file && is_visited(path))
    };
    let mut blobs: HashMap<_, _> = tree.split('\0').filter_map(entry).collect();
    // A walk visits no other file in the folder of a skill.
    let names = tree.split('\0').filter_map(|entry| Some(Path::new(entry.split_once('\t')?.1)));
    let skills: HashSet<_> = names
        .filter(|path| path.file_name().is_some_and(|name| name == SKILL_FILE))
        .filter_map(Path::parent)
        .filter(|folder| folder.file_name().is_some())
        .collect();
    blobs.retain(|path: &PathBuf, _| {
        let folder = path.parent().unwrap_or(path);
        let above = if is_skill_file(path) { folder.parent().unwrap_or(folder) } else { folder };
        !above.ancestors().any(|folder| skills.contains(folder))
    });
    blobs
}

fn parse_blob_id(hex: &str) -> Option<BlobId> {
    let mut blob = BlobId::default();
    for (index, byte) in blob.iter_mut().enumerate() {
        *byte = u8::from_str_radix(hex.get(2 * index..2 * index + 2)?, 16).ok()?;
    }
    (hex.len() == 2 * blob.len()).then_some(blob)
}

/// Parses the output of `log --name-only`, newest commit first: a line for each commit, then the files that it changed.
fn parse_log(log: &str) -> HashMap<PathBuf, Arc<Commit>> {
    let mut last_commits = HashMap::new();
    let mut commit = None;
    for line in log.lines() {
        if let Some(header) = line.strip_prefix('\x01') {
            let mut header = header.split('\0');
            let mut next_field = || header.next().unwrap_or_default();
            let (id, author, subject) =
                (next_field().to_owned(), sanitize(next_field()), sanitize(next_field()));
            commit = Some(Arc::new(Commit { id, author, subject }));
        } else if let Some(commit) = commit.as_ref().filter(|_| !line.is_empty()) {
            last_commits.entry(PathBuf::from(line)).or_insert_with(|| Arc::clone(commit));
        }
    }
    last_commits
}

fn sanitize(text: &str) -> String {
    printable(text).chars().take(MAX_TEXT_CHARS).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn git_output_is_parsed() {
        assert_eq!(parse_blob_id("ce013625030ba8dba906f756967f9e9ca394464a"), Some(blob_id(b"hello\n")));
        let tree = "100644 blob ce013625030ba8dba906f756967f9e9ca394464a\ta.yaml\0\
                    120000 blob ce013625030ba8dba906f756967f9e9ca394464a\tlink.yaml\0\
                    100644 blob ce013625030ba8dba906f756967f9e9ca394464a\t.hidden/b.yaml\0\
                    100644 blob ce013625030ba8dba906f756967f9e9ca394464a\tREADME.md\0\
                    100644 blob ce013625030ba8dba906f756967f9e9ca394464a\tskills/s/SKILL.md\0\
                    100644 blob ce013625030ba8dba906f756967f9e9ca394464a\tskills/s/deep/b.yaml\0\
                    100644 blob ce013625030ba8dba906f756967f9e9ca394464a\tother/SKILL.md\0\
                    100644 blob ce013625030ba8dba906f756967f9e9ca394464a\tother/b.yaml\0\
                    100755 blob ce013625030ba8dba906f756967f9e9ca394464a\tt\u{e4}m/.mcp.json\0";
        let blobs = parse_tree(tree);
        let mut paths: Vec<_> = blobs.keys().map(|path| path.display().to_string()).collect();
        paths.sort();
        assert_eq!(paths, ["a.yaml", "skills/s/SKILL.md", "t\u{e4}m/.mcp.json"]);
        let log =
            "\x0122\0Ann <ann@x>\0Second\x1b[2J\n\na.yaml\n\x0111\0Bob <b@x>\0First\n\na.yaml\nb.yaml\n";
        let last = parse_log(log);
        let last_commit = |path: &str| {
            last.get(Path::new(path))
                .map(|commit| format!("{} {} {}", commit.id, commit.author, commit.subject))
        };
        assert_eq!(last_commit("a.yaml").as_deref(), Some("22 Ann <ann@x> Second\u{fffd}[2J"));
        assert_eq!(last_commit("b.yaml").as_deref(), Some("11 Bob <b@x> First"));
        assert_eq!(last_commit("c.yaml"), None);
    }
}
