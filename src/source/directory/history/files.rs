//! Tracks what was observed of each file and what of it was applied.
//!
//! Promises that an unchanged file is not read again, and that a change or a removal is applied only after two scans
//! agree on it.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use tokio::time::Instant;

use super::merge::AcceptedObjects;
use crate::resource::Digest;
use crate::source::directory::git::{BlobId, CommitFiles, blob_id};
use crate::source::directory::tree::{FileStamp, FoundFile, IgnoreRules, read_failure};
use crate::source::parse::{ParsedFile, display_path, parse};

/// The minimum time between the two scans that must observe the same content.
const CONFIRMATION_INTERVAL: Duration = Duration::from_millis(100);

/// The files of the tree that may contain declarations.
#[derive(Debug, Default)]
pub struct DeclarationFiles {
    files: HashMap<Arc<PathBuf>, FileState>,
    /// The files with content that is not applied yet.
    pending: BTreeSet<Arc<PathBuf>>,
    /// The rules for files and folders that scans do not visit.
    rules: IgnoreRules,
    scan_number: u64,
    /// The digest of all observed content, until the content changes.
    digest: Option<Digest>,
    /// A number that grows whenever the observed content changes.
    version: u64,
}

#[derive(Debug)]
struct FileState {
    /// The number of the last scan that visited it.
    last_seen_in: u64,
    /// Its stamp when it was read; `None` if it must be read again.
    stamp: Option<FileStamp>,
    observed: Observation,
    /// The time since which the observation is the same.
    observed_since: Instant,
    /// True if it was closed after writing, or moved here, before it was last read.
    completed: bool,
    /// True if it was visited through a link: commits have its content at another path.
    linked: bool,
    /// True if it declares nothing and part of it is not recognized, or if it cannot be read.
    ambiguous: bool,
    applied: Applied,
}

/// The observation of the last scan.
#[derive(Debug)]
enum Observation {
    Gone,
    Unreadable(String),
    /// Holds the parsed declarations until they are applied.
    Content(ContentId, Option<ParsedFile>),
}

/// The identity of a content: our digest and the object id of git.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct ContentId {
    digest: Digest,
    blob: BlobId,
}

/// The part of a file that was applied to the accepted objects.
#[derive(Debug)]
enum Applied {
    Nothing,
    /// Applied by an earlier run: the same content adds only its faults.
    Restored(Digest),
    Unreadable(String),
    Content(Digest),
    /// The new objects of a content, in addition to the earlier objects of the file.
    Partial,
}

/// The context of one scan of the tree.
pub struct ScanContext<'a> {
    /// The start of the scan.
    pub now: Instant,
    /// The start of the scan by the wall clock.
    pub wall_clock: Timestamp,
    /// True for the first scan of this run: new content is applied at once.
    pub is_first: bool,
    /// True if no event was received for a while, or if events have been arriving for too long.
    pub settled: bool,
    /// The files and folders, by their real paths, that were closed after writing or moved here.
    pub completed: &'a HashSet<PathBuf>,
}

/// The result of applying the observed files.
#[derive(Debug, Default)]
pub struct FileChanges {
    /// True if a change waits for another scan.
    pub needs_rescan: bool,
    /// True if a removal is held.
    pub removals_held: bool,
    /// The files whose applied content changed.
    pub changed: BTreeSet<Arc<PathBuf>>,
}

/// A folder that could not be read completely, and the reason.
pub type UnreadableFolder = (PathBuf, String);

impl DeclarationFiles {
    /// Restores a file whose content an earlier run had applied, or could not read.
    pub fn restore(&mut self, path: &Arc<PathBuf>, digest: Option<Digest>, now: Instant) {
        let file = FileState {
            applied: digest.map_or_else(|| Applied::Unreadable(String::new()), Applied::Restored),
            ..FileState::unobserved(now)
        };
        self.files.insert(Arc::clone(path), file);
        self.pending.insert(Arc::clone(path));
    }

    /// Begins a scan. What `rules` ignore is not visited.
    pub fn begin_scan(&mut self, rules: &IgnoreRules) {
        self.rules = rules.clone();
        self.scan_number += 1;
    }

    /// Records a visited file, and reads it if it may have changed.
    pub fn record_file(&mut self, found: &FoundFile<'_>, context: &ScanContext<'_>) {
        if let Some(file) = self.files.get_mut(found.path)
            && file.stamp == Some(found.stamp)
        {
            file.last_seen_in = self.scan_number;
            return;
        }
        let (stamp, bytes) = match found.read() {
            Ok(read) => read,
            // It was deleted after it was listed.
            Err(error) if error.kind() == io::ErrorKind::NotFound => return,
            Err(error) => {
                return self.record_unreadable(found.path, read_failure(&error), context);
            }
        };
        let content = ContentId { digest: Digest::of(&bytes), blob: blob_id(&bytes) };
        self.observe(found.path, context, |path, file| {
            file.stamp = Some(stamp).filter(|stamp| stamp.is_settled(context.wall_clock));
            file.linked = found.is_linked();
            file.completed = found.real_path.ancestors().any(|part| context.completed.contains(part));
            if matches!(&file.observed, Observation::Content(observed, _) if *observed == content) {
                return None;
            }
            let parsed = parse(path, &bytes);
            file.ambiguous = parsed.is_ambiguous();
            Some(Observation::Content(content, Some(parsed)))
        });
    }

    /// Records a visited file that cannot be read; `reason` completes a sentence that begins with the file.
    pub fn record_unreadable(&mut self, path: &PathBuf, reason: String, context: &ScanContext<'_>) {
        self.observe(path, context, |_, file| {
            file.stamp = None;
            file.ambiguous = true;
            let is_same = matches!(&file.observed, Observation::Unreadable(observed) if *observed == reason);
            (!is_same).then_some(Observation::Unreadable(reason))
        });
    }

    /// Ends a scan: a file that was not visited is gone, unless it is in a folder that could not be read.
    pub fn end_scan(&mut self, unreadable_folders: &[UnreadableFolder], context: &ScanContext<'_>) {
        let not_visited = self.files.iter().filter(|(_, file)| file.last_seen_in != self.scan_number);
        let not_visited: Vec<_> = not_visited.map(|(path, _)| Arc::clone(path)).collect();
        for path in not_visited {
            match unreadable_folders.iter().find(|(folder, _)| path.starts_with(folder)) {
                Some((folder, reason)) if folder.as_os_str().is_empty() => {
                    self.record_unreadable(
                        &path,
                        format!("could not be checked: the directory {reason}"),
                        context,
                    );
                }
                Some((folder, reason)) => {
                    let reason =
                        format!("could not be checked: its folder {} {reason}", display_path(folder));
                    self.record_unreadable(&path, reason, context);
                }
                None => self.observe(&path, context, |_, file| {
                    file.stamp = None;
                    (!matches!(file.observed, Observation::Gone)).then_some(Observation::Gone)
                }),
            }
        }
    }

    /// Applies to `objects` the observations that may be applied now. With `hold`, nothing is removed.
    pub fn apply(
        &mut self,
        objects: &mut AcceptedObjects,
        context: &ScanContext<'_>,
        hold: bool,
    ) -> FileChanges {
        let mut changes = FileChanges::default();
        for path in std::mem::take(&mut self.pending) {
            let Some(file) = self.files.get_mut(&path) else {
                continue;
            };
            if hold && matches!(file.observed, Observation::Gone) {
                changes.removals_held = true;
                self.pending.insert(path);
                continue;
            }
            if file.can_be_applied(context) {
                match &mut file.observed {
                    Observation::Gone => {
                        objects.record_file(&path, ParsedFile::default());
                        self.files.remove(&path);
                    }
                    Observation::Unreadable(reason) => {
                        objects.record_file(&path, ParsedFile::unreadable(&path, reason));
                        file.applied = Applied::Unreadable(reason.clone());
                    }
                    Observation::Content(ContentId { digest, .. }, parsed) => {
                        if let Some(parsed) = parsed.take() {
                            objects.record_file(&path, parsed);
                        }
                        if !matches!(file.applied, Applied::Restored(applied) if applied == *digest) {
                            changes.changed.insert(Arc::clone(&path));
                        }
                        file.applied = Applied::Content(*digest);
                    }
                }
                continue;
            }
            if let Observation::Content(_, Some(parsed)) = &file.observed
                && file.completed
            {
                objects.record_new_objects(&path, parsed);
                file.applied = Applied::Partial;
            }
            changes.needs_rescan = true;
            self.pending.insert(path);
        }
        changes
    }

    /// True if no file exists, readable or not.
    pub fn is_empty(&self) -> bool {
        self.files.values().all(|file| matches!(file.observed, Observation::Gone))
    }

    /// True if the only existing files are ambiguous ones without accepted objects: removed declarations may have moved
    /// into them.
    pub fn is_ambiguous(&self, objects: &AcceptedObjects) -> bool {
        let is_lost = |path, file: &FileState| file.ambiguous && !objects.declares(path);
        self.files
            .iter()
            .all(|(path, file)| matches!(file.observed, Observation::Gone) || is_lost(path, file))
    }

    /// Returns the digest of the applied content of a file.
    pub fn applied_digest(&self, path: &Arc<PathBuf>) -> Option<Digest> {
        match self.files.get(path)?.applied {
            Applied::Content(digest) | Applied::Restored(digest) => Some(digest),
            Applied::Nothing | Applied::Partial | Applied::Unreadable(_) => None,
        }
    }

    /// Returns a digest of all observed content.
    pub fn digest(&mut self) -> Digest {
        *self.digest.get_or_insert_with(|| {
            let content = |(path, file): (&Arc<PathBuf>, &FileState)| match &file.observed {
                Observation::Content(ContentId { digest, .. }, _) => {
                    Some(format!("{digest} {}\n", path.display()))
                }
                _ => None,
            };
            let mut lines: Vec<_> = self.files.iter().filter_map(content).collect();
            lines.sort_unstable();
            Digest::of(lines.concat().as_bytes())
        })
    }

    /// Returns a number that changes whenever the observed content changes.
    pub fn version(&self) -> u64 {
        self.version
    }

    /// True if a file is as in the commit, which includes that it exists in neither.
    pub fn is_committed(&self, path: &Path, commits: &CommitFiles) -> bool {
        match self.files.get(&path.to_path_buf()).map(|file| &file.observed) {
            Some(Observation::Content(content, _)) => commits.contains(path, &content.blob),
            Some(Observation::Unreadable(_)) => false,
            Some(Observation::Gone) | None => !commits.contains_path(path),
        }
    }

    /// True if all files are as in the commit and none is missing.
    pub fn all_committed(&self, commits: &CommitFiles) -> bool {
        let existing = self.files.iter();
        let existing =
            existing.filter(|(_, file)| !matches!(file.observed, Observation::Gone) && !file.linked);
        let existing = existing.map(|(path, _)| path.as_path());
        let committed = commits.paths().filter(|path| !self.rules.ignores_within(path));
        let mut paths = existing.chain(committed.map(PathBuf::as_path));
        paths.all(|path| self.is_committed(path, commits))
    }

    fn observe(
        &mut self,
        path: &PathBuf,
        context: &ScanContext<'_>,
        observe_file: impl FnOnce(&Arc<PathBuf>, &mut FileState) -> Option<Observation>,
    ) {
        let path = match self.files.get_key_value(path) {
            Some((path, _)) => Arc::clone(path),
            None => Arc::new(path.clone()),
        };
        let file = self.files.entry(Arc::clone(&path)).or_insert_with(|| FileState::unobserved(context.now));
        file.last_seen_in = self.scan_number;
        if let Some(observation) = observe_file(&path, file) {
            file.observed = observation;
            file.observed_since = context.now;
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
            linked: false,
            ambiguous: false,
            applied: Applied::Nothing,
        }
    }

    fn is_pending(&self) -> bool {
        match (&self.observed, &self.applied) {
            (Observation::Gone, Applied::Nothing) => false,
            (Observation::Unreadable(observed), Applied::Unreadable(applied)) => observed != applied,
            (Observation::Content(observed, _), Applied::Content(applied)) => observed.digest != *applied,
            _ => true,
        }
    }

    fn can_be_applied(&self, context: &ScanContext<'_>) -> bool {
        match (&self.observed, &self.applied) {
            (Observation::Content(observed, _), Applied::Restored(applied))
                if observed.digest == *applied =>
            {
                true
            }
            (_, Applied::Nothing) if context.is_first => true,
            _ => context.settled && context.now >= self.observed_since + CONFIRMATION_INTERVAL,
        }
    }
}
