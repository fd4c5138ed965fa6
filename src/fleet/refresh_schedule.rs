//! When a list that changed is read again: at once the first time, then less and less often while its server keeps
//! on saying so. No notice is lost, only put off.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::time::Instant;

use crate::net::{Backoff, Delays};
use crate::wire::ListKind;

/// Shortest and longest pause between two readings of one list.
const REFRESH_DELAY: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));
/// Shortest and longest wait before a list that could not be read is read again.
const RETRY_DELAYS: Delays = Delays { initial: Duration::from_secs(1), max: Duration::from_mins(5) };

/// The lists of one connection that are to be read again. Costs nothing until a list changes.
#[derive(Debug, Default)]
pub(super) struct RefreshSchedule(BTreeMap<ListKind, ListSchedule>);

/// One list.
#[derive(Debug, Default)]
struct ListSchedule {
    pending: Option<RefreshCause>,
    /// The end of the last reading, and how long after it the next may begin.
    last_read: Option<(Instant, Duration)>,
    backoff: Backoff,
    /// When a list that could not be read may be read again.
    retry_at: Option<Instant>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum RefreshCause {
    /// The server says that it changed.
    Notification,
    /// Somebody asks: that does not wait.
    Requested,
}

impl RefreshSchedule {
    /// The server says that a list changed.
    pub(super) fn mark_changed(&mut self, list: ListKind) {
        self.0.entry(list).or_default().pending.get_or_insert(RefreshCause::Notification);
    }

    /// A person wants a list to be read again.
    pub(super) fn request_now(&mut self, list: ListKind) {
        self.0.entry(list).or_default().pending = Some(RefreshCause::Requested);
    }

    /// From when on there is a list to read; `None` if none is wanted.
    pub(super) fn next_refresh_at(&self, now: Instant) -> Option<Instant> {
        self.0.values().filter_map(|pages| pages.next_read_at(now)).min()
    }

    /// A list to read now. Its end is told by [`RefreshSchedule::was_read`].
    pub(super) fn take_due(&mut self, now: Instant) -> Option<ListKind> {
        let (list, pages) =
            self.0.iter_mut().find(|(_, pages)| pages.next_read_at(now).is_some_and(|due| due <= now))?;
        let asked = pages.pending.take() == Some(RefreshCause::Requested);
        if let Some((end, pause)) = &mut pages.last_read {
            let quiet = now >= *end + *pause * 2;
            *pause = match (quiet, asked) {
                (true, _) => REFRESH_DELAY.0,
                (false, true) => *pause,
                (false, false) => (*pause * 2).min(REFRESH_DELAY.1),
            };
        }
        Some(*list)
    }

    /// A list could not be read: it is read again, less and less often while that goes on.
    pub(super) fn record_failure(&mut self, list: ListKind, now: Instant, jitter: f64) {
        let pages = self.0.entry(list).or_default();
        pages.pending.get_or_insert(RefreshCause::Notification);
        pages.retry_at = Some(now + pages.backoff.record_failure(RETRY_DELAYS, jitter, None));
    }

    /// A list was read.
    pub(super) fn record_read(&mut self, list: ListKind, now: Instant) {
        let pages = self.0.entry(list).or_default();
        pages.backoff.reset();
        pages.retry_at = None;
        pages.last_read = Some((now, pages.last_read.map_or(REFRESH_DELAY.0, |(_, pause)| pause)));
    }
}

impl ListSchedule {
    fn next_read_at(&self, now: Instant) -> Option<Instant> {
        Some(match (self.pending?, self.last_read) {
            (RefreshCause::Notification, Some((end, pause))) => self.retry_at.unwrap_or(end + pause),
            (RefreshCause::Notification, None) => self.retry_at.unwrap_or(now),
            (RefreshCause::Requested, _) => now,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// When a list is read whose server says at these times that it changed, each reading taking 10 ms; all in
    /// milliseconds.
    fn read_times(notices: &[u64]) -> Vec<u64> {
        let (start, mut pace, mut readings) = (Instant::now(), RefreshSchedule::default(), Vec::<u64>::new());
        for ms in 0..60_000 {
            let now = start + Duration::from_millis(ms);
            if notices.binary_search(&ms).is_ok() {
                pace.mark_changed(ListKind::Tools);
            }
            match readings.last().copied() {
                Some(begun) if ms < begun + 10 => continue,
                Some(begun) if ms == begun + 10 => pace.record_read(ListKind::Tools, now),
                _ => {}
            }
            readings.extend(pace.take_due(now).map(|_| ms));
        }
        readings
    }

    #[test]
    fn frequent_notifications_increase_the_refresh_delay() {
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
            assert_eq!(read_times(&notices), expected, "{notices:?}");
        }
        // Every 2 ms for half a minute.
        let notices: Vec<_> = (0..15_000).map(|number| number * 2).collect();
        let flood = read_times(&notices);
        let pauses: Vec<_> = flood.windows(2).map(|pair| pair[1] - pair[0]).collect();
        assert_eq!(pauses, [110, 210, 410, 810, 1_610, 3_210, 5_010, 5_010, 5_010, 5_010, 5_010]);
        assert!(flood.last() >= notices.last(), "the last notice is acted on");
    }

    #[test]
    fn failed_reads_back_off() {
        let (start, mut pace, mut now) = (Instant::now(), RefreshSchedule::default(), Instant::now());
        let mut readings = Vec::new();
        for _ in 0..12 {
            pace.record_failure(ListKind::Prompts, now, 0.0);
            // A notice in between changes nothing.
            pace.mark_changed(ListKind::Prompts);
            now = pace.next_refresh_at(now).unwrap();
            readings.push(now.duration_since(start).as_secs());
            assert_eq!(pace.take_due(now), Some(ListKind::Prompts));
        }
        assert_eq!(readings, [1, 3, 7, 15, 31, 63, 127, 255, 511, 811, 1111, 1411]);
        pace.record_read(ListKind::Prompts, now);
        pace.mark_changed(ListKind::Prompts);
        assert_eq!(pace.next_refresh_at(now), Some(now + REFRESH_DELAY.0));
    }

    #[test]
    fn requested_refresh_ignores_the_delay() {
        let (now, mut pace) = (Instant::now(), RefreshSchedule::default());
        pace.record_read(ListKind::Tools, now);
        pace.mark_changed(ListKind::Tools);
        assert_eq!((pace.take_due(now), pace.next_refresh_at(now)), (None, Some(now + REFRESH_DELAY.0)));
        pace.request_now(ListKind::Tools);
        pace.mark_changed(ListKind::Tools);
        pace.request_now(ListKind::Prompts);
        assert_eq!(
            [pace.take_due(now), pace.take_due(now), pace.take_due(now)],
            [Some(ListKind::Tools), Some(ListKind::Prompts), None]
        );
    }
}
