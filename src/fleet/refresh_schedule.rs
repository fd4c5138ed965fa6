//! When a list that changed is read again: at once the first time, then less and less often while its server keeps
//! on saying so. No notice is lost, only put off.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::time::Instant;

use crate::net::{Backoff, Delays};
use crate::wire::ListKind;

/// Shortest and longest pause between two readings of one list.
const PAUSE: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));
/// Shortest and longest wait before a list that could not be read is read again.
const FAILED: Delays = Delays { initial: Duration::from_secs(1), max: Duration::from_mins(5) };

/// The lists of one connection that are to be read again. Costs nothing until a list changes.
#[derive(Debug, Default)]
pub(super) struct RefreshSchedule(BTreeMap<ListKind, Pages>);

/// One list.
#[derive(Debug, Default)]
struct Pages {
    wanted: Option<Wanted>,
    /// The end of the last reading, and how long after it the next may begin.
    read: Option<(Instant, Duration)>,
    failures: Backoff,
    /// When a list that could not be read may be read again.
    retry_at: Option<Instant>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wanted {
    /// The server says that it changed.
    Told,
    /// Somebody asks: that does not wait.
    Asked,
}

impl RefreshSchedule {
    /// The server says that a list changed.
    pub(super) fn told(&mut self, list: ListKind) {
        self.0.entry(list).or_default().wanted.get_or_insert(Wanted::Told);
    }

    /// A person wants a list to be read again.
    pub(super) fn asked(&mut self, list: ListKind) {
        self.0.entry(list).or_default().wanted = Some(Wanted::Asked);
    }

    /// From when on there is a list to read; `None` if none is wanted.
    pub(super) fn due(&self, now: Instant) -> Option<Instant> {
        self.0.values().filter_map(|pages| pages.due(now)).min()
    }

    /// A list to read now. Its end is told by [`RefreshSchedule::was_read`].
    pub(super) fn take(&mut self, now: Instant) -> Option<ListKind> {
        let (list, pages) =
            self.0.iter_mut().find(|(_, pages)| pages.due(now).is_some_and(|due| due <= now))?;
        let asked = pages.wanted.take() == Some(Wanted::Asked);
        if let Some((end, pause)) = &mut pages.read {
            let quiet = now >= *end + *pause * 2;
            *pause = match (quiet, asked) {
                (true, _) => PAUSE.0,
                (false, true) => *pause,
                (false, false) => (*pause * 2).min(PAUSE.1),
            };
        }
        Some(*list)
    }

    /// A list could not be read: it is read again, less and less often while that goes on.
    pub(super) fn failed(&mut self, list: ListKind, now: Instant, jitter: f64) {
        let pages = self.0.entry(list).or_default();
        pages.wanted.get_or_insert(Wanted::Told);
        pages.retry_at = Some(now + pages.failures.fail(FAILED, jitter, None));
    }

    /// A list was read.
    pub(super) fn was_read(&mut self, list: ListKind, now: Instant) {
        let pages = self.0.entry(list).or_default();
        pages.failures.reset();
        pages.retry_at = None;
        pages.read = Some((now, pages.read.map_or(PAUSE.0, |(_, pause)| pause)));
    }
}

impl Pages {
    fn due(&self, now: Instant) -> Option<Instant> {
        Some(match (self.wanted?, self.read) {
            (Wanted::Told, Some((end, pause))) => self.retry_at.unwrap_or(end + pause),
            (Wanted::Told, None) => self.retry_at.unwrap_or(now),
            (Wanted::Asked, _) => now,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// When a list is read whose server says at these times that it changed, each reading taking 10 ms; all in
    /// milliseconds.
    fn readings(notices: &[u64]) -> Vec<u64> {
        let (start, mut pace, mut readings) = (Instant::now(), RefreshSchedule::default(), Vec::<u64>::new());
        for ms in 0..60_000 {
            let now = start + Duration::from_millis(ms);
            if notices.binary_search(&ms).is_ok() {
                pace.told(ListKind::Tools);
            }
            match readings.last().copied() {
                Some(begun) if ms < begun + 10 => continue,
                Some(begun) if ms == begun + 10 => pace.was_read(ListKind::Tools, now),
                _ => {}
            }
            readings.extend(pace.take(now).map(|_| ms));
        }
        readings
    }

    #[test]
    fn a_list_is_read_at_once_and_then_less_often_while_notices_come() {
        for (notices, expected) in [
            (vec![0], vec![0]),
            // A second change soon after the first is put off, not lost; so is one within the reading.
            (vec![0, 5], vec![0, 110]),
            (vec![0, 50, 60, 70], vec![0, 110]),
            (vec![0, 50, 150], vec![0, 110, 320]),
            // One that changes now and then is read each time.
            (vec![0, 1_000, 2_000, 3_000], vec![0, 1_000, 2_000, 3_000]),
            // After a quiet time the pause is short again.
            (vec![0, 50, 150, 350, 3_000, 3_005], vec![0, 110, 320, 730, 3_000, 3_110]),
        ] {
            assert_eq!(readings(&notices), expected, "{notices:?}");
        }
        // Every 2 ms for half a minute.
        let notices: Vec<_> = (0..15_000).map(|number| number * 2).collect();
        let flood = readings(&notices);
        let pauses: Vec<_> = flood.windows(2).map(|pair| pair[1] - pair[0]).collect();
        assert_eq!(pauses, [110, 210, 410, 810, 1_610, 3_210, 5_010, 5_010, 5_010, 5_010, 5_010]);
        assert!(flood.last() >= notices.last(), "the last notice is acted on");
    }

    #[test]
    fn a_list_that_cannot_be_read_is_read_less_and_less_often() {
        let (start, mut pace, mut now) = (Instant::now(), RefreshSchedule::default(), Instant::now());
        let mut readings = Vec::new();
        for _ in 0..12 {
            pace.failed(ListKind::Prompts, now, 0.0);
            // A notice in between changes nothing.
            pace.told(ListKind::Prompts);
            now = pace.due(now).unwrap();
            readings.push(now.duration_since(start).as_secs());
            assert_eq!(pace.take(now), Some(ListKind::Prompts));
        }
        assert_eq!(readings, [1, 3, 7, 15, 31, 63, 127, 255, 511, 811, 1111, 1411]);
        pace.was_read(ListKind::Prompts, now);
        pace.told(ListKind::Prompts);
        assert_eq!(pace.due(now), Some(now + PAUSE.0));
    }

    #[test]
    fn who_asks_does_not_wait() {
        let (now, mut pace) = (Instant::now(), RefreshSchedule::default());
        pace.was_read(ListKind::Tools, now);
        pace.told(ListKind::Tools);
        assert_eq!((pace.take(now), pace.due(now)), (None, Some(now + PAUSE.0)));
        pace.asked(ListKind::Tools);
        pace.told(ListKind::Tools);
        pace.asked(ListKind::Prompts);
        assert_eq!(
            [pace.take(now), pace.take(now), pace.take(now)],
            [Some(ListKind::Tools), Some(ListKind::Prompts), None]
        );
    }
}
