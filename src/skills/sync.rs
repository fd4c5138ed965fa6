//! Writes skills to directories: one task per directory, so that none waits for another.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use imbl::OrdMap;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::directory::{DesiredSkills, SkillDirectory};
use super::skill_state::SkillStates;
use crate::net::{Backoff, Delays, jitter, restart_on_panic};
use crate::resource::{Digest, ObjectKey, Problem, Reason};

/// The interval of full passes, which check and repair every skill.
const FULL_SYNC_INTERVAL: Duration = Duration::from_mins(1);
/// The delays before a failed write is retried, up to the interval of full passes.
const RETRY_DELAYS: Delays = Delays { initial: Duration::from_secs(2), max: FULL_SYNC_INTERVAL };

/// The directories that skills are written to, and their owner.
#[derive(Clone, Debug)]
pub struct SyncOptions {
    /// The directories, as absolute paths. They need not exist yet.
    pub directories: Vec<PathBuf>,
    /// The id that distinguishes this instance from others that write to the same directories: letters and digits.
    pub owner: String,
    /// The namespace whose skills take precedence where several have the same name.
    pub home: Option<Arc<str>>,
}

/// The results of writing the skills, for each directory.
#[derive(Clone, Debug, Default)]
pub struct SyncResults {
    /// The directories. If there are none, skills are not offered in directories.
    pub directories: Arc<[PathBuf]>,
    /// The outcomes by skill, and by the index of the directory.
    pub by_skill: OrdMap<ObjectKey, BTreeMap<usize, SyncOutcome>>,
}

/// The result of writing a skill to a directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SyncOutcome {
    /// The digest of the content to be written.
    pub digest: Digest,
    /// The problem, if the skill was not written.
    pub problem: Option<Problem>,
}

/// Writes the offered skills to every directory until `stop`, and returns a channel with the results.
pub fn sync(
    options: SyncOptions,
    states: &watch::Receiver<SkillStates>,
    tracker: &TaskTracker,
    stop: &CancellationToken,
) -> watch::Receiver<SyncResults> {
    let directories: Arc<[PathBuf]> = options.directories.into();
    let (sender, written) =
        watch::channel(SyncResults { directories: directories.clone(), ..SyncResults::default() });
    for (index, path) in directories.iter().enumerate() {
        let directory_sync = DirectorySync {
            index,
            path: path.clone(),
            home: options.home.clone(),
            tracker: tracker.clone(),
            sender: sender.clone(),
        };
        let (owner, states, stop) = (options.owner.clone(), states.clone(), stop.clone());
        tracker.spawn(async move {
            let name = format!("the task that writes skills to {}", directory_sync.path.display());
            let writing = restart_on_panic(name, || {
                let directory = SkillDirectory::new(directory_sync.path.clone(), owner.clone());
                directory_sync.run(directory, states.clone())
            });
            stop.run_until_cancelled(writing).await;
        });
    }
    written
}

struct DirectorySync {
    index: usize,
    path: PathBuf,
    home: Option<Arc<str>>,
    tracker: TaskTracker,
    sender: watch::Sender<SyncResults>,
}

impl DirectorySync {
    async fn run(&self, mut directory: SkillDirectory, mut states: watch::Receiver<SkillStates>) {
        let mut next_full_at = Instant::now();
        let mut backoff = Backoff::default();
        loop {
            let current = states.borrow_and_update().clone();
            let mut next_pass_at = next_full_at;
            // Before all skills were read, no skill can be removed safely, so no pass runs.
            if current.complete {
                let SkillSelection { desired, owners, shadowed } =
                    select_skills(&current, self.home.as_deref());
                let started_at = Instant::now();
                let full = started_at >= next_full_at;
                let pass = self.tracker.spawn_blocking(move || {
                    let problems = directory.apply(&desired, full);
                    (directory, desired, problems)
                });
                let (returned, desired, problems) = match pass.await {
                    Ok(done) => done,
                    // The next run begins with a full pass. Only a runtime that shuts down cancels a pass.
                    Err(error) => match error.try_into_panic() {
                        Ok(panic) => std::panic::resume_unwind(panic),
                        Err(_) => return,
                    },
                };
                directory = returned;
                let failed = self.publish_results(&desired, &owners, &shadowed, &problems);
                if full {
                    next_full_at = Instant::now() + FULL_SYNC_INTERVAL;
                }
                next_pass_at = if failed {
                    next_full_at.min(Instant::now() + backoff.record_failure(RETRY_DELAYS, jitter(), None))
                } else {
                    backoff.reset();
                    next_full_at
                };
            }
            tokio::select! {
                changed = states.changed() => if changed.is_err() { return },
                () = sleep_until(next_pass_at), if current.complete => {}
            }
        }
    }

    /// Publishes the outcome of each skill. Returns true if a write is to be retried.
    fn publish_results(
        &self,
        desired: &DesiredSkills,
        owners: &BTreeMap<Arc<str>, ObjectKey>,
        shadowed: &BTreeMap<ObjectKey, (Digest, Problem)>,
        problems: &Result<BTreeMap<Arc<str>, Problem>, Problem>,
    ) -> bool {
        let mut outcomes: BTreeMap<ObjectKey, SyncOutcome> = shadowed
            .iter()
            .map(|(key, (digest, problem))| {
                (key.clone(), SyncOutcome { digest: *digest, problem: Some(problem.clone()) })
            })
            .collect();
        let mut failed = problems.is_err();
        for (name, bundle) in &desired.skills {
            let problem = match problems {
                Ok(problems) => problems.get(name).cloned(),
                Err(problem) => Some(problem.clone()),
            };
            failed |= problem.is_some();
            if let Some(key) = owners.get(name) {
                outcomes.insert(key.clone(), SyncOutcome { digest: bundle.digest(), problem });
            }
        }
        if let Err(problem) = problems
            && desired.skills.is_empty()
        {
            tracing::warn!("{}", problem.message);
        }
        self.sender.send_if_modified(|written| {
            let mut changed = false;
            let removed: Vec<_> =
                written.by_skill.keys().filter(|key| !outcomes.contains_key(*key)).cloned().collect();
            for key in removed {
                let Some(mut by_directory) = written.by_skill.get(&key).cloned() else { continue };
                if by_directory.remove(&self.index).is_some() {
                    changed = true;
                    if by_directory.is_empty() {
                        written.by_skill.remove(&key);
                    } else {
                        written.by_skill.insert(key, by_directory);
                    }
                }
            }
            for (key, outcome) in outcomes {
                let mut by_directory = written.by_skill.get(&key).cloned().unwrap_or_default();
                if by_directory.get(&self.index) != Some(&outcome) {
                    changed = true;
                    by_directory.insert(self.index, outcome);
                    written.by_skill.insert(key, by_directory);
                }
            }
            changed
        });
        failed
    }
}

/// The skills to be written, with name conflicts resolved.
struct SkillSelection {
    desired: DesiredSkills,
    /// The skill that gets each name.
    owners: BTreeMap<Arc<str>, ObjectKey>,
    /// The skills whose name belongs to another.
    shadowed: BTreeMap<ObjectKey, (Digest, Problem)>,
}

/// Selects the skills to be written. The home namespace takes precedence, then the order of namespaces.
///
/// A skill that lacks a server does not claim its name, nor does a suspended one. Skills that were not read yet, or
/// never had valid content, are left unchanged on the disk.
fn select_skills(states: &SkillStates, home: Option<&str>) -> SkillSelection {
    let mut selection = SkillSelection {
        desired: DesiredSkills::default(),
        owners: BTreeMap::new(),
        shadowed: BTreeMap::new(),
    };
    let is_home = |key: &ObjectKey| Some(&*key.namespace) == home;
    let first = states.skills.iter().filter(|(key, _)| is_home(key));
    let all = first.chain(states.skills.iter().filter(|(key, _)| !is_home(key)));
    for (key, state) in all {
        let during_startup = state.missing_server.as_ref().is_some_and(|missing| missing.during_startup);
        match state.offered() {
            Some(bundle) => match selection.owners.get(bundle.name()) {
                None => {
                    selection.owners.insert(bundle.name().clone(), key.clone());
                    selection.desired.skills.insert(bundle.name().clone(), bundle.clone());
                }
                Some(winner) => {
                    let message = format!(
                        "skill {winner} has this name in the agents' skill directories; rename or remove one of them"
                    );
                    let problem = Problem::new(Reason::Shadowed, message);
                    selection.shadowed.insert(key.clone(), (bundle.digest(), problem));
                }
            },
            None if !state.suspended && (state.bundle.is_none() || during_startup) => {
                selection.desired.untouched.insert(key.name.clone());
            }
            None => {}
        }
    }
    selection
}

impl SyncResults {
    /// Returns the directory at an index; an empty path if there is none.
    pub fn directory(&self, index: usize) -> &Path {
        self.directories.get(index).map_or(Path::new(""), PathBuf::as_path)
    }
}
