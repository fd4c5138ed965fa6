//! Whether removals are held back: because everything would be gone, or because the tree was away and may still be
//! coming back. Pure: time is passed in.

use std::path::Path;

use tokio::time::Instant;

use super::root_absence::{RootAbsence, SETTLE_PERIOD};
use crate::source::parse::display_path;

/// What a look has found, as far as it says whether removals are meant.
#[derive(Clone, Copy, Debug, Default)]
pub struct RemovalEvidence {
    /// Something is declared, and nothing would be.
    pub emptied: bool,
    /// Another commit is checked out than when some file was last there.
    pub new_commit: bool,
    /// The files are exactly those of the commit that is checked out.
    pub clean: bool,
    /// Differs whenever something else was seen.
    pub version: u64,
}

/// What holds removals back.
#[derive(Debug, Default)]
pub struct RemovalHold {
    absence: RootAbsence,
    /// An empty directory is always meant.
    prune_empty: bool,
    /// Somebody said that the emptiness which is held back is meant.
    confirmed: bool,
}

impl RemovalHold {
    /// Holds nothing back yet; an empty directory never if `prune_empty`.
    pub fn new(prune_empty: bool) -> Self {
        Self { prune_empty, ..Self::default() }
    }

    /// Takes note that the tree is away, though something of it is in force.
    pub fn record_absence(&mut self, version: u64, now: Instant) {
        self.absence.record(version, now);
    }

    /// Takes the word of a person that the emptiness is meant.
    pub fn confirm(&mut self) {
        self.confirmed = true;
    }

    /// Whether a person said so, and the tree is still empty.
    pub fn is_confirmed(&self) -> bool {
        self.confirmed
    }

    /// Whether nothing may be taken away, because all of it would be, or because it may be on its way back.
    pub fn should_hold(&mut self, evidence: RemovalEvidence, now: Instant) -> bool {
        let RemovalEvidence { emptied, new_commit: committed, clean, version } = evidence;
        let unmeant = emptied && !committed && !self.confirmed && !self.prune_empty;
        let away = self.absence.update(version, now, self.confirmed || clean);
        if away && unmeant {
            // A root that is made anew is empty at first.
            self.absence.record(version, now);
        }
        // One word is about one emptiness.
        self.confirmed &= emptied;
        unmeant || away
    }
}

/// What is held back of `root`, for a person: `empty` if no file is there, `unclear` if none that is understood.
pub fn held_message(root: &Path, empty: bool, unclear: bool) -> String {
    let root = display_path(root);
    let prune = "say evenkeel mcp reload --prune-empty";
    if empty {
        return format!(
            "the last files of {root} are gone; nothing is taken away. If that is meant, commit it, leave one \
             file that holds no objects, or {prune}"
        );
    }
    if unclear {
        return format!(
            "the files of {root} that declared something are gone, and what is left is not understood; nothing is \
             taken away. If that is meant, commit it, leave one file that holds no objects, or {prune}"
        );
    }
    format!(
        "{root} was away and came back without some of its files: they are waited for until nothing more has \
         come for {} s. If they are meant to be gone, {prune}",
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
        assert!(hold.should_hold(evidence(true, false), now), "the word was about the emptiness before");
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
