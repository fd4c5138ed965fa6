//! What was seen of each file, and what of it has been taken.
//!
//! Promises that a file that has not changed is not read again, and that a change or a removal is taken only
//! when two looks agree on it.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use tokio::time::Instant;

use super::merge::AcceptedObjects;
use crate::resource::Digest;
use crate::source::directory::git::{BlobId, CommitFiles, blob};
use crate::source::directory::tree::{FileStamp, FoundFile, why};
use crate::source::parse::{ParsedFile, display_path, parse};

/// Two looks this far apart must have seen the same.
const CONFIRMATION_INTERVAL: Duration = Duration::from_millis(100);

/// All files of the tree that may hold declarations.
#[derive(Debug, Default)]
pub struct DeclarationFiles {
    files: HashMap<Arc<PathBuf>, FileState>,
    /// Those of which something is still to be taken.
    pending: BTreeSet<Arc<PathBuf>>,
    scan_number: u64,
    /// Of all that was seen, until something else is.
    digest: Option<Digest>,
    /// Grows whenever something else is seen.
    version: u64,
}

#[derive(Debug)]
struct FileState {
    /// The round in which it was last met.
    last_seen_in: u64,
    /// As it was when read; `None` if it must be read again.
    stamp: Option<FileStamp>,
    observed: Observation,
    /// When it was first seen so.
    observed_since: Instant,
    /// It was closed after writing, or moved here, when it was last read.
    completed: bool,
    /// It declares nothing, and something in it is not understood, or it cannot be read.
    ambiguous: bool,
    applied: Applied,
}

/// What the last look saw.
#[derive(Debug)]
enum Observation {
    Gone,
    Unreadable(String),
    /// The declarations are there until they are taken.
    Content(ContentId, Option<ParsedFile>),
}

/// A content, by the names that we and git have for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct ContentId {
    digest: Digest,
    blob: BlobId,
}

/// What is in the book.
#[derive(Debug)]
enum Applied {
    Nothing,
    /// By an earlier run: the same content adds nothing but its faults.
    Restored(Digest),
    Unreadable(String),
    Content(Digest),
    /// What was new in a content, beside what was there before.
    Partial,
}

/// One look at the tree.
pub struct ScanContext<'a> {
    /// When it began.
    pub now: Instant,
    /// The same by the clock on the wall.
    pub wall_clock: Timestamp,
    /// The first of this run: what is new is taken as it is.
    pub is_first: bool,
    /// Nothing was heard of the tree for a while, or it was noisy for too long.
    pub settled: bool,
    /// Files and folders, by their real paths, that were closed after writing or moved here.
    pub completed: &'a HashSet<PathBuf>,
}

/// What was taken.
#[derive(Debug, Default)]
pub struct FileChanges {
    /// Something waits for another look.
    pub needs_rescan: bool,
    /// Something is held back that would be taken away.
    pub removals_held: bool,
    /// The files whose content in the book is another.
    pub changed: BTreeSet<Arc<PathBuf>>,
}

/// A folder of which not all could be seen, and why.
pub type UnreadableFolder = (PathBuf, String);

impl DeclarationFiles {
    /// A file whose content an earlier run had taken, or could not read.
    pub fn restore(&mut self, path: &Arc<PathBuf>, digest: Option<Digest>, now: Instant) {
        let file = FileState {
            applied: digest.map_or_else(|| Applied::Unreadable(String::new()), Applied::Restored),
            ..FileState::unobserved(now)
        };
        self.files.insert(Arc::clone(path), file);
        self.pending.insert(Arc::clone(path));
    }

    /// A look begins.
    pub fn begin_scan(&mut self) {
        self.scan_number += 1;
    }

    /// The look met a file, which is read if it may have changed.
    pub fn record_file(&mut self, found: &FoundFile<'_>, moment: &ScanContext<'_>) {
        if let Some(file) = self.files.get_mut(found.path)
            && file.stamp == Some(found.stamp)
        {
            file.last_seen_in = self.scan_number;
            return;
        }
        let (stamp, bytes) = match found.read() {
            Ok(read) => read,
            // It went since it was listed.
            Err(error) if error.kind() == io::ErrorKind::NotFound => return,
            Err(error) => {
                return self.record_unreadable(found.path, why(&error), moment);
            }
        };
        let content = ContentId { digest: Digest::of(&bytes), blob: blob(&bytes) };
        self.observe(found.path, moment, |path, file| {
            file.stamp = Some(stamp).filter(|stamp| stamp.is_settled(moment.wall_clock));
            file.completed = found.real_path.ancestors().any(|part| moment.completed.contains(part));
            if matches!(&file.observed, Observation::Content(seen, _) if *seen == content) {
                return None;
            }
            let parsed = parse(path, &bytes);
            file.ambiguous = parsed.is_ambiguous();
            Some(Observation::Content(content, Some(parsed)))
        });
    }

    /// The look met a file that cannot be read; `why` completes a sentence that begins with it.
    pub fn record_unreadable(&mut self, path: &PathBuf, why: String, moment: &ScanContext<'_>) {
        self.observe(path, moment, |_, file| {
            file.stamp = None;
            file.ambiguous = true;
            let same = matches!(&file.observed, Observation::Unreadable(seen) if *seen == why);
            (!same).then_some(Observation::Unreadable(why))
        });
    }

    /// The look is over: what it did not meet is gone, unless it is where the look could not see.
    pub fn end_scan(&mut self, blind: &[UnreadableFolder], moment: &ScanContext<'_>) {
        let missed = self.files.iter().filter(|(_, file)| file.last_seen_in != self.scan_number);
        let missed: Vec<_> = missed.map(|(path, _)| Arc::clone(path)).collect();
        for path in missed {
            match blind.iter().find(|(folder, _)| path.starts_with(folder)) {
                Some((folder, why)) if folder.as_os_str().is_empty() => {
                    self.record_unreadable(&path, format!("is unknown: the directory {why}"), moment);
                }
                Some((folder, why)) => {
                    let why = format!("is unknown: its folder {} {why}", display_path(folder));
                    self.record_unreadable(&path, why, moment);
                }
                None => self.observe(&path, moment, |_, file| {
                    file.stamp = None;
                    (!matches!(file.observed, Observation::Gone)).then_some(Observation::Gone)
                }),
            }
        }
    }

    /// Puts into the book what may be taken at this moment. If `hold`, nothing is taken away.
    pub fn apply(&mut self, book: &mut AcceptedObjects, moment: &ScanContext<'_>, hold: bool) -> FileChanges {
        let mut took = FileChanges::default();
        for path in std::mem::take(&mut self.pending) {
            let Some(file) = self.files.get_mut(&path) else {
                continue;
            };
            if hold && matches!(file.observed, Observation::Gone) {
                took.removals_held = true;
                self.pending.insert(path);
                continue;
            }
            if file.can_be_applied(moment) {
                match &mut file.observed {
                    Observation::Gone => {
                        book.record_file(&path, ParsedFile::default());
                        self.files.remove(&path);
                    }
                    Observation::Unreadable(why) => {
                        book.record_file(&path, ParsedFile::unreadable(&path, why));
                        file.applied = Applied::Unreadable(why.clone());
                    }
                    Observation::Content(ContentId { digest, .. }, parsed) => {
                        if let Some(parsed) = parsed.take() {
                            book.record_file(&path, parsed);
                        }
                        if !matches!(file.applied, Applied::Restored(taken) if taken == *digest) {
                            took.changed.insert(Arc::clone(&path));
                        }
                        file.applied = Applied::Content(*digest);
                    }
                }
                continue;
            }
            if let Observation::Content(_, Some(parsed)) = &file.observed
                && file.completed
            {
                book.record_new_objects(&path, parsed);
                file.applied = Applied::Partial;
            }
            took.needs_rescan = true;
            self.pending.insert(path);
        }
        took
    }

    /// Whether any file is there, readable or not.
    pub fn is_empty(&self) -> bool {
        self.files.values().all(|file| matches!(file.observed, Observation::Gone))
    }

    /// Tells whether no file is there but such as are not understood and have nothing in force: what was declared may have
    /// gone into those.
    pub fn is_ambiguous(&self, book: &AcceptedObjects) -> bool {
        let lost = |path, file: &FileState| file.ambiguous && !book.declares(path);
        self.files.iter().all(|(path, file)| matches!(file.observed, Observation::Gone) || lost(path, file))
    }

    /// The content of a file that is in the book.
    pub fn applied_digest(&self, path: &Arc<PathBuf>) -> Option<Digest> {
        match self.files.get(path)?.applied {
            Applied::Content(digest) | Applied::Restored(digest) => Some(digest),
            Applied::Nothing | Applied::Partial | Applied::Unreadable(_) => None,
        }
    }

    /// A digest of all that was seen.
    pub fn digest(&mut self) -> Digest {
        *self.digest.get_or_insert_with(|| {
            let content = |(path, file): (&Arc<PathBuf>, &FileState)| match &file.observed {
                Observation::Content(ContentId { digest, .. }, _) => {
                    Some(format!("{digest} {}\n", path.display()))
                }
                _ => None,
            };
            let mut all: Vec<_> = self.files.iter().filter_map(content).collect();
            all.sort_unstable();
            Digest::of(all.concat().as_bytes())
        })
    }

    /// Another number whenever something else was seen.
    pub fn version(&self) -> u64 {
        self.version
    }

    /// Whether a file is as a commit has it, which may be that it is not there.
    pub fn is_committed(&self, path: &Path, commits: &CommitFiles) -> bool {
        match self.files.get(&path.to_path_buf()).map(|file| &file.observed) {
            Some(Observation::Content(content, _)) => commits.contains(path, &content.blob),
            Some(Observation::Unreadable(_)) => false,
            Some(Observation::Gone) | None => !commits.contains_path(path),
        }
    }

    /// Whether all files are as a commit has them, and none is missing.
    pub fn all_committed(&self, commits: &CommitFiles) -> bool {
        let there = self.files.iter().filter(|(_, file)| !matches!(file.observed, Observation::Gone));
        let there = there.map(|(path, _)| path.as_path());
        let mut all = there.chain(commits.paths().map(PathBuf::as_path));
        all.all(|path| self.is_committed(path, commits))
    }

    fn observe(
        &mut self,
        path: &PathBuf,
        moment: &ScanContext<'_>,
        now_seen: impl FnOnce(&Arc<PathBuf>, &mut FileState) -> Option<Observation>,
    ) {
        let path = match self.files.get_key_value(path) {
            Some((path, _)) => Arc::clone(path),
            None => Arc::new(path.clone()),
        };
        let file = self.files.entry(Arc::clone(&path)).or_insert_with(|| FileState::unobserved(moment.now));
        file.last_seen_in = self.scan_number;
        if let Some(seen) = now_seen(&path, file) {
            file.observed = seen;
            file.observed_since = moment.now;
            self.digest = None;
            self.version += 1;
        }
        if file.is_pending() {
            self.pending.insert(path);
        } else {
            self.pending.remove(&path);
            if matches!(file.observed, Observation::Gone) {
                self.files.remove(&path);
            }
        }
    }
}

impl FileState {
    fn unobserved(now: Instant) -> Self {
        Self {
            last_seen_in: 0,
            stamp: None,
            observed: Observation::Gone,
            observed_since: now,
            completed: false,
            ambiguous: false,
            applied: Applied::Nothing,
        }
    }

    fn is_pending(&self) -> bool {
        match (&self.observed, &self.applied) {
            (Observation::Gone, Applied::Nothing) => false,
            (Observation::Unreadable(seen), Applied::Unreadable(taken)) => seen != taken,
            (Observation::Content(seen, _), Applied::Content(taken)) => seen.digest != *taken,
            _ => true,
        }
    }

    fn can_be_applied(&self, moment: &ScanContext<'_>) -> bool {
        match (&self.observed, &self.applied) {
            (Observation::Content(seen, _), Applied::Restored(taken)) if seen.digest == *taken => true,
            (_, Applied::Nothing) if moment.is_first => true,
            _ => moment.settled && moment.now >= self.observed_since + CONFIRMATION_INTERVAL,
        }
    }
}
