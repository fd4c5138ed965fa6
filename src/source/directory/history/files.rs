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
use crate::source::parse::{ParsedFile, parse, shown};

/// Two looks this far apart must have seen the same.
const APART: Duration = Duration::from_millis(100);

/// All files of the tree that may hold declarations.
#[derive(Debug, Default)]
pub struct DeclarationFiles {
    known: HashMap<Arc<PathBuf>, File>,
    /// Those of which something is still to be taken.
    pending: BTreeSet<Arc<PathBuf>>,
    round: u64,
    /// Of all that was seen, until something else is.
    digest: Option<Digest>,
    /// Grows whenever something else is seen.
    version: u64,
}

#[derive(Debug)]
struct File {
    /// The round in which it was last met.
    round: u64,
    /// As it was when read; `None` if it must be read again.
    stamp: Option<FileStamp>,
    seen: Seen,
    /// When it was first seen so.
    since: Instant,
    /// It was closed after writing, or moved here, when it was last read.
    landed: bool,
    /// It declares nothing, and something in it is not understood, or it cannot be read.
    unclear: bool,
    taken: Taken,
}

/// What the last look saw.
#[derive(Debug)]
enum Seen {
    Gone,
    Unreadable(String),
    /// The declarations are there until they are taken.
    Content(Content, Option<ParsedFile>),
}

/// A content, by the names that we and git have for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Content {
    digest: Digest,
    blob: BlobId,
}

/// What is in the book.
#[derive(Debug)]
enum Taken {
    Nothing,
    /// By an earlier run: the same content adds nothing but its faults.
    Remembered(Digest),
    Unreadable(String),
    Content(Digest),
    /// What was new in a content, beside what was there before.
    Part,
}

/// One look at the tree.
pub struct ScanContext<'a> {
    /// When it began.
    pub now: Instant,
    /// The same by the clock on the wall.
    pub clock: Timestamp,
    /// The first of this run: what is new is taken as it is.
    pub first: bool,
    /// Nothing was heard of the tree for a while, or it was noisy for too long.
    pub settled: bool,
    /// Files and folders, by their real paths, that were closed after writing or moved here.
    pub landed: &'a HashSet<PathBuf>,
}

/// What was taken.
#[derive(Debug, Default)]
pub struct FileChanges {
    /// Something waits for another look.
    pub waits: bool,
    /// Something is held back that would be taken away.
    pub held: bool,
    /// The files whose content in the book is another.
    pub changed: BTreeSet<Arc<PathBuf>>,
}

/// A folder of which not all could be seen, and why.
pub type UnreadableFolder = (PathBuf, String);

impl DeclarationFiles {
    /// A file whose content an earlier run had taken, or could not read.
    pub fn remember(&mut self, path: &Arc<PathBuf>, digest: Option<Digest>, now: Instant) {
        let file = File {
            taken: digest.map_or_else(|| Taken::Unreadable(String::new()), Taken::Remembered),
            ..File::unknown(now)
        };
        self.known.insert(Arc::clone(path), file);
        self.pending.insert(Arc::clone(path));
    }

    /// A look begins.
    pub fn begin(&mut self) {
        self.round += 1;
    }

    /// The look met a file, which is read if it may have changed.
    pub fn met(&mut self, found: &FoundFile<'_>, moment: &ScanContext<'_>) {
        if let Some(file) = self.known.get_mut(found.path)
            && file.stamp == Some(found.stamp)
        {
            file.round = self.round;
            return;
        }
        let (stamp, bytes) = match found.read() {
            Ok(read) => read,
            // It went since it was listed.
            Err(error) if error.kind() == io::ErrorKind::NotFound => return,
            Err(error) => {
                return self.unreadable(found.path, why(&error), moment);
            }
        };
        let content = Content { digest: Digest::of(&bytes), blob: blob(&bytes) };
        self.see(found.path, moment, |path, file| {
            file.stamp = Some(stamp).filter(|stamp| stamp.is_settled(moment.clock));
            file.landed = found.real.ancestors().any(|part| moment.landed.contains(part));
            if matches!(&file.seen, Seen::Content(seen, _) if *seen == content) {
                return None;
            }
            let parsed = parse(path, &bytes);
            file.unclear = parsed.is_unclear();
            Some(Seen::Content(content, Some(parsed)))
        });
    }

    /// The look met a file that cannot be read; `why` completes a sentence that begins with it.
    pub fn unreadable(&mut self, path: &PathBuf, why: String, moment: &ScanContext<'_>) {
        self.see(path, moment, |_, file| {
            file.stamp = None;
            file.unclear = true;
            let same = matches!(&file.seen, Seen::Unreadable(seen) if *seen == why);
            (!same).then_some(Seen::Unreadable(why))
        });
    }

    /// The look is over: what it did not meet is gone, unless it is where the look could not see.
    pub fn end(&mut self, blind: &[UnreadableFolder], moment: &ScanContext<'_>) {
        let missed = self.known.iter().filter(|(_, file)| file.round != self.round);
        let missed: Vec<_> = missed.map(|(path, _)| Arc::clone(path)).collect();
        for path in missed {
            match blind.iter().find(|(folder, _)| path.starts_with(folder)) {
                Some((folder, why)) if folder.as_os_str().is_empty() => {
                    self.unreadable(&path, format!("is unknown: the directory {why}"), moment);
                }
                Some((folder, why)) => {
                    let why = format!("is unknown: its folder {} {why}", shown(folder));
                    self.unreadable(&path, why, moment);
                }
                None => self.see(&path, moment, |_, file| {
                    file.stamp = None;
                    (!matches!(file.seen, Seen::Gone)).then_some(Seen::Gone)
                }),
            }
        }
    }

    /// Puts into the book what may be taken at this moment. If `hold`, nothing is taken away.
    pub fn take(&mut self, book: &mut AcceptedObjects, moment: &ScanContext<'_>, hold: bool) -> FileChanges {
        let mut took = FileChanges::default();
        for path in std::mem::take(&mut self.pending) {
            let Some(file) = self.known.get_mut(&path) else {
                continue;
            };
            if hold && matches!(file.seen, Seen::Gone) {
                took.held = true;
                self.pending.insert(path);
                continue;
            }
            if file.may_be_taken(moment) {
                match &mut file.seen {
                    Seen::Gone => {
                        book.note(&path, ParsedFile::default());
                        self.known.remove(&path);
                    }
                    Seen::Unreadable(why) => {
                        book.note(&path, ParsedFile::unreadable(&path, why));
                        file.taken = Taken::Unreadable(why.clone());
                    }
                    Seen::Content(Content { digest, .. }, parsed) => {
                        if let Some(parsed) = parsed.take() {
                            book.note(&path, parsed);
                        }
                        if !matches!(file.taken, Taken::Remembered(taken) if taken == *digest) {
                            took.changed.insert(Arc::clone(&path));
                        }
                        file.taken = Taken::Content(*digest);
                    }
                }
                continue;
            }
            if let Seen::Content(_, Some(parsed)) = &file.seen
                && file.landed
            {
                book.note_new(&path, parsed);
                file.taken = Taken::Part;
            }
            took.waits = true;
            self.pending.insert(path);
        }
        took
    }

    /// Whether any file is there, readable or not.
    pub fn is_empty(&self) -> bool {
        self.known.values().all(|file| matches!(file.seen, Seen::Gone))
    }

    /// Tells whether no file is there but such as are not understood and have nothing in force: what was declared may have
    /// gone into those.
    pub fn is_unclear(&self, book: &AcceptedObjects) -> bool {
        let lost = |path, file: &File| file.unclear && !book.declares(path);
        self.known.iter().all(|(path, file)| matches!(file.seen, Seen::Gone) || lost(path, file))
    }

    /// The content of a file that is in the book.
    pub fn taken(&self, path: &Arc<PathBuf>) -> Option<Digest> {
        match self.known.get(path)?.taken {
            Taken::Content(digest) | Taken::Remembered(digest) => Some(digest),
            Taken::Nothing | Taken::Part | Taken::Unreadable(_) => None,
        }
    }

    /// A digest of all that was seen.
    pub fn digest(&mut self) -> Digest {
        *self.digest.get_or_insert_with(|| {
            let content = |(path, file): (&Arc<PathBuf>, &File)| match &file.seen {
                Seen::Content(Content { digest, .. }, _) => Some(format!("{digest} {}\n", path.display())),
                _ => None,
            };
            let mut all: Vec<_> = self.known.iter().filter_map(content).collect();
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
        match self.known.get(&path.to_path_buf()).map(|file| &file.seen) {
            Some(Seen::Content(content, _)) => commits.holds(path, &content.blob),
            Some(Seen::Unreadable(_)) => false,
            Some(Seen::Gone) | None => !commits.has(path),
        }
    }

    /// Whether all files are as a commit has them, and none is missing.
    pub fn are_committed(&self, commits: &CommitFiles) -> bool {
        let there = self.known.iter().filter(|(_, file)| !matches!(file.seen, Seen::Gone));
        let there = there.map(|(path, _)| path.as_path());
        let mut all = there.chain(commits.paths().map(PathBuf::as_path));
        all.all(|path| self.is_committed(path, commits))
    }

    fn see(
        &mut self,
        path: &PathBuf,
        moment: &ScanContext<'_>,
        now_seen: impl FnOnce(&Arc<PathBuf>, &mut File) -> Option<Seen>,
    ) {
        let path = match self.known.get_key_value(path) {
            Some((path, _)) => Arc::clone(path),
            None => Arc::new(path.clone()),
        };
        let file = self.known.entry(Arc::clone(&path)).or_insert_with(|| File::unknown(moment.now));
        file.round = self.round;
        if let Some(seen) = now_seen(&path, file) {
            file.seen = seen;
            file.since = moment.now;
            self.digest = None;
            self.version += 1;
        }
        if file.is_pending() {
            self.pending.insert(path);
        } else {
            self.pending.remove(&path);
            if matches!(file.seen, Seen::Gone) {
                self.known.remove(&path);
            }
        }
    }
}

impl File {
    fn unknown(now: Instant) -> Self {
        Self {
            round: 0,
            stamp: None,
            seen: Seen::Gone,
            since: now,
            landed: false,
            unclear: false,
            taken: Taken::Nothing,
        }
    }

    fn is_pending(&self) -> bool {
        match (&self.seen, &self.taken) {
            (Seen::Gone, Taken::Nothing) => false,
            (Seen::Unreadable(seen), Taken::Unreadable(taken)) => seen != taken,
            (Seen::Content(seen, _), Taken::Content(taken)) => seen.digest != *taken,
            _ => true,
        }
    }

    fn may_be_taken(&self, moment: &ScanContext<'_>) -> bool {
        match (&self.seen, &self.taken) {
            (Seen::Content(seen, _), Taken::Remembered(taken)) if seen.digest == *taken => true,
            (_, Taken::Nothing) if moment.first => true,
            _ => moment.settled && moment.now >= self.since + APART,
        }
    }
}
