//! Detects other writers of the statuses that evenkeel writes. Pure functions.

use std::collections::HashMap;
use std::time::Duration;

use tokio::time::Instant;

use crate::resource::ObjectKey;

/// The number of overwrites at which a conflict is assumed. Fewer may be manual edits.
const MIN_CONFLICTS: u32 = 3;
/// The maximum delay before an overwritten status is written again.
const MAX_WRITE_DELAY: Duration = Duration::from_mins(1);
/// The time without an overwrite after which a conflict is over.
const CONFLICT_EXPIRY: Duration = Duration::from_mins(5);

/// The statuses that were overwritten.
#[derive(Default)]
pub(super) struct WriteConflicts {
    by_object: HashMap<ObjectKey, WriteConflict>,
    warned: bool,
}

/// The overwrites of one status.
struct WriteConflict {
    count: u32,
    /// The resource version of the object after the last overwrite.
    resource_version: u64,
    last_at: Instant,
}

impl WriteConflicts {
    /// Records that another writer has overwritten a status, in this resource version of the object. True if a warning
    /// is to be logged: once, when overwrites repeat.
    pub fn record_overwrite(&mut self, key: &ObjectKey, resource_version: u64, now: Instant) -> bool {
        let conflict = self.by_object.entry(key.clone()).or_insert(WriteConflict {
            count: 0,
            resource_version: 0,
            last_at: now,
        });
        if conflict.resource_version == resource_version {
            return false;
        }
        let is_expired = now - conflict.last_at > CONFLICT_EXPIRY;
        *conflict = WriteConflict {
            count: if is_expired { 1 } else { conflict.count + 1 },
            resource_version,
            last_at: now,
        };
        let warn = !self.warned && conflict.count >= MIN_CONFLICTS;
        self.warned |= warn;
        warn
    }

    /// Returns the minimum time between our last write and the next one.
    pub fn write_delay(&self, key: &ObjectKey, now: Instant) -> Duration {
        match self.by_object.get(key) {
            Some(WriteConflict { count: count @ MIN_CONFLICTS.., last_at, .. })
                if now - *last_at <= CONFLICT_EXPIRY =>
            {
                Duration::from_secs(1 << (count - MIN_CONFLICTS + 1).min(6)).min(MAX_WRITE_DELAY)
            }
            _ => Duration::ZERO,
        }
    }

    /// Removes an object that no longer exists.
    pub fn remove(&mut self, key: &ObjectKey) {
        self.by_object.remove(key);
    }

    /// Removes all records, because another replica was the leader meanwhile.
    pub fn clear(&mut self) {
        self.by_object.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn overwritten_status_is_written_less_often_and_logged_once() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let [one, other] = ["a", "b"].map(|name| ObjectKey::new("n", name));
        let mut conflicts = WriteConflicts::default();
        for (key, version, second, warns, delay) in [
            (&one, 1, 0, false, 0),
            (&one, 1, 1, false, 0),
            (&one, 2, 1, false, 0),
            (&one, 3, 2, true, 2),
            (&one, 4, 4, false, 4),
            (&other, 5, 5, false, 0),
            (&other, 6, 5, false, 0),
            (&other, 7, 5, false, 2),
            (&one, 8, 6, false, 8),
            (&one, 9, 7, false, 16),
            (&one, 10, 8, false, 32),
            (&one, 11, 9, false, 60),
            (&one, 12, 10, false, 60),
            (&one, 13, 400, false, 0),
        ] {
            assert_eq!(conflicts.record_overwrite(key, version, at(second)), warns, "{key} {version}");
            assert_eq!(conflicts.write_delay(key, at(second)), Duration::from_secs(delay), "{key} {version}");
        }
        assert_eq!(conflicts.write_delay(&other, at(400)), Duration::ZERO, "the conflict is over");
        conflicts.remove(&one);
        assert_eq!(conflicts.by_object.len(), 1);
    }
}
