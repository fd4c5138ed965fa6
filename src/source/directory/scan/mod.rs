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
use self::removal_hold::{RemovalEvidence, RemovalHold, held_message};
use self::tree_snapshot::take_snapshot;
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
use crate::source::parse::{display_path, endpoint};
use crate::source::resolve::ReferenceValues;
use crate::state_dir::{StateDir, StateError};

/// The name under which the last commit is remembered.
const LAST_COMMIT_FILE: &str = "commit";

/// Everything that is kept between two looks.
pub struct Scanner {
    options: Options,
    state_dir: Arc<StateDir>,
    watcher: FolderWatcher,
    files: DeclarationFiles,
    objects: AcceptedObjects,
    secrets: SecretFiles,
    contents: SkillContents,
    records: DeclarationRecords,
    /// The commit at which some file was last there.
    last_commit: Option<String>,
    checkout: Checkout,
    removal_hold: RemovalHold,
    /// The tree was seen once.
    scanned: bool,
    desired: Arc<Desired>,
    /// What the last run had in force.
    restored: Option<Arc<Desired>>,
    /// The last thing that went wrong with the state directory.
    state_error: Option<String>,
}

/// What a look gives.
pub struct ScanResult {
    pub desired: Arc<Desired>,
    /// Something waits for a second look.
    pub needs_rescan: bool,
    /// Something that would be taken away is held back, which time may end.
    pub removals_held: bool,
}

impl Scanner {
    /// Takes up what the last run knew.
    pub fn new(options: Options, state: Arc<StateDir>, mailbox: Arc<FileEventQueue>, now: Instant) -> Self {
        let hold = RemovalHold::new(options.args.prune_empty);
        let mut looker = Self {
            watcher: FolderWatcher::new(mailbox, options.args.poll_interval.is_some()),
            secrets: SecretFiles::new(options.args.secrets_dir.clone()),
            options,
            state_dir: state,
            files: DeclarationFiles::default(),
            objects: AcceptedObjects::default(),
            contents: SkillContents::default(),
            records: DeclarationRecords::default(),
            last_commit: None,
            checkout: Checkout::default(),
            removal_hold: hold,
            scanned: false,
            desired: Arc::default(),
            restored: None,
            state_error: None,
        };
        let known = looker.restore(now);
        looker.log_state_error(known.err());
        looker
    }

    /// Looks once: `settled` if the tree has been quiet for a while, `landed` what was told to be complete.
    pub fn scan(
        &mut self,
        landed: &HashSet<PathBuf>,
        time: (Instant, Timestamp),
        settled: bool,
    ) -> ScanResult {
        let (now, clock) = time;
        let moment =
            ScanContext { now, wall_clock: clock, is_first: !self.scanned, settled, completed: landed };
        let root = &self.options.args.root;
        let tree = take_snapshot(root, self.secrets.root(), &mut self.files, &mut self.watcher, &moment);
        let mut faults = tree.faults;
        let (mut again, mut held) = (false, false);
        let mut revision = Arc::clone(&self.desired.source.revision);
        if !tree.readable {
            if !self.objects.is_empty() {
                self.removal_hold.record_absence(self.files.version(), now);
            }
        } else if self.checkout.is_git_busy(tree.git.as_ref(), now) {
            again = true;
        } else {
            let commit = tree.git.as_ref().and_then(|git| self.checkout.head(git));
            revision = self.checkout.revision(root, commit.as_deref(), &mut self.files);
            let hold = self.removal_hold.should_hold(self.removal_evidence(commit.as_ref()), now);
            let took = self.files.apply(&mut self.objects, &moment, hold);
            (again, held) = (took.needs_rescan, took.removals_held);
            self.records.mark_stale(took.changed);
            self.apply(&revision, &moment);
            // Told until it is gone, also where somebody has said that it is meant.
            if held || self.removal_hold.is_confirmed() && !self.objects.is_empty() {
                let message = held_message(
                    &self.options.args.root,
                    self.files.is_empty(),
                    self.files.is_ambiguous(&self.objects),
                );
                faults.push(SourceProblem::new(None, Problem::new(Reason::RemovalHeld, message)));
            }
            if !self.files.is_empty() && commit.is_some() {
                self.save_commit(commit);
            }
            self.scanned = true;
        }
        for folder in self.secrets.watched_folders() {
            self.watcher.watch_if_folder(&folder);
        }
        if tree.readable {
            let skills = &self.objects.skills.objects;
            let meet = &mut |real: &Path, id| self.watcher.watch(real, id);
            let folders = self.contents.update(&self.options.args.root, skills, settled, clock, meet);
            again |= self.watcher.set_skill_folders(folders);
        }
        let watching = self.watch_method();
        faults.extend(self.objects.faults());
        let known = if self.scanned { !again || settled } else { !self.objects.is_empty() };
        self.publish(SourceState {
            synced: self.desired.source.synced || known,
            skills_synced: self.desired.source.synced || known,
            revision,
            watch_method: watching,
            problems: faults,
            warnings: self.objects.warnings(),
            foreign_documents: self.objects.foreign_documents(),
            empty_scope: None,
        });
        ScanResult { desired: Arc::clone(&self.desired), needs_rescan: again, removals_held: held }
    }

    /// Takes the word of a person that the emptiness is meant, if it was told that it holds something back.
    pub fn confirm_removal(&mut self) {
        let held = |fault: &SourceProblem| fault.problem.reason == Reason::RemovalHeld;
        if self.desired.source.problems.iter().any(held) {
            self.removal_hold.confirm();
        }
    }

    /// Writes down what the next run must know. Apart from [`Scanner::look`], so that it delays nobody.
    pub fn save_records(&mut self) {
        let written = self.records.write(&self.state_dir, &self.objects, &self.files);
        self.log_state_error(written.err());
    }

    fn restore(&mut self, now: Instant) -> Result<(), StateError> {
        let resolve = endpoint_resolver(&self.options, &self.secrets, Timestamp::now());
        self.records.restore(&self.state_dir, &mut self.objects, &mut self.files, &resolve, now)?;
        let (servers, skills) = (self.objects.servers.objects.clone(), self.objects.skills.objects.clone());
        self.restored = Some(Arc::new(Desired { servers, skills, ..Desired::default() }));
        let commit = self.state_dir.read(LAST_COMMIT_FILE)?;
        self.last_commit = commit.and_then(|bytes| String::from_utf8(bytes).ok());
        Ok(())
    }

    fn watch_method(&mut self) -> WatchMethod {
        let Some(why) = self.watcher.end_round() else { return WatchMethod::Events };
        if self.desired.source.watch_method == WatchMethod::Events {
            let root = display_path(&self.options.args.root);
            warn!("{root} is looked at by the clock, because file events are not heard: {why}");
        }
        WatchMethod::Polling
    }

    fn removal_evidence(&self, commit: Option<&String>) -> RemovalEvidence {
        RemovalEvidence {
            emptied: self.files.is_ambiguous(&self.objects) && !self.objects.is_empty(),
            new_commit: commit.is_some() && commit != self.last_commit.as_ref(),
            clean: self.checkout.is_clean(),
            version: self.files.version(),
        }
    }

    fn apply(&mut self, revision: &Arc<str>, moment: &ScanContext<'_>) {
        if moment.settled && !self.secrets.is_empty() {
            let used = self.objects.secret_references();
            if self.secrets.refresh(&used, moment.wall_clock) {
                let resolve = endpoint_resolver(&self.options, &self.secrets, moment.wall_clock);
                self.objects.resolve_references(&resolve);
            }
        }
        let resolve = endpoint_resolver(&self.options, &self.secrets, moment.wall_clock);
        let stale = self.objects.apply(&MergeContext {
            now: moment.wall_clock,
            revision,
            last_commit: &|path| self.checkout.last_change(&self.files, path),
            new_uid: &|| uuid::Uuid::new_v4().to_string().into(),
            resolve: &resolve,
        });
        self.records.mark_stale(stale);
    }

    fn save_commit(&mut self, commit: Option<String>) {
        if self.last_commit == commit {
            return;
        }
        let written =
            self.state_dir.write(LAST_COMMIT_FILE, commit.as_deref().unwrap_or_default().as_bytes());
        self.last_commit = commit;
        self.log_state_error(written.err());
    }

    /// Makes a new [`Desired`] only if it differs.
    fn publish(&mut self, source: SourceState) {
        let servers = &self.objects.servers.objects;
        let skills = &self.objects.skills.objects;
        let contents = &self.contents.contents;
        let last = &self.desired;
        let same = last.servers.ptr_eq(servers)
            && last.skills.ptr_eq(skills)
            && last.skill_contents.ptr_eq(contents);
        if *last.source == source && same {
            return;
        }
        let source = if *last.source == source { Arc::clone(&last.source) } else { Arc::new(source) };
        let mut removals = last.removal_commits.clone();
        let change = |path: &Path| self.checkout.last_change(&self.files, path);
        if let Some(before) = if last.source.synced { Some(last) } else { self.restored.as_ref() } {
            note_removals(&mut removals, &before.servers, servers, &change);
            note_removals(&mut removals, &before.skills, skills, &change);
        }
        let (servers, skills, contents) = (servers.clone(), skills.clone(), contents.clone());
        let remembered = self.restored.clone();
        let number = last.sequence + 1;
        let asked = RequestedWork::default();
        self.desired = Arc::new(Desired {
            servers,
            skills,
            skill_contents: contents,
            source,
            previous_run: remembered,
            requested_work: asked,
            removal_commits: removals,
            sequence: number,
        });
    }

    /// Tells of the state directory once, not at every look.
    fn log_state_error(&mut self, error: Option<StateError>) {
        let trouble = error.map(|error| error.to_string());
        if let Some(trouble) = &trouble
            && self.state_error.as_ref() != Some(trouble)
        {
            warn!("{trouble}; objects may get new identities at the next start");
        }
        self.state_error = trouble;
    }
}

fn endpoint_resolver<'a>(
    options: &'a Options,
    secrets: &'a SecretFiles,
    clock: Timestamp,
) -> impl Fn(&McpServerSpec, &Path) -> Result<Arc<Endpoint>, Problem> + 'a {
    move |spec, file| {
        let sources = ReferenceValues {
            secret_location: &|SecretKeyRef { name, key, .. }| {
                secrets.root().join(name).join(key).display().to_string()
            },
            environment: &options.args.environment,
            policy: &options.args.policy,
            lookup_secret: &|reference| secrets.get(reference, clock),
            digest_key: &options.digest_key,
        };
        endpoint(&sources, &options.args.root, spec, file)
    }
}

#[cfg(test)]
mod tests;
