//! What git knows of the files: the content that is committed, and who committed it last. Asked of the `git`
//! program once per commit, within a bound; where that is missing or slow, nothing is known. What is not answered is not
//! asked again before the next commit, so that a machine which only stands still for a moment gets its answer.

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use ring::digest::{Context, SHA1_FOR_LEGACY_USE_ONLY};

use super::program::{block_on_with_timeout, git};
use crate::resource::Commit;
use crate::resource::bundle::SKILL_FILE;
use crate::source::parse::{is_skill_file, is_visited, printable};

/// So many commits are searched for the last one of each file.
const MAX_COMMITS_ARG: &str = "--max-count=1000";
/// Characters of an author and of a subject that are kept.
const MAX_TEXT_CHARS: usize = 200;

/// The name that git has for a content, in the usual form of repositories.
pub type BlobId = [u8; 20];

/// The files of one commit below the root, with paths relative to it.
#[derive(Debug, Default)]
pub struct CommitFiles {
    blobs: HashMap<PathBuf, BlobId>,
    last_commits: HashMap<PathBuf, Arc<Commit>>,
}

impl CommitFiles {
    /// What `head` holds of the folder `root`; `None` if git does not say. Blocks, in a runtime.
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
        let (tree, log) = block_on_with_timeout(async { tokio::join!(git(root, &tree), git(root, &log)) })?;
        Some(Self { blobs: parse_tree(&tree?), last_commits: parse_log(&log?) })
    }

    /// Whether the commit holds this content under this path.
    pub fn contains(&self, path: &Path, blob: &BlobId) -> bool {
        self.blobs.get(path) == Some(blob)
    }

    /// Whether it holds something under this path.
    pub fn contains_path(&self, path: &Path) -> bool {
        self.blobs.contains_key(path)
    }

    /// The declarations that it holds.
    pub fn paths(&self) -> impl Iterator<Item = &PathBuf> {
        self.blobs.keys()
    }

    /// The last commit that changed a file.
    pub fn last_commit(&self, path: &Path) -> Option<&Arc<Commit>> {
        self.last_commits.get(path)
    }
}

/// Git's name for a content.
pub fn blob(bytes: &[u8]) -> BlobId {
    let mut context = Context::new(&SHA1_FOR_LEGACY_USE_ONLY);
    context.update(format!("blob {}\0", bytes.len()).as_bytes());
    context.update(bytes);
    let mut blob = BlobId::default();
    for (to, from) in blob.iter_mut().zip(context.finish().as_ref()) {
        *to = *from;
    }
    blob
}

/// Of `ls-tree -z`: `mode type name TAB path NUL`. Links are left out: what they lead to is something else.
fn parse_tree(tree: &str) -> HashMap<PathBuf, BlobId> {
    let entry = |entry: &str| {
        let (about, path) = entry.split_once('\t')?;
        let mut about = about.split(' ');
        let is_file = about.next()?.starts_with("100");
        let path = Path::new(path);
        Some((path.to_path_buf(), parse_blob_id(about.nth(1)?)?)).filter(|_| is_file && is_visited(path))
    };
    let mut blobs: HashMap<_, _> = tree.split('\0').filter_map(entry).collect();
    // In the folder of a skill nothing else is met.
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

/// Of `log --name-only`, the newest first: a line for each commit, then the files it changed.
fn parse_log(log: &str) -> HashMap<PathBuf, Arc<Commit>> {
    let mut found = HashMap::new();
    let mut commit = None;
    for line in log.lines() {
        if let Some(about) = line.strip_prefix('\x01') {
            let mut about = about.split('\0');
            let mut next = || about.next().unwrap_or_default();
            let (id, author, subject) = (next().to_owned(), sanitize(next()), sanitize(next()));
            commit = Some(Arc::new(Commit { id, author, subject }));
        } else if let Some(commit) = commit.as_ref().filter(|_| !line.is_empty()) {
            found.entry(PathBuf::from(line)).or_insert_with(|| Arc::clone(commit));
        }
    }
    found
}

fn sanitize(text: &str) -> String {
    printable(text).chars().take(MAX_TEXT_CHARS).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn git_output_is_parsed() {
        assert_eq!(parse_blob_id("ce013625030ba8dba906f756967f9e9ca394464a"), Some(blob(b"hello\n")));
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
        let told = |path: &str| {
            last.get(Path::new(path))
                .map(|commit| format!("{} {} {}", commit.id, commit.author, commit.subject))
        };
        assert_eq!(told("a.yaml").as_deref(), Some("22 Ann <ann@x> Second\u{fffd}[2J"));
        assert_eq!(told("b.yaml").as_deref(), Some("11 Bob <b@x> First"));
        assert_eq!(told("c.yaml"), None);
    }
}
