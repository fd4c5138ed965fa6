//! Whether somebody else writes the statuses that are ours to write. Pure.

use std::collections::HashMap;
use std::time::Duration;

use tokio::time::Instant;

use crate::resource::ObjectKey;

/// So often a status may be written over before that is a habit: a person may try something.
const MIN_CONFLICTS: u32 = 3;
/// The longest time before such a status is written again.
const MAX_WRITE_DELAY: Duration = Duration::from_mins(1);
/// After so long a time without it, it is over.
const CONFLICT_EXPIRY: Duration = Duration::from_mins(5);

/// The statuses that were written over.
#[derive(Default)]
pub(super) struct WriteConflicts {
    by_object: HashMap<ObjectKey, WriteConflict>,
    warned: bool,
}

struct WriteConflict {
    count: u32,
    /// Of the object as somebody else left it.
    resource_version: u64,
    last_at: Instant,
}

impl WriteConflicts {
    /// Takes note that an object shows what somebody else wrote, in this version of it. True if that is to be told:
    /// once, when it has become a habit.
    pub fn record_overwrite(&mut self, key: &ObjectKey, version: u64, now: Instant) -> bool {
        let contest = self.by_object.entry(key.clone()).or_insert(WriteConflict {
            count: 0,
            resource_version: 0,
            last_at: now,
        });
        if contest.resource_version == version {
            return false;
        }
        let over = now - contest.last_at > CONFLICT_EXPIRY;
        *contest = WriteConflict {
            count: if over { 1 } else { contest.count + 1 },
            resource_version: version,
            last_at: now,
        };
        let tell = !self.warned && contest.count >= MIN_CONFLICTS;
        self.warned |= tell;
        tell
    }

    /// How long after our last write the next one has to wait.
    pub fn write_delay(&self, key: &ObjectKey, now: Instant) -> Duration {
        match self.by_object.get(key) {
            Some(WriteConflict { count: times @ MIN_CONFLICTS.., last_at: last, .. })
                if now - *last <= CONFLICT_EXPIRY =>
            {
                Duration::from_secs(1 << (times - MIN_CONFLICTS + 1).min(6)).min(MAX_WRITE_DELAY)
            }
            _ => Duration::ZERO,
        }
    }

    /// The object is gone.
    pub fn remove(&mut self, key: &ObjectKey) {
        self.by_object.remove(key);
    }

    /// Somebody else was to write meanwhile.
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
        let mut contests = WriteConflicts::default();
        for (key, version, second, tells, pause) in [
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
            assert_eq!(contests.record_overwrite(key, version, at(second)), tells, "{key} {version}");
            assert_eq!(contests.write_delay(key, at(second)), Duration::from_secs(pause), "{key} {version}");
        }
        assert_eq!(contests.write_delay(&other, at(400)), Duration::ZERO, "it is over");
        contests.remove(&one);
        assert_eq!(contests.by_object.len(), 1);
    }
}
