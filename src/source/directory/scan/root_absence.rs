//! How long a tree that was away counts as still coming back: it may do so piece by piece, and what has not arrived
//! yet was not taken away. Pure: time is passed in.

use std::time::Duration;

use tokio::time::Instant;

/// A tree that was away is back when nothing in it has changed for this long.
pub const SETTLE_PERIOD: Duration = Duration::from_secs(10);

/// Whether the tree was away a moment ago.
#[derive(Debug, Default)]
pub struct RootAbsence {
    /// What was seen last, as a number, and when it was first seen so.
    last: Option<(u64, Instant)>,
}

impl RootAbsence {
    /// The tree is away, though something of it is in force.
    pub fn record(&mut self, version: u64, now: Instant) {
        self.last = Some((version, now));
    }

    /// The tree is seen, as `version` says; `whole` if it is known that nothing is missing. Gives whether something
    /// may still be on its way.
    pub fn update(&mut self, version: u64, now: Instant, whole: bool) -> bool {
        self.last = match self.last {
            Some((last, since)) if !whole && (last != version || now < since + SETTLE_PERIOD) => {
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
        assert!(!absence.update(1, at(0), false), "it was never away");
        absence.record(1, at(0));
        for (seconds, version, lasts) in
            [(1, 2, true), (10, 2, true), (10, 3, true), (19, 3, true), (20, 3, false), (21, 4, false)]
        {
            assert_eq!(absence.update(version, at(seconds), false), lasts, "{seconds} s, {version}");
        }
        absence.record(4, at(30));
        assert!(!absence.update(5, at(31), true));
        assert!(!absence.update(6, at(32), false));
    }
}
