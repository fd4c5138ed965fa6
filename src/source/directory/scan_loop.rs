use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use tokio::sync::watch as channel;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{debug, error};

use super::debounce::Debounce;
use super::options::Options;
use super::scan::{ScanResult, Scanner};
use super::tree::FileEventQueue;
use crate::resource::{Desired, WatchMethod};
use crate::state_dir::StateDir;

/// The time between looks where file events are heard: for the ones that get lost.
const RESCAN_INTERVAL: Duration = Duration::from_secs(30);
/// The time between looks where they are not, or where something is held back that time lets go.
const POLL_INTERVAL: Duration = Duration::from_secs(3);

/// Watches a directory until `cancel`; what is declared in it is in the channel, at first nothing that is
/// synced. A [`Desired`] that does not differ from the last one is not sent.
///
/// The identity and the last good declaration of objects are kept in `state`, of which the caller holds the
/// lock.
pub(super) fn start(
    options: Options,
    state: Arc<StateDir>,
    tracker: &TaskTracker,
    cancel: CancellationToken,
) -> (channel::Receiver<Arc<Desired>>, Arc<FileEventQueue>) {
    let (sender, receiver) = channel::channel(Arc::default());
    let mailbox = Arc::new(FileEventQueue::new(options.metrics.clone()));
    let (looks, heard) = (tracker.clone(), mailbox.clone());
    tracker.spawn(async move {
        cancel.run_until_cancelled(run(options, state, looks, heard, sender)).await;
    });
    (receiver, mailbox)
}

async fn run(
    options: Options,
    state: Arc<StateDir>,
    looks: TaskTracker,
    mailbox: Arc<FileEventQueue>,
    sender: channel::Sender<Arc<Desired>>,
) {
    let mut debounce = Debounce::new(Instant::now());
    let mut landed = HashSet::new();
    let mut prune = false;
    let mut looker = None;
    loop {
        let now = Instant::now();
        let hints = mailbox.drain();
        if hints.any {
            debounce.event_received(now, !hints.completed.is_empty());
            landed.extend(hints.completed);
            prune |= hints.confirm_removal;
        }
        let due = debounce.next_scan_at(now);
        if due > now {
            tokio::select! {
                () = sleep_until(due) => {}
                () = mailbox.notified() => {}
            }
            continue;
        }
        let settled = debounce.begin_scan(now);
        let asked = mailbox.scans_requested();
        let (landed, prune) = (std::mem::take(&mut landed), std::mem::take(&mut prune));
        let last = looker.take();
        let (options, state, heard) = (options.clone(), Arc::clone(&state), Arc::clone(&mailbox));
        let (sender, poll) = (sender.clone(), options.args.poll_interval.unwrap_or(POLL_INTERVAL));
        let look = looks.spawn_blocking(move || {
            let mut looker = last.unwrap_or_else(|| Scanner::new(options, state, heard, now));
            if prune {
                looker.confirm_removal();
            }
            let ScanResult { desired, needs_rescan: again, removals_held: held } =
                looker.scan(&landed, (now, Timestamp::now()), settled);
            let interval = match desired.source.watch_method {
                WatchMethod::Events if held => POLL_INTERVAL,
                WatchMethod::Events => RESCAN_INTERVAL,
                WatchMethod::Polling => poll,
            };
            sender.send_if_modified(|last| {
                let differs = !Arc::ptr_eq(last, &desired);
                *last = desired;
                differs
            });
            looker.save_records();
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
                (true, POLL_INTERVAL)
            }
        };
        let ended = Instant::now();
        debug!(took = ?ended - now, settled, again, "looked at the directory");
        debounce.end_scan(now, ended, settled, again, interval);
        if settled && !again {
            mailbox.complete_scans(asked);
        }
    }
}
