use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::resource::Transport;
use crate::wire::Started;

/// Servers that may be in the busy part of their start at once.
const HTTP: usize = 64;
/// Processes that may be starting at once: a start costs a core for a while.
const STDIO: usize = 8;
/// How long an attempt holds its slot at most, over HTTP and of a process. One that hangs costs nothing, so it holds
/// nobody up; a process that starts is busy for longer than a request, but gives its slot back when it comes to rest.
const HELD: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(1));

/// Bounds how many attempts to connect begin side by side.
#[derive(Debug)]
pub(super) struct Slots {
    http: Arc<Semaphore>,
    stdio: Arc<Semaphore>,
}

impl Default for Slots {
    fn default() -> Self {
        Self { http: Arc::new(Semaphore::new(HTTP)), stdio: Arc::new(Semaphore::new(STDIO)) }
    }
}

impl Slots {
    /// Runs an attempt once a slot is free; the slot is free again when the attempt ends, or before.
    pub(super) async fn run<T>(
        &self,
        transport: &Transport,
        started: &Started,
        attempt: impl Future<Output = T>,
    ) -> T {
        let (slots, held, process) = match transport {
            Transport::Http(_) => (&self.http, HELD.0, None),
            Transport::Stdio(_) => (&self.stdio, HELD.1, Some(started)),
        };
        // The semaphores are never closed.
        let permit: Option<OwnedSemaphorePermit> = slots.clone().acquire_owned().await.ok();
        tokio::pin!(attempt);
        let busy = async {
            match process {
                Some(process) => process.at_rest().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            result = &mut attempt => return result,
            _ = tokio::time::timeout(held, busy) => drop(permit),
        }
        attempt.await
    }
}
