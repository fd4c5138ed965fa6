//! The files of environment variables that servers refer to with `envFile`.
//!
//! Promises never to read outside the directory, not through a link either. The contents stay in memory while a server
//! refers to them, and are read again only when their file has changed.

use std::cell::RefCell;
use std::collections::{HashMap, HashSet};
use std::io;
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use secrecy::{ExposeSecret, SecretString};

use super::tree::{FileStamp, TreeRoot, read_failure};
use crate::resource::{Problem, Reason};
use crate::source::parse::display_path;

/// The size limit of a file.
const MAX_ENV_FILE_BYTES: u64 = 64 << 10;

/// The files that were read, by their paths relative to the root.
pub(super) struct EnvFiles {
    root: PathBuf,
    cache: RefCell<HashMap<PathBuf, CachedFile>>,
}

#[derive(Clone)]
struct CachedFile {
    /// The stamp of the file when it was read; `None` if it could not be read, or if the stamp is too recent to prove
    /// anything.
    stamp: Option<FileStamp>,
    content: Result<SecretString, Problem>,
}

impl EnvFiles {
    pub fn new(root: PathBuf) -> Self {
        Self { root, cache: RefCell::default() }
    }

    /// True if no file was read.
    pub fn is_empty(&self) -> bool {
        self.cache.borrow().is_empty()
    }

    /// Returns the content of a file as of the last refresh, or reads it now if it was not read before.
    pub fn get(&self, path: &Path, now: Timestamp) -> Result<SecretString, Problem> {
        let mut cache = self.cache.borrow_mut();
        let cached = cache.entry(path.to_path_buf()).or_insert_with_key(|path| self.read(path, now));
        cached.content.clone()
    }

    /// Drops the files that are not in `referenced`, reads the others again if they changed, and returns true if a
    /// content differs.
    pub fn refresh(&mut self, referenced: &HashSet<PathBuf>, now: Timestamp) -> bool {
        let mut cache = std::mem::take(self.cache.get_mut());
        cache.retain(|path, _| referenced.contains(path));
        let mut changed = false;
        for (path, cached) in &mut cache {
            let stamp = rustix::fs::stat(self.root.join(path)).ok().map(|stat| FileStamp::of(&stat));
            if stamp.is_some() && stamp == cached.stamp {
                continue;
            }
            let current = self.read(path, now);
            changed |= !is_same_content(&cached.content, &current.content);
            *cached = current;
        }
        self.cache = RefCell::new(cache);
        changed
    }

    /// Returns the real paths of the files, whether they exist or not.
    pub fn real_paths(&self) -> Vec<PathBuf> {
        let Ok(root) = self.root.canonicalize() else { return Vec::new() };
        let real_path = |path: &PathBuf| {
            let path = root.join(path);
            path.canonicalize().unwrap_or(path)
        };
        self.cache.borrow().keys().map(real_path).collect()
    }

    fn read(&self, path: &Path, now: Timestamp) -> CachedFile {
        let failed = |reason: Reason, why: &str| CachedFile {
            stamp: None,
            content: Err(Problem::new(reason, format!("envFile: {} {why}", display_path(path)))),
        };
        let read = TreeRoot::open(&self.root).and_then(|root| root.read_file(path, MAX_ENV_FILE_BYTES));
        match read.map(|(stamp, bytes)| (stamp, String::from_utf8(bytes))) {
            Ok((stamp, Ok(text))) => CachedFile {
                stamp: Some(stamp).filter(|stamp| stamp.is_settled(now)),
                content: Ok(text.into()),
            },
            Ok((_, Err(_))) => failed(Reason::InvalidSpec, "is not valid UTF-8"),
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
                failed(Reason::EnvFileNotFound, "was not found")
            }
            Err(error) => failed(Reason::InvalidSpec, &read_failure(&error)),
        }
    }
}

fn is_same_content(one: &Result<SecretString, Problem>, other: &Result<SecretString, Problem>) -> bool {
    match (one, other) {
        (Ok(one), Ok(other)) => one.expose_secret() == other.expose_secret(),
        (Err(one), Err(other)) => one == other,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn files_are_read_inside_the_directory_only_and_noticed_when_they_change() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().join("fleet");
        fs::create_dir_all(root.join(".vscode")).unwrap();
        fs::write(folder.path().join("outside"), "A=hunter2").unwrap();
        fs::write(root.join(".vscode/.env"), "A=1").unwrap();
        fs::write(root.join("binary"), b"A=\xff").unwrap();
        fs::write(root.join("huge"), "#".repeat((64 << 10) + 1)).unwrap();
        symlink(".vscode/.env", root.join("link")).unwrap();
        symlink("../outside", root.join("escape")).unwrap();
        let now = Timestamp::now();
        let mut files = EnvFiles::new(root.clone());
        let read = |files: &EnvFiles, path: &str| match files.get(Path::new(path), now) {
            Ok(text) => text.expose_secret().to_owned(),
            Err(problem) => problem.to_string(),
        };
        for (path, expected) in [
            (".vscode/.env", "A=1"),
            ("link", "A=1"),
            (
                "escape",
                "InvalidSpec: envFile: escape is a link to a target outside the directory; it is not followed",
            ),
            ("missing", "EnvFileNotFound: envFile: missing was not found"),
            (".vscode", "InvalidSpec: envFile: .vscode is not a regular file"),
            ("binary", "InvalidSpec: envFile: binary is not valid UTF-8"),
            ("huge", "InvalidSpec: envFile: huge is larger than 64 KiB"),
        ] {
            assert_eq!(read(&files, path), expected);
        }
        let referenced = HashSet::from([PathBuf::from(".vscode/.env"), PathBuf::from("missing")]);
        assert!(!files.refresh(&referenced, now));
        fs::write(root.join(".vscode/.env"), "A=2").unwrap();
        assert_eq!(read(&files, ".vscode/.env"), "A=1");
        assert!(files.refresh(&referenced, now));
        assert_eq!(read(&files, ".vscode/.env"), "A=2");
        fs::write(root.join("missing"), "B=1").unwrap();
        assert!(files.refresh(&referenced, now) && read(&files, "missing") == "B=1");
        assert!(files.refresh(&HashSet::new(), now) || files.is_empty());
    }
}
