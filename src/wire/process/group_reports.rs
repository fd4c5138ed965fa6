use std::collections::BTreeSet;
use std::io::{self, Write};

/// The process groups of the children, and which of them the guard was told of.
///
/// Holds the difference between both, and no queue of messages: its size depends on the number of groups only, however
/// long the guard reads nothing.
#[derive(Debug, Default)]
pub(super) struct GroupReports {
    groups: BTreeSet<u32>,
    reported: BTreeSet<u32>,
    /// The groups that are in exactly one of both sets.
    unsent: BTreeSet<u32>,
    /// The line with the prefix of all marks, until it is written.
    unsent_prefix: Option<String>,
}

impl GroupReports {
    /// Begins again for a new guard, which knows nothing.
    pub(super) fn begin(&mut self, mark_prefix: &str) {
        self.reported.clear();
        self.unsent = self.groups.clone();
        self.unsent_prefix = Some(format!("={mark_prefix}\n"));
    }

    pub(super) fn add(&mut self, group: u32) {
        self.groups.insert(group);
        self.update_unsent(group);
    }

    pub(super) fn remove(&mut self, group: u32) {
        self.groups.remove(&group);
        self.update_unsent(group);
    }

    /// Returns true if the guard was told of every change.
    #[cfg(test)]
    pub(super) fn is_complete(&self) -> bool {
        self.unsent.is_empty() && self.unsent_prefix.is_none()
    }

    /// Writes what the guard does not know yet, up to the first error. `pipe` must write a line as a whole or not at
    /// all, as pipes do.
    pub(super) fn write_to(&mut self, mut pipe: impl Write) -> io::Result<()> {
        if let Some(line) = &self.unsent_prefix {
            pipe.write_all(line.as_bytes())?;
            self.unsent_prefix = None;
        }
        while let Some(group) = self.unsent.first().copied() {
            let is_added = self.groups.contains(&group);
            let sign = if is_added { '+' } else { '-' };
            pipe.write_all(format!("{sign}{group}\n").as_bytes())?;
            self.unsent.remove(&group);
            if is_added {
                self.reported.insert(group);
            } else {
                self.reported.remove(&group);
            }
        }
        Ok(())
    }

    fn update_unsent(&mut self, group: u32) {
        if self.groups.contains(&group) == self.reported.contains(&group) {
            self.unsent.remove(&group);
        } else {
            self.unsent.insert(group);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A pipe with room for some lines.
    struct FullPipe {
        room: usize,
        text: String,
    }

    impl Write for FullPipe {
        fn write(&mut self, line: &[u8]) -> io::Result<usize> {
            self.room = self.room.checked_sub(1).ok_or(io::ErrorKind::WouldBlock)?;
            self.text.push_str(std::str::from_utf8(line).unwrap());
            Ok(line.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn write(reports: &mut GroupReports, room: usize) -> String {
        let mut pipe = FullPipe { room, text: String::new() };
        let written = reports.write_to(&mut pipe);
        assert_eq!(written.is_ok(), reports.is_complete());
        pipe.text.replace('\n', " ")
    }

    #[test]
    fn guard_that_reads_late_gets_every_group_and_no_outdated_line() {
        let mut reports = GroupReports::default();
        reports.add(1);
        reports.begin("m/");
        assert_eq!(write(&mut reports, 9), "=m/ +1 ");
        for group in 2..6 {
            reports.add(group);
        }
        assert_eq!(write(&mut reports, 1), "+2 ");
        // Groups that began and ended meanwhile are not reported.
        for group in 3..5 {
            reports.remove(group);
        }
        reports.remove(1);
        assert_eq!(write(&mut reports, 9), "-1 +5 ");
        // The number of a group that ended is used again before its end is reported.
        reports.remove(2);
        reports.add(2);
        assert_eq!(write(&mut reports, 9), "");
        reports.begin("m/");
        assert_eq!(write(&mut reports, 0), "");
        assert_eq!(write(&mut reports, 9), "=m/ +2 +5 ");
    }

    #[test]
    fn memory_is_bounded_while_the_guard_reads_nothing() {
        let mut reports = GroupReports::default();
        for group in 0..1_000 {
            reports.add(group);
            reports.remove(group);
        }
        assert!(reports.unsent.is_empty() && reports.is_complete());
    }
}
