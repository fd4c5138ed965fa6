//! Whether somebody else writes the statuses that are ours to write. Pure.

use std::collections::HashMap;
use std::time::Duration;

use tokio::time::Instant;

use crate::resource::ObjectKey;

/// So often a status may be written over before that is a habit: a person may try something.
const TRIES: u32 = 3;
/// The longest time before such a status is written again.
const LONGEST: Duration = Duration::from_mins(1);
/// After so long a time without it, it is over.
const CALM: Duration = Duration::from_mins(5);

/// The statuses that were written over.
#[derive(Default)]
pub(super) struct WriteConflicts {
    known: HashMap<ObjectKey, WriteConflict>,
    told: bool,
}

struct WriteConflict {
    times: u32,
    /// Of the object as somebody else left it.
    version: u64,
    last: Instant,
}

impl WriteConflicts {
    /// Takes note that an object shows what somebody else wrote, in this version of it. True if that is to be told:
    /// once, when it has become a habit.
    pub fn lost(&mut self, key: &ObjectKey, version: u64, now: Instant) -> bool {
        let contest =
            self.known.entry(key.clone()).or_insert(WriteConflict { times: 0, version: 0, last: now });
        if contest.version == version {
            return false;
        }
        let over = now - contest.last > CALM;
        *contest = WriteConflict { times: if over { 1 } else { contest.times + 1 }, version, last: now };
        let tell = !self.told && contest.times >= TRIES;
        self.told |= tell;
        tell
    }

    /// How long after our last write the next one has to wait.
    pub fn pause(&self, key: &ObjectKey, now: Instant) -> Duration {
        match self.known.get(key) {
            Some(WriteConflict { times: times @ TRIES.., last, .. }) if now - *last <= CALM => {
                Duration::from_secs(1 << (times - TRIES + 1).min(6)).min(LONGEST)
            }
            _ => Duration::ZERO,
        }
    }

    /// The object is gone.
    pub fn forget(&mut self, key: &ObjectKey) {
        self.known.remove(key);
    }

    /// Somebody else was to write meanwhile.
    pub fn clear(&mut self) {
        self.known.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_that_is_written_over_is_written_less_and_less_often_and_told_once() {
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
            assert_eq!(contests.lost(key, version, at(second)), tells, "{key} {version}");
            assert_eq!(contests.pause(key, at(second)), Duration::from_secs(pause), "{key} {version}");
        }
        assert_eq!(contests.pause(&other, at(400)), Duration::ZERO, "it is over");
        contests.forget(&one);
        assert_eq!(contests.known.len(), 1);
    }
}
