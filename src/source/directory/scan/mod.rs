//! Scans the directory: from the files on disk to the next [`Desired`]. Blocks.
//!
//! Promises that a scan compares everything and reads what has changed, and that nothing is removed while git is
//! running or the tree may still be returning. Never waits for another scan: it returns whether one is needed.

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
use super::env_files::EnvFiles;
use super::history::{
    AcceptedObjects, DeclarationFiles, DeclarationRecords, MergeContext, ScanContext, record_removals,
};
use super::options::Options;
use super::secrets::SecretFiles;
use super::skills::SkillContents;
use super::tree::{FileEventQueue, FolderWatcher};
use crate::resource::{
    Desired, Endpoint, McpServerSpec, Problem, Reason, RequestedWork, SecretKeyRef, SourceProblem,
    SourceState, WatchMethod,
};
use crate::source::parse::{display_path, resolve_endpoint};
use crate::source::resolve::ReferenceValues;
use crate::state_dir::{StateDir, StateError};

/// The file of the state directory that holds the last commit.
const LAST_COMMIT_FILE: &str = "commit";

/// The state that is kept between scans.
pub struct Scanner {
    options: Options,
    state_dir: Arc<StateDir>,
    watcher: FolderWatcher,
    files: DeclarationFiles,
    objects: AcceptedObjects,
    secrets: SecretFiles,
    env_files: EnvFiles,
    contents: SkillContents,
    records: DeclarationRecords,
    /// The last commit at which at least one file existed.
    last_commit: Option<String>,
    checkout: Checkout,
    removal_hold: RemovalHold,
    /// True after the first scan that could read the tree.
    scanned: bool,
    desired: Arc<Desired>,
    /// The objects that the last run had in force.
    restored: Option<Arc<Desired>>,
    /// The last error of the state directory.
    state_error: Option<String>,
}

/// The result of a scan.
pub struct ScanResult {
    pub desired: Arc<Desired>,
    /// True if a change waits for another scan.
    pub needs_rescan: bool,
    /// True if a removal is held and may be applied after some time.
    pub removals_held: bool,
}

impl Scanner {
    /// Creates a scanner that restores the state of the last run.
    pub fn new(options: Options, state: Arc<StateDir>, events: Arc<FileEventQueue>, now: Instant) -> Self {
        let hold = RemovalHold::new(options.args.prune_empty);
        let mut scanner = Self {
            watcher: FolderWatcher::new(events, options.args.poll_interval.is_some()),
            secrets: SecretFiles::new(options.args.secrets_dir.clone()),
            env_files: EnvFiles::new(options.args.root.clone()),
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
        let restored = scanner.restore(now);
        scanner.log_state_error(restored.err());
        scanner
    }

    /// Scans once. `settled` if the tree has been quiet for a while; `completed` holds the files that were reported
    /// complete.
    pub fn scan(
        &mut self,
        completed: &HashSet<PathBuf>,
        time: (Instant, Timestamp),
        settled: bool,
    ) -> ScanResult {
        let (now, wall_clock) = time;
        let context = ScanContext { now, wall_clock, is_first: !self.scanned, settled, completed };
        let root = &self.options.args.root;
        let tree = take_snapshot(root, self.secrets.root(), &mut self.files, &mut self.watcher, &context);
        let mut faults = tree.faults;
        let (mut needs_rescan, mut removals_held) = (false, false);
        let mut revision = Arc::clone(&self.desired.source.revision);
        if !tree.readable {
            if !self.objects.is_empty() {
                self.removal_hold.record_absence(self.files.version(), now);
            }
        } else if self.checkout.is_git_busy(tree.git.as_ref(), now) {
            needs_rescan = true;
        } else {
            let commit = tree.git.as_ref().and_then(|git| self.checkout.head(git));
            revision = self.checkout.revision(root, commit.as_deref(), &mut self.files);
            let hold = self.removal_hold.should_hold(self.removal_evidence(commit.as_ref()), now);
            let changes = self.files.apply(&mut self.objects, &context, hold);
            (needs_rescan, removals_held) = (changes.needs_rescan, changes.removals_held);
            self.records.mark_stale(changes.changed);
            self.apply(&revision, &context);
            // Reported until it is resolved, even after the removal was confirmed.
            if removals_held || self.removal_hold.is_confirmed() && !self.objects.is_empty() {
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
            let visit = &mut |real_path: &Path, id| self.watcher.watch(real_path, id);
            let mut referenced =
                self.contents.update(&self.options.args.root, skills, settled, wall_clock, visit);
            for path in self.env_files.real_paths() {
                path.parent().into_iter().for_each(|folder| self.watcher.watch_if_folder(folder));
                referenced.insert(path);
            }
            needs_rescan |= self.watcher.set_referenced_paths(referenced);
        }
        let watch_method = self.watch_method();
        faults.extend(self.objects.faults());
        let is_synced = if self.scanned { !needs_rescan || settled } else { !self.objects.is_empty() };
        self.publish(SourceState {
            synced: self.desired.source.synced || is_synced,
            skills_synced: self.desired.source.synced || is_synced,
            revision,
            watch_method,
            problems: faults,
            warnings: self.objects.warnings(),
            foreign_documents: self.objects.foreign_documents(),
            empty_scope: None,
        });
        ScanResult { desired: Arc::clone(&self.desired), needs_rescan, removals_held }
    }

    /// Confirms that the removal is intended, if a held removal was reported.
    pub fn confirm_removal(&mut self) {
        let is_held = |fault: &SourceProblem| fault.problem.reason == Reason::RemovalHeld;
        if self.desired.source.problems.iter().any(is_held) {
            self.removal_hold.confirm();
        }
    }

    /// Saves the state for the next run. Separate from [`Scanner::scan`], so that it does not delay the result of a
    /// scan.
    pub fn save_records(&mut self) {
        let result = self.records.write(&self.state_dir, &self.objects, &self.files);
        self.log_state_error(result.err());
    }

    fn restore(&mut self, now: Instant) -> Result<(), StateError> {
        let resolve = endpoint_resolver(&self.options, &self.secrets, &self.env_files, Timestamp::now());
        self.records.restore(&self.state_dir, &mut self.objects, &mut self.files, &resolve, now)?;
        let (servers, skills) = (self.objects.servers.objects.clone(), self.objects.skills.objects.clone());
        self.restored = Some(Arc::new(Desired { servers, skills, ..Desired::default() }));
        let commit = self.state_dir.read(LAST_COMMIT_FILE)?;
        self.last_commit = commit.and_then(|bytes| String::from_utf8(bytes).ok());
        Ok(())
    }

    fn watch_method(&mut self) -> WatchMethod {
        let Some(reason) = self.watcher.end_round() else { return WatchMethod::Events };
        if self.desired.source.watch_method == WatchMethod::Events {
            let root = display_path(&self.options.args.root);
            warn!("polling {root} for changes instead of using file events: {reason}");
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

    fn apply(&mut self, revision: &Arc<str>, context: &ScanContext<'_>) {
        if context.settled && !(self.secrets.is_empty() && self.env_files.is_empty()) {
            let secrets_changed = self.secrets.refresh(&self.objects.secret_references(), context.wall_clock);
            let env_files_changed = self.env_files.refresh(&self.objects.env_files(), context.wall_clock);
            if secrets_changed || env_files_changed {
                let resolve =
                    endpoint_resolver(&self.options, &self.secrets, &self.env_files, context.wall_clock);
                self.objects.resolve_references(&resolve);
            }
        }
        let resolve = endpoint_resolver(&self.options, &self.secrets, &self.env_files, context.wall_clock);
        let stale = self.objects.apply(&MergeContext {
            now: context.wall_clock,
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
        let result = self.state_dir.write(LAST_COMMIT_FILE, commit.as_deref().unwrap_or_default().as_bytes());
        self.last_commit = commit;
        self.log_state_error(result.err());
    }

    /// Publishes a new [`Desired`] only if it differs from the last one.
    fn publish(&mut self, source: SourceState) {
        let servers = &self.objects.servers.objects;
        let skills = &self.objects.skills.objects;
        let contents = &self.contents.contents;
        let last = &self.desired;
        let objects_unchanged = last.servers.ptr_eq(servers)
            && last.skills.ptr_eq(skills)
            && last.skill_contents.ptr_eq(contents);
        if *last.source == source && objects_unchanged {
            return;
        }
        let source = if *last.source == source { Arc::clone(&last.source) } else { Arc::new(source) };
        let mut removals = last.removal_commits.clone();
        let last_commit = |path: &Path| self.checkout.last_change(&self.files, path);
        if let Some(before) = if last.source.synced { Some(last) } else { self.restored.as_ref() } {
            record_removals(&mut removals, &before.servers, servers, &last_commit);
            record_removals(&mut removals, &before.skills, skills, &last_commit);
        }
        self.desired = Arc::new(Desired {
            servers: servers.clone(),
            skills: skills.clone(),
            skill_contents: contents.clone(),
            source,
            previous_run: self.restored.clone(),
            requested_work: RequestedWork::default(),
            removal_commits: removals,
            sequence: last.sequence + 1,
        });
    }

    /// Logs an error of the state directory once, not at every scan.
    fn log_state_error(&mut self, error: Option<StateError>) {
        let message = error.map(|error| error.to_string());
        if let Some(message) = &message
            && self.state_error.as_ref() != Some(message)
        {
            warn!("{message}; objects may get new uids at the next start");
        }
        self.state_error = message;
    }
}

fn endpoint_resolver<'a>(
    options: &'a Options,
    secrets: &'a SecretFiles,
    env_files: &'a EnvFiles,
    wall_clock: Timestamp,
) -> impl Fn(&McpServerSpec, &Path) -> Result<Arc<Endpoint>, Problem> + 'a {
    move |spec, file| {
        let references = ReferenceValues {
            secret_location: &|SecretKeyRef { name, key, .. }| {
                secrets.root().join(name).join(key).display().to_string()
            },
            environment: &options.args.environment,
            policy: &options.args.policy,
            lookup_secret: &|reference| secrets.get(reference, wall_clock),
            digest_key: &options.digest_key,
        };
        let read_env_file = |path: &Path| env_files.get(path, wall_clock);
        resolve_endpoint(&references, &options.args.root, &read_env_file, spec, file)
    }
}

#[cfg(test)]
mod tests;
