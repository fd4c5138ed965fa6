//! One look at the directory: from the files on the disk to the next [`Desired`]. Blocks.
//!
//! Promises that a look compares everything and reads what has changed, and that nothing is taken away while git is at
//! work or the tree may be coming back. Never waits for another look: it says whether one is needed.

mod checkout;
mod removal_hold;
mod root_absence;
mod tree_snapshot;

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use jiff::Timestamp;
use tokio::time::Instant;
use tracing::warn;

use self::checkout::Checkout;
use self::removal_hold::{RemovalEvidence, RemovalHold, held_back};
use self::tree_snapshot::see;
use super::history::{
    AcceptedObjects, DeclarationFiles, DeclarationRecords, MergeContext, ScanContext, note_removals,
};
use super::options::Options;
use super::secrets::SecretFiles;
use super::skills::SkillContents;
use super::tree::{FileEventQueue, FolderWatcher};
use crate::resource::{
    Desired, Endpoint, McpServerSpec, Problem, Reason, RequestedWork, SecretKeyRef, SourceProblem,
    SourceState, WatchMethod,
};
use crate::source::parse::{endpoint, shown};
use crate::source::resolve::ReferenceValues;
use crate::state_dir::{StateDir, StateError};

/// The name under which the last commit is remembered.
const COMMIT: &str = "commit";

/// Everything that is kept between two looks.
pub struct Scanner {
    options: Options,
    state: Arc<StateDir>,
    watcher: FolderWatcher,
    files: DeclarationFiles,
    book: AcceptedObjects,
    secrets: SecretFiles,
    contents: SkillContents,
    records: DeclarationRecords,
    /// The commit at which some file was last there.
    commit: Option<String>,
    checkout: Checkout,
    hold: RemovalHold,
    /// The tree was seen once.
    seen: bool,
    desired: Arc<Desired>,
    /// What the last run had in force.
    remembered: Option<Arc<Desired>>,
    /// The last thing that went wrong with the state directory.
    trouble: Option<String>,
}

/// What a look gives.
pub struct ScanResult {
    pub desired: Arc<Desired>,
    /// Something waits for a second look.
    pub again: bool,
    /// Something that would be taken away is held back, which time may end.
    pub held: bool,
}

impl Scanner {
    /// Takes up what the last run knew.
    pub fn new(options: Options, state: Arc<StateDir>, mailbox: Arc<FileEventQueue>, now: Instant) -> Self {
        let hold = RemovalHold::new(options.args.prune_empty);
        let mut looker = Self {
            watcher: FolderWatcher::new(mailbox, options.args.poll.is_some()),
            secrets: SecretFiles::new(options.args.secrets.clone()),
            options,
            state,
            files: DeclarationFiles::default(),
            book: AcceptedObjects::default(),
            contents: SkillContents::default(),
            records: DeclarationRecords::default(),
            commit: None,
            checkout: Checkout::default(),
            hold,
            seen: false,
            desired: Arc::default(),
            remembered: None,
            trouble: None,
        };
        let known = looker.restore(now);
        looker.complain(known.err());
        looker
    }

    /// Looks once: `settled` if the tree has been quiet for a while, `landed` what was told to be complete.
    pub fn look(
        &mut self,
        landed: &HashSet<PathBuf>,
        time: (Instant, Timestamp),
        settled: bool,
    ) -> ScanResult {
        let (now, clock) = time;
        let moment = ScanContext { now, clock, first: !self.seen, settled, landed };
        let root = &self.options.args.root;
        let tree = see(root, self.secrets.root(), &mut self.files, &mut self.watcher, &moment);
        let mut faults = tree.faults;
        let (mut again, mut held) = (false, false);
        let mut revision = Arc::clone(&self.desired.source.revision);
        if !tree.seen {
            if !self.book.is_empty() {
                self.hold.away(self.files.version(), now);
            }
        } else if self.checkout.is_at_work(tree.git.as_ref(), now) {
            again = true;
        } else {
            let commit = tree.git.as_ref().and_then(|git| self.checkout.head(git));
            revision = self.checkout.revision(root, commit.as_deref(), &mut self.files);
            let hold = self.hold.holds(self.evidence(commit.as_ref()), now);
            let took = self.files.take(&mut self.book, &moment, hold);
            (again, held) = (took.waits, took.held);
            self.records.outdate(took.changed);
            self.settle(&revision, &moment);
            // Told until it is gone, also where somebody has said that it is meant.
            if held || self.hold.is_confirmed() && !self.book.is_empty() {
                let message = held_back(
                    &self.options.args.root,
                    self.files.is_empty(),
                    self.files.is_unclear(&self.book),
                );
                faults.push(SourceProblem::new(None, Problem::new(Reason::RemovalHeld, message)));
            }
            if !self.files.is_empty() && commit.is_some() {
                self.note_commit(commit);
            }
            self.seen = true;
        }
        for folder in self.secrets.folders() {
            self.watcher.folder(&folder);
        }
        if tree.seen {
            let skills = &self.book.skills.objects;
            let meet = &mut |real: &Path, id| self.watcher.met(real, id);
            let folders = self.contents.look(&self.options.args.root, skills, settled, clock, meet);
            again |= self.watcher.skills(folders);
        }
        let watching = self.watching();
        faults.extend(self.book.faults());
        let known = if self.seen { !again || settled } else { !self.book.is_empty() };
        self.publish(SourceState {
            synced: self.desired.source.synced || known,
            skills_synced: self.desired.source.synced || known,
            revision,
            watching,
            faults,
            warnings: self.book.warnings(),
            foreign: self.book.foreign(),
            nothing_in: None,
        });
        ScanResult { desired: Arc::clone(&self.desired), again, held }
    }

    /// Takes the word of a person that the emptiness is meant, if it was told that it holds something back.
    pub fn confirm(&mut self) {
        let held = |fault: &SourceProblem| fault.problem.reason == Reason::RemovalHeld;
        if self.desired.source.faults.iter().any(held) {
            self.hold.confirm();
        }
    }

    /// Writes down what the next run must know. Apart from [`Scanner::look`], so that it delays nobody.
    pub fn remember(&mut self) {
        let written = self.records.write(&self.state, &self.book, &self.files);
        self.complain(written.err());
    }

    fn restore(&mut self, now: Instant) -> Result<(), StateError> {
        let resolve = resolver(&self.options, &self.secrets, Timestamp::now());
        self.records.restore(&self.state, &mut self.book, &mut self.files, &resolve, now)?;
        let (servers, skills) = (self.book.servers.objects.clone(), self.book.skills.objects.clone());
        self.remembered = Some(Arc::new(Desired { servers, skills, ..Desired::default() }));
        let commit = self.state.read(COMMIT)?;
        self.commit = commit.and_then(|bytes| String::from_utf8(bytes).ok());
        Ok(())
    }

    fn watching(&mut self) -> WatchMethod {
        let Some(why) = self.watcher.end() else { return WatchMethod::Events };
        if self.desired.source.watching == WatchMethod::Events {
            let root = shown(&self.options.args.root);
            warn!("{root} is looked at by the clock, because file events are not heard: {why}");
        }
        WatchMethod::Polling
    }

    fn evidence(&self, commit: Option<&String>) -> RemovalEvidence {
        RemovalEvidence {
            emptied: self.files.is_unclear(&self.book) && !self.book.is_empty(),
            committed: commit.is_some() && commit != self.commit.as_ref(),
            clean: self.checkout.is_clean(),
            version: self.files.version(),
        }
    }

    fn settle(&mut self, revision: &Arc<str>, moment: &ScanContext<'_>) {
        if moment.settled && !self.secrets.is_empty() {
            let used = self.book.references();
            if self.secrets.refresh(&used, moment.clock) {
                let resolve = resolver(&self.options, &self.secrets, moment.clock);
                self.book.resolve_again(&resolve);
            }
        }
        let resolve = resolver(&self.options, &self.secrets, moment.clock);
        let stale = self.book.settle(&MergeContext {
            now: moment.clock,
            revision,
            change: &|path| self.checkout.last_change(&self.files, path),
            uid: &|| uuid::Uuid::new_v4().to_string().into(),
            resolve: &resolve,
        });
        self.records.outdate(stale);
    }

    fn note_commit(&mut self, commit: Option<String>) {
        if self.commit == commit {
            return;
        }
        let written = self.state.write(COMMIT, commit.as_deref().unwrap_or_default().as_bytes());
        self.commit = commit;
        self.complain(written.err());
    }

    /// Makes a new [`Desired`] only if it differs.
    fn publish(&mut self, source: SourceState) {
        let servers = &self.book.servers.objects;
        let skills = &self.book.skills.objects;
        let contents = &self.contents.all;
        let last = &self.desired;
        let same =
            last.servers.ptr_eq(servers) && last.skills.ptr_eq(skills) && last.contents.ptr_eq(contents);
        if *last.source == source && same {
            return;
        }
        let source = if *last.source == source { Arc::clone(&last.source) } else { Arc::new(source) };
        let mut removals = last.removals.clone();
        let change = |path: &Path| self.checkout.last_change(&self.files, path);
        if let Some(before) = if last.source.synced { Some(last) } else { self.remembered.as_ref() } {
            note_removals(&mut removals, &before.servers, servers, &change);
            note_removals(&mut removals, &before.skills, skills, &change);
        }
        let (servers, skills, contents) = (servers.clone(), skills.clone(), contents.clone());
        let remembered = self.remembered.clone();
        let number = last.number + 1;
        let asked = RequestedWork::default();
        self.desired =
            Arc::new(Desired { servers, skills, contents, source, remembered, asked, removals, number });
    }

    /// Tells of the state directory once, not at every look.
    fn complain(&mut self, error: Option<StateError>) {
        let trouble = error.map(|error| error.to_string());
        if let Some(trouble) = &trouble
            && self.trouble.as_ref() != Some(trouble)
        {
            warn!("{trouble}; objects may get new identities at the next start");
        }
        self.trouble = trouble;
    }
}

fn resolver<'a>(
    options: &'a Options,
    secrets: &'a SecretFiles,
    clock: Timestamp,
) -> impl Fn(&McpServerSpec, &Path) -> Result<Arc<Endpoint>, Problem> + 'a {
    move |spec, file| {
        let sources = ReferenceValues {
            place: &|SecretKeyRef { name, key, .. }| {
                secrets.root().join(name).join(key).display().to_string()
            },
            environment: &options.args.environment,
            policy: &options.args.policy,
            secret: &|reference| secrets.get(reference, clock),
            key: &options.key,
        };
        endpoint(&sources, &options.args.root, spec, file)
    }
}

#[cfg(test)]
mod tests;
