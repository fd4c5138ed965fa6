//! The file descriptors that attempts to connect share, so that enough stay free for attached servers and for agents.

use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rustix::io::fcntl_dupfd_cloexec;
use rustix::process::{Resource, getrlimit};
use tokio::time::sleep;

use crate::wire::{ConnectionError, open_file_limit_error};

/// The descriptors that attempts leave free, for calls, agents and the source: at most a quarter of all.
const RESERVED: u64 = 64;
/// The most descriptors that an attempt opens at a time.
const PER_ATTEMPT: u64 = 8;
/// The interval at which a waiting attempt checks for free descriptors.
const CHECK_INTERVAL: Duration = Duration::from_millis(50);

/// The descriptors of evenkeel's process that attempts may use. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub(super) struct DescriptorBudget {
    /// The attempts that are opening files now.
    attempts: Arc<AtomicU64>,
}

/// The descriptors of one attempt. Dropped when it has opened its files.
#[derive(Debug)]
pub(super) struct ReservedDescriptors(Arc<AtomicU64>);

/// Whether an attempt may open files.
#[derive(Debug, PartialEq, Eq)]
enum Decision {
    Start,
    /// Other attempts may use the rest: wait until they have opened their files.
    Wait,
    Refuse,
}

impl DescriptorBudget {
    /// Reserves descriptors for an attempt. Waits while other attempts may use the rest. Cancel safe.
    ///
    /// # Errors
    ///
    /// Returns an error with [`Reason::LocalLimit`](crate::resource::Reason::LocalLimit) if too few are free.
    pub(super) async fn reserve(&self) -> Result<ReservedDescriptors, ConnectionError> {
        loop {
            // Counted before the check, so that of two attempts at the same time at most one is mistaken for the last.
            let others = self.attempts.fetch_add(1, Ordering::AcqRel);
            let reserved = ReservedDescriptors(self.attempts.clone());
            match decide(used_descriptors(), others, getrlimit(Resource::Nofile).current) {
                Decision::Start => return Ok(reserved),
                Decision::Refuse => return Err(open_file_limit_error()),
                Decision::Wait => {
                    drop(reserved);
                    sleep(CHECK_INTERVAL).await;
                }
            }
        }
    }
}

impl Drop for ReservedDescriptors {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

/// Decides whether an attempt may open files, beside the other attempts that do so now. `used` is `None` if no
/// descriptor is free.
fn decide(used: Option<u64>, others: u64, limit: Option<u64>) -> Decision {
    let Some(limit) = limit else { return Decision::Start };
    let Some(used) = used else { return Decision::Refuse };
    let usable = limit - RESERVED.min(limit / 4);
    if used + PER_ATTEMPT > usable {
        Decision::Refuse
    } else if used + (others + 1) * PER_ATTEMPT > usable {
        Decision::Wait
    } else {
        Decision::Start
    }
}

/// Returns the number of descriptors in use, or one that is too small if lower ones are free again; `None` if all are.
fn used_descriptors() -> Option<u64> {
    // The system assigns the lowest free number: all below it are in use.
    let lowest = fcntl_dupfd_cloexec(io::stderr(), 0).ok()?;
    u64::try_from(lowest.as_raw_fd()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attempts_share_what_is_not_reserved() {
        use Decision::{Refuse, Start, Wait};
        for (used, others, limit, expected) in [
            (Some(20), 0, Some(1024), Start),
            (Some(20), 64, Some(1024), Start),
            // 960 are usable.
            (Some(500), 56, Some(1024), Start),
            (Some(500), 57, Some(1024), Wait),
            (Some(952), 0, Some(1024), Start),
            (Some(953), 0, Some(1024), Refuse),
            (Some(953), 9, Some(1024), Refuse),
            // A quarter of a low limit is kept free.
            (Some(40), 0, Some(64), Start),
            (Some(41), 0, Some(64), Refuse),
            (None, 0, Some(1024), Refuse),
            (Some(1 << 40), 0, None, Start),
        ] {
            assert_eq!(decide(used, others, limit), expected, "{used:?} {others} {limit:?}");
        }
    }

    #[tokio::test]
    async fn reservation_ends_with_its_value() {
        let budget = DescriptorBudget::default();
        let reserved = budget.reserve().await.unwrap();
        assert_eq!(budget.attempts.load(Ordering::Relaxed), 1);
        drop(reserved);
        assert_eq!(budget.attempts.load(Ordering::Relaxed), 0);
        assert!(used_descriptors().is_some_and(|used| used > 2));
    }
}
