//! Tracks how long a tree that was missing counts as returning: it may return piece by piece, and a part that has not
//! arrived yet was not removed. Pure: the time is passed in.

use std::time::Duration;

use tokio::time::Instant;

/// A tree that was missing is complete if nothing in it has changed for this long.
pub const SETTLE_PERIOD: Duration = Duration::from_secs(10);

/// The state of a tree that was missing a moment ago.
#[derive(Debug, Default)]
pub struct RootAbsence {
    /// The last observed version, and the time since which it is the same.
    last: Option<(u64, Instant)>,
}

impl RootAbsence {
    /// Records that the tree is missing although some of its objects are in force.
    pub fn record(&mut self, version: u64, now: Instant) {
        self.last = Some((version, now));
    }

    /// Records that the tree was read at this `version`; `complete` if nothing is known to be missing. Returns true if
    /// a part may still be returning.
    pub fn update(&mut self, version: u64, now: Instant, complete: bool) -> bool {
        self.last = match self.last {
            Some((last, since)) if !complete && (last != version || now < since + SETTLE_PERIOD) => {
                Some(if last == version { (last, since) } else { (version, now) })
            }
            _ => None,
        };
        self.last.is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn absence_ends_when_nothing_changes_or_the_tree_is_complete() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut absence = RootAbsence::default();
        assert!(!absence.update(1, at(0), false), "it was never missing");
        absence.record(1, at(0));
        for (seconds, version, ongoing) in
            [(1, 2, true), (10, 2, true), (10, 3, true), (19, 3, true), (20, 3, false), (21, 4, false)]
        {
            assert_eq!(absence.update(version, at(seconds), false), ongoing, "{seconds} s, {version}");
        }
        absence.record(4, at(30));
        assert!(!absence.update(5, at(31), true));
        assert!(!absence.update(6, at(32), false));
    }
}
