//! A directory of YAML files, and of the JSON files of agents, as a source of declarations.
//!
//! Promises that what people do to the directory (editors, git, volumes that are flipped, mistakes) leads to
//! the declared state, quickly, and never to an accident: what cannot be read keeps its last good form, and
//! what is there no longer must be seen so twice. Events only say when to look; a look compares everything,
//! and reads what has changed. Never reads outside the directory and the secrets directory, and never writes
//! into either.

mod absence;
mod check;
mod commits;
mod contents;
mod documents;
mod excerpt;
mod expand;
mod files;
mod find;
mod folder;
mod git;
mod lists;
mod look;
mod mailbox;
mod mcp_json;
mod merge;
mod names;
mod next;
mod pace;
mod parse;
mod places;
mod read;
mod records;
mod removals;
mod secrets;
mod walk;
mod watch;
mod yaml;

use std::collections::HashSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use tokio::sync::watch as channel;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{debug, error};

pub use self::check::{Against, Checked, Finding, Level, check_directory, check_files, check_text};
pub use self::excerpt::nearest;
pub use self::find::{Place, find, mistake};
use self::look::{Looker, Outcome};
use self::mailbox::Mailbox;
use self::pace::Pace;
pub use self::parse::Destination;
use crate::resource::DigestKey;
use crate::source::{Desired, Environment, Policy, SourceMetrics, Watching};
use crate::state::StateDir;

/// The time between looks where file events are heard: for the ones that get lost.
const RESCAN: Duration = Duration::from_secs(30);
/// The time between looks where they are not, or where something is held back that time lets go.
const POLL: Duration = Duration::from_secs(3);

/// Where declarations are, and what their references mean.
#[derive(Clone, Debug)]
pub struct Options {
    /// The directory, as an absolute path; its links are not resolved. It may not exist yet.
    pub root: PathBuf,
    /// Where `secretKeyRef` finds `<name>/<key>`.
    pub secrets: PathBuf,
    /// What `valueFrom.env` finds.
    pub environment: Environment,
    /// Which stdio servers may run.
    pub policy: Policy,
    /// The key of connection digests.
    pub key: DigestKey,
    /// Take away everything when the last file is gone.
    pub prune_empty: bool,
    /// Look at intervals and expect no file events, for file systems that have none.
    pub poll: Option<Duration>,
    /// Where it is counted that file events were lost.
    pub metrics: SourceMetrics,
}

/// What a person may ask of a directory that is watched.
#[derive(Clone, Debug)]
pub struct Wishes {
    mailbox: Arc<Mailbox>,
    declared: channel::Receiver<Arc<Desired>>,
}

impl Wishes {
    /// Says that an empty directory is meant: what is held back, because the last files vanished, is taken away.
    /// Means nothing where nothing is held back.
    pub fn confirm_removal(&self) {
        self.mailbox.prune();
    }

    /// Asks for a look at everything, waits until it is done, and gives what is declared then. Those who follow the
    /// source take it up a moment later: [`Desired::number`] tells when they have.
    pub async fn look(&self) -> Arc<Desired> {
        self.mailbox.look().await;
        self.declared.borrow().clone()
    }
}

/// Watches a directory until `cancel`; what is declared in it is in the channel, at first nothing that is
/// synced. A [`Desired`] that does not differ from the last one is not sent.
///
/// The identity and the last good declaration of objects are kept in `state`, of which the caller holds the
/// lock.
pub fn start(
    options: Options,
    state: Arc<StateDir>,
    tracker: &TaskTracker,
    cancel: CancellationToken,
) -> (channel::Receiver<Arc<Desired>>, Wishes) {
    let (sender, receiver) = channel::channel(Arc::default());
    let mailbox = Arc::new(Mailbox::new(options.metrics.clone()));
    let (looks, heard) = (tracker.clone(), mailbox.clone());
    tracker.spawn(async move {
        cancel.run_until_cancelled(run(options, state, looks, heard, sender)).await;
    });
    let wishes = Wishes { mailbox, declared: receiver.clone() };
    (receiver, wishes)
}

async fn run(
    options: Options,
    state: Arc<StateDir>,
    looks: TaskTracker,
    mailbox: Arc<Mailbox>,
    sender: channel::Sender<Arc<Desired>>,
) {
    let mut pace = Pace::new(Instant::now());
    let mut landed = HashSet::new();
    let mut prune = false;
    let mut looker = None;
    loop {
        let now = Instant::now();
        let hints = mailbox.take();
        if hints.any {
            pace.heard(now, !hints.landed.is_empty());
            landed.extend(hints.landed);
            prune |= hints.prune;
        }
        let due = pace.due(now);
        if due > now {
            tokio::select! {
                () = sleep_until(due) => {}
                () = mailbox.heard() => {}
            }
            continue;
        }
        let settled = pace.begin(now);
        let asked = mailbox.asked();
        let (landed, prune) = (std::mem::take(&mut landed), std::mem::take(&mut prune));
        let last = looker.take();
        let (options, state, heard) = (options.clone(), Arc::clone(&state), Arc::clone(&mailbox));
        let (sender, poll) = (sender.clone(), options.poll.unwrap_or(POLL));
        let look = looks.spawn_blocking(move || {
            let mut looker = last.unwrap_or_else(|| Looker::new(options, state, heard, now));
            if prune {
                looker.confirm();
            }
            let Outcome { desired, again, held } = looker.look(&landed, (now, Timestamp::now()), settled);
            let interval = match desired.source.watching {
                Watching::Events if held => POLL,
                Watching::Events => RESCAN,
                Watching::Polling => poll,
            };
            sender.send_if_modified(|last| {
                let differs = !Arc::ptr_eq(last, &desired);
                *last = desired;
                differs
            });
            looker.remember();
            (looker, again, interval)
        });
        let (again, interval) = match look.await {
            Ok((back, again, interval)) => {
                looker = Some(back);
                (again, interval)
            }
            Err(error) => {
                error!(
                    "a look at the directory failed, and the next begins from what is remembered: {error}"
                );
                (true, POLL)
            }
        };
        let ended = Instant::now();
        debug!(took = ?ended - now, settled, again, "looked at the directory");
        pace.end(now, ended, settled, again, interval);
        if settled && !again {
            mailbox.answer(asked);
        }
    }
}
