use std::sync::{Arc, OnceLock};
use std::time::Duration;

use tokio::sync::SetOnce;
use tokio::time::{Instant, sleep};

/// The time between two looks at a process.
const SAMPLE_INTERVAL: Duration = Duration::from_millis(25);
/// So many looks in a row at which it did nothing, and it is at rest.
const IDLE_SAMPLES: u32 = 3;
/// How long a start takes where the system does not tell what a process does.
const FALLBACK_DELAY: Duration = Duration::from_millis(250);

/// The process of a connection, once there is one. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct ProcessActivity(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    /// Its id, and when it was started.
    process: OnceLock<(u32, Instant)>,
    first_message_at: SetOnce<Instant>,
}

impl ProcessActivity {
    pub(in crate::wire) fn set_process(&self, pid: u32) {
        // Set once: a connection has one process.
        let _ = self.0.process.set((pid, Instant::now()));
    }

    /// Gives the time at which the process was started.
    pub fn started_at(&self) -> Option<Instant> {
        self.0.process.get().map(|(_, since)| *since)
    }

    /// Notes that the process has sent a message, whichever.
    pub(in crate::wire) fn mark_message_received(&self) {
        if !self.0.first_message_at.initialized() {
            // Set by the one task that reads its messages.
            let _ = self.0.first_message_at.set(Instant::now());
        }
    }

    /// Waits until the process has sent its first message, and gives the time of it.
    pub async fn wait_for_first_message(&self) -> Instant {
        *self.0.first_message_at.wait().await
    }

    /// Gives the time at which the process sent its first message; `None` before, and over HTTP.
    pub fn first_message_at(&self) -> Option<Instant> {
        self.0.first_message_at.get().copied()
    }

    /// Waits until the process has come to rest after its start: it waits for something and uses no processor, as
    /// `/proc` tells (Linux); elsewhere, for a moment.
    pub async fn wait_until_idle(&self) {
        let (mut before, mut quiet) = (None, 0);
        while quiet < IDLE_SAMPLES {
            sleep(SAMPLE_INTERVAL).await;
            let Some((pid, _)) = self.0.process.get() else { continue };
            let stat = tokio::fs::read_to_string(format!("/proc/{pid}/stat")).await;
            let Some(now) = stat.ok().as_deref().and_then(ProcessStat::parse) else {
                return sleep(FALLBACK_DELAY).await;
            };
            quiet = if before == Some(now.cpu_ticks) && !now.busy { quiet + 1 } else { 0 };
            before = Some(now.cpu_ticks);
        }
    }
}

/// What a process does.
#[derive(Debug, PartialEq, Eq)]
struct ProcessStat {
    /// It runs, wants to, or waits for a disk.
    busy: bool,
    /// The processor time that it has used.
    cpu_ticks: u64,
}

impl ProcessStat {
    /// Reads `/proc/PID/stat` (`proc_pid_stat(5)`); the name of the program may hold anything.
    fn parse(stat: &str) -> Option<Self> {
        let (_, rest) = stat.rsplit_once(") ")?;
        let field = |number: usize| rest.split(' ').nth(number - 3);
        let time = |number| field(number)?.parse::<u64>().ok();
        Some(Self { busy: matches!(field(3)?, "R" | "D"), cpu_ticks: time(14)? + time(15)? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn proc_stat_is_parsed_whatever_the_program_name() {
        for (stat, busy, cpu_ticks) in [
            ("7 (sleep) S 1 7 7 0 -1 4194304 95 0 0 0 3 4 0 0 20 0 1 0 5 6", false, 7),
            ("7 (a) R 1 (b) R 1 7 7 0 -1 4194304 95 0 0 0 0 0 5 5 20 0", true, 0),
        ] {
            assert_eq!(ProcessStat::parse(stat), Some(ProcessStat { busy, cpu_ticks }), "{stat}");
        }
        for stat in ["", "7 (sleep) S 1", "7 (sleep S"] {
            assert_eq!(ProcessStat::parse(stat), None, "{stat}");
        }
    }
}
