//! Decides whether removals are held: because everything would be removed, or because the tree was missing and may
//! still be returning. Pure: the time is passed in.

use std::path::Path;

use tokio::time::Instant;

use super::root_absence::{RootAbsence, SETTLE_PERIOD};
use crate::source::parse::display_path;

/// The findings of a scan that show whether removals are intended.
#[derive(Clone, Copy, Debug, Default)]
pub struct RemovalEvidence {
    /// True if objects are declared and none would be left.
    pub emptied: bool,
    /// True if the checked-out commit differs from the last one at which a file existed.
    pub new_commit: bool,
    /// True if the files are exactly those of the checked-out commit.
    pub clean: bool,
    /// A number that differs whenever the observed content differs.
    pub version: u64,
}

/// The state that decides whether removals are held.
#[derive(Debug, Default)]
pub struct RemovalHold {
    absence: RootAbsence,
    /// True if an empty directory is always intended.
    prune_empty: bool,
    /// True if a person confirmed the held removal.
    confirmed: bool,
}

impl RemovalHold {
    /// Creates a hold that is not active. With `prune_empty`, an empty directory is never held.
    pub fn new(prune_empty: bool) -> Self {
        Self { prune_empty, ..Self::default() }
    }

    /// Records that the tree is missing although some of its objects are in force.
    pub fn record_absence(&mut self, version: u64, now: Instant) {
        self.absence.record(version, now);
    }

    /// Confirms that the removal is intended.
    pub fn confirm(&mut self) {
        self.confirmed = true;
    }

    /// True if a person confirmed the removal and the tree is still empty.
    pub fn is_confirmed(&self) -> bool {
        self.confirmed
    }

    /// True if nothing may be removed, because everything would be, or because the missing part may be returning.
    pub fn should_hold(&mut self, evidence: RemovalEvidence, now: Instant) -> bool {
        let RemovalEvidence { emptied, new_commit: committed, clean, version } = evidence;
        let unintended = emptied && !committed && !self.confirmed && !self.prune_empty;
        let returning = self.absence.update(version, now, self.confirmed || clean);
        if returning && unintended {
            // A root that is created again is empty at first.
            self.absence.record(version, now);
        }
        // A confirmation applies to one removal only.
        self.confirmed &= emptied;
        unintended || returning
    }
}

/// Returns the message about the held removal of `root`: `empty` if no file exists, `ambiguous` if no file is
/// recognized.
pub fn held_message(root: &Path, empty: bool, ambiguous: bool) -> String {
    let root = display_path(root);
    let prune = "run evenkeel mcp reload --prune-empty";
    if empty {
        return format!(
            "all declaration files of {root} are gone; nothing is removed. If this is intended, commit the deletion, \
             keep one file without objects, or {prune}"
        );
    }
    if ambiguous {
        return format!(
            "the files of {root} that declared objects are gone, and the remaining files are not recognized; nothing \
             is removed. If this is intended, commit the deletion, keep one file without objects, or {prune}"
        );
    }
    format!(
        "{root} was missing and came back without some of its files; their objects are kept until no file has \
         changed for {} s. To remove them now, {prune}",
        SETTLE_PERIOD.as_secs()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn emptied_directory_is_held_until_the_removal_is_intended() {
        let now = Instant::now();
        let evidence = |emptied, committed| RemovalEvidence {
            emptied,
            new_commit: committed,
            ..RemovalEvidence::default()
        };
        for (emptied, committed, prune_empty, confirmed, holds) in [
            (false, false, false, false, false),
            (true, false, false, false, true),
            (true, true, false, false, false),
            (true, false, true, false, false),
            (true, false, false, true, false),
        ] {
            let mut hold = RemovalHold::new(prune_empty);
            if confirmed {
                hold.confirm();
            }
            let case = format!("{emptied} {committed} {prune_empty} {confirmed}");
            assert_eq!(hold.should_hold(evidence(emptied, committed), now), holds, "{case}");
        }
        let mut hold = RemovalHold::default();
        hold.confirm();
        assert!(!hold.should_hold(evidence(true, false), now));
        assert!(!hold.should_hold(evidence(false, false), now));
        assert!(
            hold.should_hold(evidence(true, false), now),
            "the confirmation applied to the earlier removal"
        );
    }

    #[test]
    fn removals_are_held_while_the_tree_returns() {
        let now = Instant::now();
        for (clean, holds) in [(false, true), (true, false)] {
            let mut hold = RemovalHold::default();
            hold.record_absence(1, now);
            assert_eq!(
                hold.should_hold(RemovalEvidence { clean, version: 2, ..RemovalEvidence::default() }, now),
                holds
            );
            assert!(
                !hold.should_hold(
                    RemovalEvidence { version: 2, ..RemovalEvidence::default() },
                    now + SETTLE_PERIOD
                ),
                "clean: {clean}"
            );
        }
    }
}
