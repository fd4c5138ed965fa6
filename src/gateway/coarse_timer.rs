use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, sleep};

/// How exactly calls know the time.
const TICK_INTERVAL: Duration = Duration::from_millis(500);

/// A beat for calls, which look at the time with each of them.
///
/// A timer for every call would do, but a new earliest timer wakes the runtime's I/O driver: measured, that
/// was a system call or two for each call, on a path that has only a handful. A watch, since that keeps its
/// waiters in several lists: no lock is shared by all calls.
#[derive(Debug, Default)]
pub(super) struct CoarseTimer(watch::Sender<()>);

impl CoarseTimer {
    /// Beats for as long as it is polled.
    pub(super) async fn run(&self) {
        loop {
            sleep(TICK_INTERVAL).await;
            self.0.send_replace(());
        }
    }

    /// Completes half a second after this instant at the latest, as long as it beats. Cancel safe.
    pub(super) async fn sleep_until(&self, instant: Instant) {
        let mut beats = self.0.subscribe();
        // The other end is here, so that beats never end.
        while Instant::now() < instant && beats.changed().await.is_ok() {}
    }
}
