use std::collections::VecDeque;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

use crate::report::StatusSnapshot;

/// The maximum number of snapshots kept.
const MAX_SNAPSHOTS: usize = 256;
/// The time for which snapshots are kept.
const MAX_SNAPSHOT_AGE: Duration = Duration::from_mins(2);

/// The snapshots that clients received lately, from which they can resume: the next page of a list, a watch after a
/// list.
///
/// Snapshots share unchanged objects, so each costs only the changes since the one before.
#[derive(Debug, Default)]
pub(super) struct SnapshotHistory {
    snapshots: Mutex<VecDeque<(Instant, StatusSnapshot)>>,
}

impl SnapshotHistory {
    /// Records a snapshot that a client receives.
    pub fn record(&self, snapshot: &StatusSnapshot) {
        let now = Instant::now();
        let mut snapshots = self.snapshots.lock();
        while snapshots.front().is_some_and(|(at, _)| now.duration_since(*at) > MAX_SNAPSHOT_AGE)
            || snapshots.len() >= MAX_SNAPSHOTS
        {
            snapshots.pop_front();
        }
        match snapshots.back_mut() {
            Some((at, last)) if last.resource_version == snapshot.resource_version => *at = now,
            Some((_, last)) if last.resource_version > snapshot.resource_version => {}
            _ => snapshots.push_back((now, snapshot.clone())),
        }
    }

    /// Returns the newest recorded snapshot that is not newer than a version; `None` if none is kept.
    pub fn at_or_before(&self, version: u64) -> Option<StatusSnapshot> {
        let snapshots = self.snapshots.lock();
        let found = snapshots.iter().rev().find(|(_, snapshot)| snapshot.resource_version <= version);
        found.map(|(_, snapshot)| snapshot.clone())
    }
}

#[cfg(test)]
mod tests {

    use super::*;
    use crate::report::Reporter;
    use crate::resource::testing::{at, source_id};

    #[tokio::test(start_paused = true)]
    async fn snapshots_are_kept_for_a_bounded_time() {
        let (_, store) = Reporter::new(source_id(), at(0));
        let snapshot = |version| StatusSnapshot { resource_version: version, ..store.borrow().clone() };
        let since = |history: &SnapshotHistory, version| {
            history.at_or_before(version).map(|snapshot| snapshot.resource_version)
        };
        let history = SnapshotHistory::default();
        assert_eq!(since(&history, 9), None);
        for version in [3, 5, 4, 5] {
            history.record(&snapshot(version));
        }
        assert_eq!(
            [2, 3, 4, 5, 9].map(|version| since(&history, version)),
            [None, Some(3), Some(3), Some(5), Some(5)]
        );
        tokio::time::advance(MAX_SNAPSHOT_AGE * 2).await;
        history.record(&snapshot(7));
        assert_eq!([5, 7].map(|version| since(&history, version)), [None, Some(7)]);
        for version in 0..MAX_SNAPSHOTS as u64 * 2 {
            history.record(&snapshot(10 + version));
        }
        assert_eq!(since(&history, 10), None);
    }
}
