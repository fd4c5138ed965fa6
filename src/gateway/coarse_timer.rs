use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, sleep};

/// The resolution of the timer.
const TICK_INTERVAL: Duration = Duration::from_millis(500);

/// A shared timer for calls, which check the time at each tick.
///
/// One runtime timer per call would work too, but a new earliest timer wakes the runtime's I/O driver: measured, that
/// was one or two system calls for each call, on a path that has only a handful. It is a watch channel, because that
/// keeps its waiters in several lists: no lock is shared by all calls.
#[derive(Debug, Default)]
pub(super) struct CoarseTimer(watch::Sender<()>);

impl CoarseTimer {
    /// Ticks for as long as it is polled.
    pub(super) async fn run(&self) {
        loop {
            sleep(TICK_INTERVAL).await;
            self.0.send_replace(());
        }
    }

    /// Completes at most half a second after this instant, as long as [`run`](Self::run) is polled. Cancel safe.
    pub(super) async fn sleep_until(&self, instant: Instant) {
        let mut ticks = self.0.subscribe();
        // `self` holds the sender, so the channel is never closed.
        while Instant::now() < instant && ticks.changed().await.is_ok() {}
    }
}
