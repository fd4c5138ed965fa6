//! The directories that skills are written to: one task for each, so that none waits for another.

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
use crate::net::{Backoff, Delays, jitter};
use crate::resource::{Digest, ObjectKey, Problem, Reason};

/// All is looked at, and mended, this often.
const FULL_SYNC_INTERVAL: Duration = Duration::from_mins(1);
/// The delays before what failed is tried again, until that is done as often as all.
const RETRY_DELAYS: Delays = Delays { initial: Duration::from_secs(2), max: FULL_SYNC_INTERVAL };

/// Where skills are written to, and by whom.
#[derive(Clone, Debug)]
pub struct SyncOptions {
    /// The directories, absolute. They need not be there yet.
    pub directories: Vec<PathBuf>,
    /// What tells this evenkeel from others that write to the same directories: letters and digits.
    pub owner: String,
    /// The namespace whose skills come first where several have one name.
    pub home: Option<Arc<str>>,
}

/// What became of the skills in each directory.
#[derive(Clone, Debug, Default)]
pub struct SyncResults {
    /// The directories; none is no way to offer skills.
    pub directories: Arc<[PathBuf]>,
    /// By skill, and by the place of the directory in the list.
    pub by_skill: OrdMap<ObjectKey, BTreeMap<usize, SyncOutcome>>,
}

/// What became of a skill in a directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SyncOutcome {
    /// Of what was to be written.
    pub digest: Digest,
    /// Why it is not there.
    pub problem: Option<Problem>,
}

/// Writes what is offered to every directory until `stop`, and tells what became of it.
pub fn sync(
    options: SyncOptions,
    standings: &watch::Receiver<SkillStates>,
    tracker: &TaskTracker,
    stop: &CancellationToken,
) -> watch::Receiver<SyncResults> {
    let directories: Arc<[PathBuf]> = options.directories.into();
    let (sender, written) =
        watch::channel(SyncResults { directories: directories.clone(), ..SyncResults::default() });
    for (place, path) in directories.iter().enumerate() {
        let keeper = DirectorySync {
            index: place,
            path: path.clone(),
            home: options.home.clone(),
            tracker: tracker.clone(),
            sender: sender.clone(),
        };
        let directory = SkillDirectory::new(path.clone(), options.owner.clone());
        let (standings, stop) = (standings.clone(), stop.clone());
        tracker.spawn(async move {
            stop.run_until_cancelled(keeper.run(directory, standings)).await;
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
    async fn run(self, mut directory: SkillDirectory, mut standings: watch::Receiver<SkillStates>) {
        let mut whole_at = Instant::now();
        let mut backoff = Backoff::default();
        loop {
            let now = standings.borrow_and_update().clone();
            let mut next = whole_at;
            // Before all skills are known nothing can be taken away, so nothing is begun.
            if now.complete {
                let SkillSelection { desired: wanted, owners: keys, shadowed } =
                    select_skills(&now, self.home.as_deref());
                let began = Instant::now();
                let whole = began >= whole_at;
                let work = self.tracker.spawn_blocking(move || {
                    let troubles = directory.apply(&wanted, whole);
                    (directory, wanted, troubles)
                });
                let Ok((back, wanted, troubles)) = work.await else {
                    tracing::error!("writing skills to {} failed; please report it", self.path.display());
                    return;
                };
                directory = back;
                let failed = self.publish_results(&wanted, &keys, &shadowed, &troubles);
                if whole {
                    whole_at = Instant::now() + FULL_SYNC_INTERVAL;
                }
                next = if failed {
                    whole_at.min(Instant::now() + backoff.record_failure(RETRY_DELAYS, jitter(), None))
                } else {
                    backoff.reset();
                    whole_at
                };
            }
            tokio::select! {
                changed = standings.changed() => if changed.is_err() { return },
                () = sleep_until(next), if now.complete => {}
            }
        }
    }

    /// Tells what became of each skill; true if something is to be tried again soon.
    fn publish_results(
        &self,
        wanted: &DesiredSkills,
        keys: &BTreeMap<Arc<str>, ObjectKey>,
        shadowed: &BTreeMap<ObjectKey, (Digest, Problem)>,
        troubles: &Result<BTreeMap<Arc<str>, Problem>, Problem>,
    ) -> bool {
        let mut outcomes: BTreeMap<ObjectKey, SyncOutcome> = shadowed
            .iter()
            .map(|(key, (digest, problem))| {
                (key.clone(), SyncOutcome { digest: *digest, problem: Some(problem.clone()) })
            })
            .collect();
        let mut failed = troubles.is_err();
        for (name, bundle) in &wanted.skills {
            let problem = match troubles {
                Ok(troubles) => troubles.get(name).cloned(),
                Err(problem) => Some(problem.clone()),
            };
            failed |= problem.is_some();
            if let Some(key) = keys.get(name) {
                outcomes.insert(key.clone(), SyncOutcome { digest: bundle.digest(), problem });
            }
        }
        if let Err(problem) = troubles
            && wanted.skills.is_empty()
        {
            tracing::warn!("{}", problem.message);
        }
        self.sender.send_if_modified(|written| {
            let mut differs = false;
            let known: Vec<_> =
                written.by_skill.keys().filter(|key| !outcomes.contains_key(*key)).cloned().collect();
            for key in known {
                let Some(mut places) = written.by_skill.get(&key).cloned() else { continue };
                if places.remove(&self.index).is_some() {
                    differs = true;
                    if places.is_empty() {
                        written.by_skill.remove(&key);
                    } else {
                        written.by_skill.insert(key, places);
                    }
                }
            }
            for (key, outcome) in outcomes {
                let mut places = written.by_skill.get(&key).cloned().unwrap_or_default();
                if places.get(&self.index) != Some(&outcome) {
                    differs = true;
                    places.insert(self.index, outcome);
                    written.by_skill.insert(key, places);
                }
            }
            differs
        });
        failed
    }
}

/// What is written, where several skills may have one name.
struct SkillSelection {
    desired: DesiredSkills,
    /// Who has each name.
    owners: BTreeMap<Arc<str>, ObjectKey>,
    /// Who has not the name that it would have.
    shadowed: BTreeMap<ObjectKey, (Digest, Problem)>,
}

/// The home namespace comes first, then the order of namespaces. A skill that waits for a server gives up its name,
/// as one that is suspended does. What is not known yet, or was never good, is left as it is on the disk.
fn select_skills(standings: &SkillStates, home: Option<&str>) -> SkillSelection {
    let mut choice = SkillSelection {
        desired: DesiredSkills::default(),
        owners: BTreeMap::new(),
        shadowed: BTreeMap::new(),
    };
    let is_home = |key: &ObjectKey| Some(&*key.namespace) == home;
    let first = standings.skills.iter().filter(|(key, _)| is_home(key));
    let all = first.chain(standings.skills.iter().filter(|(key, _)| !is_home(key)));
    for (key, standing) in all {
        let early = standing.missing_server.as_ref().is_some_and(|missing| missing.during_startup);
        match standing.offered() {
            Some(bundle) => match choice.owners.get(bundle.name()) {
                None => {
                    choice.owners.insert(bundle.name().clone(), key.clone());
                    choice.desired.skills.insert(bundle.name().clone(), bundle.clone());
                }
                Some(winner) => {
                    let message = format!(
                        "skill {winner} has this name in the directories of agents; rename or remove one of them"
                    );
                    let problem = Problem::new(Reason::Shadowed, message);
                    choice.shadowed.insert(key.clone(), (bundle.digest(), problem));
                }
            },
            None if !standing.suspended && (standing.bundle.is_none() || early) => {
                choice.desired.untouched.insert(key.name.clone());
            }
            None => {}
        }
    }
    choice
}

impl SyncResults {
    /// The directory at a place of the list.
    pub fn directory(&self, place: usize) -> &Path {
        self.directories.get(place).map_or(Path::new(""), PathBuf::as_path)
    }
}
