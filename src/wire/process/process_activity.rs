use std::sync::{Arc, OnceLock};
use std::time::Duration;

use tokio::sync::SetOnce;
use tokio::time::{Instant, sleep};

use super::proc_stat::ProcStat;

/// The interval between samples of a process.
const SAMPLE_INTERVAL: Duration = Duration::from_millis(25);
/// The number of consecutive idle samples after which a process counts as idle.
const IDLE_SAMPLES: u32 = 3;
/// The delay after which a process counts as idle if the system does not show its activity.
const FALLBACK_DELAY: Duration = Duration::from_millis(250);

/// The activity of a connection's process, once there is one. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct ProcessActivity(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    /// The process id and the start time.
    process: OnceLock<(u32, Instant)>,
    first_message_at: SetOnce<Instant>,
}

impl ProcessActivity {
    /// Records the process and its start time. Has no effect on a second call.
    pub(in crate::wire) fn set_process(&self, pid: u32) {
        // A connection has one process.
        let _ = self.0.process.set((pid, Instant::now()));
    }

    /// Returns the time at which the process was started.
    pub fn started_at(&self) -> Option<Instant> {
        self.0.process.get().map(|(_, since)| *since)
    }

    /// Records that the process has sent a message of any kind.
    pub(in crate::wire) fn mark_message_received(&self) {
        if !self.0.first_message_at.initialized() {
            // Only one task reads the messages, so this cannot fail.
            let _ = self.0.first_message_at.set(Instant::now());
        }
    }

    /// Waits until the process has sent its first message, and returns the time. Cancel safe.
    pub async fn wait_for_first_message(&self) -> Instant {
        *self.0.first_message_at.wait().await
    }

    /// Returns the time at which the process sent its first message; `None` before that, and over HTTP.
    pub fn first_message_at(&self) -> Option<Instant> {
        self.0.first_message_at.get().copied()
    }

    /// Waits until the process is idle after its start: it sleeps and uses no CPU time, according to `/proc` (Linux).
    /// On other systems it waits for 250 ms.
    pub async fn wait_until_idle(&self) {
        let (mut previous_ticks, mut idle_samples) = (None, 0);
        while idle_samples < IDLE_SAMPLES {
            sleep(SAMPLE_INTERVAL).await;
            let Some((pid, _)) = self.0.process.get() else { continue };
            let stat = tokio::fs::read(format!("/proc/{pid}/stat")).await;
            let Some(stat) = stat.ok().as_deref().and_then(ProcStat::parse) else {
                return sleep(FALLBACK_DELAY).await;
            };
            let is_idle = previous_ticks == Some(stat.cpu_ticks) && !stat.is_busy;
            idle_samples = if is_idle { idle_samples + 1 } else { 0 };
            previous_ticks = Some(stat.cpu_ticks);
        }
    }
}
