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
use crate::net::{SupervisedTasks, restart_on_panic};
use crate::resource::{Desired, WatchMethod};
use crate::state_dir::StateDir;

/// The time between scans if file events are available, to recover from lost events.
const RESCAN_INTERVAL: Duration = Duration::from_secs(30);
/// The time between scans without file events, or while a removal is held that time may release.
const POLL_INTERVAL: Duration = Duration::from_secs(3);

/// Watches a directory until `cancel` is cancelled, and publishes its declared objects on the returned channel. The
/// first value is not synced. A [`Desired`] that does not differ from the last one is not sent.
///
/// The identity and the last good declaration of objects are saved in `state_dir`, whose lock the caller holds.
pub(super) fn start(
    options: Options,
    state_dir: Arc<StateDir>,
    tasks: &SupervisedTasks,
    cancel: CancellationToken,
) -> (channel::Receiver<Arc<Desired>>, Arc<FileEventQueue>) {
    let (sender, receiver) = channel::channel(Arc::default());
    let events = Arc::new(FileEventQueue::new(options.metrics.clone()));
    let (tracker, task_events) = (tasks.tracker().clone(), events.clone());
    tasks.spawn("the scan of the directory", async move {
        let scanning = restart_on_panic("the task that scans the directory", || {
            run(options.clone(), state_dir.clone(), tracker.clone(), task_events.clone(), sender.clone())
        });
        cancel.run_until_cancelled(scanning).await;
    });
    (receiver, events)
}

async fn run(
    options: Options,
    state_dir: Arc<StateDir>,
    tasks: TaskTracker,
    events: Arc<FileEventQueue>,
    sender: channel::Sender<Arc<Desired>>,
) {
    let mut debounce = Debounce::new(Instant::now());
    let mut completed = HashSet::new();
    let mut confirm_removal = false;
    let mut scanner = None;
    loop {
        let now = Instant::now();
        let received = events.drain();
        if received.any {
            debounce.event_received(now, !received.completed.is_empty());
            completed.extend(received.completed);
            confirm_removal |= received.confirm_removal;
        }
        let due = debounce.next_scan_at(now);
        if due > now {
            tokio::select! {
                () = sleep_until(due) => {}
                () = events.notified() => {}
            }
            continue;
        }
        let settled = debounce.begin_scan(now);
        let scans_requested = events.scans_requested();
        let (completed, confirm_removal) =
            (std::mem::take(&mut completed), std::mem::take(&mut confirm_removal));
        let last = scanner.take();
        let (options, state_dir, task_events) =
            (options.clone(), Arc::clone(&state_dir), Arc::clone(&events));
        let (sender, poll_interval) = (sender.clone(), options.args.poll_interval.unwrap_or(POLL_INTERVAL));
        let scan = tasks.spawn_blocking(move || {
            let mut scanner = last.unwrap_or_else(|| Scanner::new(options, state_dir, task_events, now));
            if confirm_removal {
                scanner.confirm_removal();
            }
            let ScanResult { desired, needs_rescan, removals_held } =
                scanner.scan(&completed, (now, Timestamp::now()), settled);
            let interval = match desired.source.watch_method {
                WatchMethod::Events if removals_held => POLL_INTERVAL,
                WatchMethod::Events => RESCAN_INTERVAL,
                WatchMethod::Polling => poll_interval,
            };
            sender.send_if_modified(|last| {
                let differs = !Arc::ptr_eq(last, &desired);
                *last = desired;
                differs
            });
            scanner.save_records();
            (scanner, needs_rescan, interval)
        });
        let (needs_rescan, interval) = match scan.await {
            Ok((returned_scanner, needs_rescan, interval)) => {
                scanner = Some(returned_scanner);
                (needs_rescan, interval)
            }
            Err(error) => {
                error!(
                    "a scan of the directory failed; the next scan starts from the saved records: {error}"
                );
                (true, POLL_INTERVAL)
            }
        };
        let ended = Instant::now();
        debug!(took = ?ended - now, settled, needs_rescan, "scanned the directory");
        debounce.end_scan(now, ended, settled, needs_rescan, interval);
        if settled && !needs_rescan {
            events.complete_scans(scans_requested);
        }
    }
}
