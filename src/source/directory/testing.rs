//! A directory for tests, without watches and with a clock of the test.

use std::collections::HashSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use jiff::Timestamp;
use tempfile::TempDir;
use tokio::time::Instant;

use super::options::{Args, Options};
use super::scan::Scanner;
use crate::resource::{Desired, DigestKey};
use crate::source::{Environment, SourceMetrics, StdioPolicy};
use crate::state_dir::StateDir;

/// Creates a scanner of `folder/root`, with secrets in `folder/secrets` and its state in `folder/state`.
pub(super) fn new_scanner(folder: &TempDir, now: Instant, prune_empty: bool) -> Scanner {
    let args = Args {
        root: folder.path().join("root"),
        secrets_dir: folder.path().join("secrets"),
        environment: Environment::default(),
        prune_empty,
        poll_interval: Some(Duration::from_secs(1)),
        policy: StdioPolicy::allow_all(),
    };
    let options = Options { args, digest_key: DigestKey::new(b"k"), metrics: SourceMetrics::default() };
    let state = StateDir::open(&folder.path().join("state"), &options.args.root).unwrap();
    Scanner::new(options, Arc::new(state), Arc::default(), now)
}

/// A directory with its state, which outlives restarts.
pub(crate) struct TestDirectory {
    folder: TempDir,
    /// The number of writes so far.
    writes: AtomicU64,
    scanner: Option<Scanner>,
}

impl TestDirectory {
    /// Creates an empty directory, in memory where that is possible.
    pub(crate) fn new(now: Instant) -> Self {
        let memory = Path::new("/dev/shm");
        let parent = if memory.is_dir() { memory.to_owned() } else { std::env::temp_dir() };
        let folder = tempfile::tempdir_in(parent).unwrap();
        fs::create_dir(folder.path().join("root")).unwrap();
        fs::create_dir(folder.path().join("secrets")).unwrap();
        let scanner = Some(new_scanner(&folder, now, false));
        Self { folder, writes: AtomicU64::new(0), scanner }
    }

    /// Writes a file, or removes it (`None`), also while the directory is away.
    pub(crate) fn write(&self, name: &str, text: Option<&str>) {
        let [root, away] = ["root", "away"].map(|name| self.folder.path().join(name));
        self.put(&if away.exists() { away } else { root }.join(name), text);
    }

    /// Writes the key `token` of a secret, or removes it (`None`).
    pub(crate) fn write_secret(&self, secret: &str, value: Option<&str>) {
        self.put(&self.folder.path().join("secrets").join(secret).join("token"), value);
    }

    /// Moves the directory away, or back.
    pub(crate) fn set_hidden(&self, hidden: bool) {
        let [root, away] = ["root", "away"].map(|name| self.folder.path().join(name));
        if hidden && root.exists() {
            fs::rename(root, away).unwrap();
        } else if !hidden && away.exists() {
            fs::rename(away, root).unwrap();
        }
    }

    /// Scans once. `settled` if the tree has been quiet for a while. Returns true if a removal is held for some time.
    pub(crate) fn scan(&mut self, time: (Instant, Timestamp), settled: bool) -> (Arc<Desired>, bool) {
        let result = self.scanner.as_mut().unwrap().scan(&HashSet::new(), time, settled);
        (result.desired, result.removals_held)
    }

    /// Saves the state for the next run.
    pub(crate) fn save_records(&mut self) {
        self.scanner.as_mut().unwrap().save_records();
    }

    /// Begins anew, from the directory and the saved state.
    pub(crate) fn restart(&mut self, now: Instant) {
        self.scanner = None;
        self.scanner = Some(new_scanner(&self.folder, now, false));
    }

    /// Returns the contents of all files of the state directory, with their paths.
    pub(crate) fn state_files(&self) -> Vec<(PathBuf, Vec<u8>)> {
        let (mut folders, mut files) = (vec![self.folder.path().join("state")], Vec::new());
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
                if entry.path().is_dir() {
                    folders.push(entry.path());
                } else {
                    files.push((entry.path(), fs::read(entry.path()).unwrap_or_default()));
                }
            }
        }
        files
    }

    /// Each write has a modification time of its own. The clock of the file system is too coarse for writes that follow
    /// each other at once, and the clock of the test does not show that.
    fn put(&self, path: &Path, text: Option<&str>) {
        if let Some(text) = text {
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
            let seconds = self.writes.fetch_add(1, Ordering::Relaxed);
            let file = fs::File::options().write(true).open(path).unwrap();
            file.set_modified(SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)).unwrap();
        } else if path.exists() {
            fs::remove_file(path).unwrap();
        }
    }
}
