use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::{Instant, sleep};

/// How exactly calls know the time.
const BEAT: Duration = Duration::from_millis(500);

/// A beat for calls, which look at the time with each of them.
///
/// A timer for every call would do, but a new earliest timer wakes the runtime's I/O driver: measured, that
/// was a system call or two for each call, on a path that has only a handful.
#[derive(Clone, Debug, Default)]
pub(super) struct Pulse(Arc<Notify>);

impl Pulse {
    /// Beats for as long as it is polled.
    pub(super) async fn beat(&self) {
        loop {
            sleep(BEAT).await;
            self.0.notify_waiters();
        }
    }

    /// Completes half a second after this instant at the latest, as long as it beats. Cancel safe.
    pub(super) async fn until(&self, instant: Instant) {
        loop {
            let beat = self.0.notified();
            if Instant::now() >= instant {
                return;
            }
            beat.await;
        }
    }
}
