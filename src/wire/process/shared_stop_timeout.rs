use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// The time that the processes of a server have to exit after SIGTERM (`spec.stdio.stop`). Shared with the connections
/// that are open, so that a changed declaration applies to them. Cheap to clone.
#[derive(Clone, Debug)]
pub struct SharedStopTimeout(Arc<AtomicU64>);

impl SharedStopTimeout {
    /// Creates a timeout, with a resolution of milliseconds.
    pub fn new(timeout: Duration) -> Self {
        Self(Arc::new(AtomicU64::new(milliseconds(timeout))))
    }

    /// Sets the timeout.
    pub fn set(&self, timeout: Duration) {
        self.0.store(milliseconds(timeout), Ordering::Relaxed);
    }

    /// Reduces the timeout to at most `limit`.
    pub fn limit(&self, limit: Duration) {
        self.0.fetch_min(milliseconds(limit), Ordering::Relaxed);
    }

    /// Returns the timeout.
    pub fn get(&self) -> Duration {
        Duration::from_millis(self.0.load(Ordering::Relaxed))
    }
}

impl Default for SharedStopTimeout {
    fn default() -> Self {
        Self::new(Duration::from_secs(5))
    }
}

fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
