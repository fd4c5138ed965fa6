//! The schedule of list refreshes: a changed list is read at once the first time, then with growing delays while its
//! server keeps sending notifications. No notification is lost, only deferred.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::time::Instant;

use crate::net::{Backoff, Delays};
use crate::wire::ListKind;

/// The shortest delay between two reads of one list.
const MIN_REFRESH_DELAY: Duration = Duration::from_millis(100);
/// The longest delay between two reads of one list.
const MAX_REFRESH_DELAY: Duration = Duration::from_secs(5);
/// The shortest delay between a read of a list and its next check.
const MIN_CHECK_DELAY: Duration = Duration::from_mins(1);
/// The delays before a list that could not be read is read again.
const RETRY_DELAYS: Delays = Delays { initial: Duration::from_secs(1), max: Duration::from_mins(5) };

/// The pending refreshes of one connection's lists. Allocates nothing until a list changes.
#[derive(Clone, Debug, Default)]
pub(super) struct RefreshSchedule(BTreeMap<ListKind, ListSchedule>);

/// The schedule of one list.
#[derive(Clone, Debug, Default)]
struct ListSchedule {
    pending: Option<RefreshCause>,
    /// The end of the last read, and the delay before the next.
    last_read: Option<(Instant, Duration)>,
    backoff: Backoff,
    /// When a list that could not be read may be read again.
    retry_at: Option<Instant>,
}

/// The causes of a refresh, from the least to the most urgent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum RefreshCause {
    /// The list may have changed without a notification.
    Check,
    /// The server sent a list-changed notification.
    Notification,
    /// A user requested a refresh, which is not delayed.
    Requested,
}

impl RefreshSchedule {
    /// Schedules a refresh after a list-changed notification.
    pub(super) fn mark_changed(&mut self, list: ListKind) {
        self.schedule(list, RefreshCause::Notification);
    }

    /// Schedules a refresh because the list may have changed without a notification. It is read at most once a minute
    /// for this cause.
    pub(super) fn check(&mut self, list: ListKind) {
        self.schedule(list, RefreshCause::Check);
    }

    /// Schedules a refresh that a user requested, without a delay.
    pub(super) fn request_now(&mut self, list: ListKind) {
        self.schedule(list, RefreshCause::Requested);
    }

    fn schedule(&mut self, list: ListKind, cause: RefreshCause) {
        let schedule = self.0.entry(list).or_default();
        schedule.pending = schedule.pending.max(Some(cause));
    }

    /// Returns when the next list is to be read; `None` if no refresh is pending.
    pub(super) fn next_refresh_at(&self, now: Instant) -> Option<Instant> {
        self.0.values().filter_map(|schedule| schedule.next_read_at(now)).min()
    }

    /// Takes a list that is due now. Its end is to be recorded with [`RefreshSchedule::record_read`] or
    /// [`RefreshSchedule::record_failure`].
    pub(super) fn take_due(&mut self, now: Instant) -> Option<ListKind> {
        let (list, schedule) = self
            .0
            .iter_mut()
            .find(|(_, schedule)| schedule.next_read_at(now).is_some_and(|due| due <= now))?;
        let requested = schedule.pending.take() == Some(RefreshCause::Requested);
        if let Some((end, delay)) = &mut schedule.last_read {
            // The delay doubles while notifications keep coming, and is reset after a delay of twice the delay.
            let quiet = now >= *end + *delay * 2;
            *delay = match (quiet, requested) {
                (true, _) => MIN_REFRESH_DELAY,
                (false, true) => *delay,
                (false, false) => (*delay * 2).min(MAX_REFRESH_DELAY),
            };
        }
        Some(*list)
    }

    /// Records a failed read, and schedules another with a growing delay.
    pub(super) fn record_failure(&mut self, list: ListKind, now: Instant, jitter: f64) {
        let schedule = self.0.entry(list).or_default();
        schedule.pending = schedule.pending.max(Some(RefreshCause::Notification));
        schedule.retry_at = Some(now + schedule.backoff.record_failure(RETRY_DELAYS, jitter, None));
    }

    /// Records a successful read.
    pub(super) fn record_read(&mut self, list: ListKind, now: Instant) {
        let schedule = self.0.entry(list).or_default();
        schedule.backoff.reset();
        schedule.retry_at = None;
        schedule.last_read = Some((now, schedule.last_read.map_or(MIN_REFRESH_DELAY, |(_, delay)| delay)));
    }
}

impl ListSchedule {
    fn next_read_at(&self, now: Instant) -> Option<Instant> {
        let allowed_at = match (self.pending?, self.last_read) {
            (RefreshCause::Requested, _) => return Some(now),
            (RefreshCause::Notification, Some((end, delay))) => end + delay,
            (RefreshCause::Check, Some((end, _))) => end + MIN_CHECK_DELAY,
            (RefreshCause::Notification | RefreshCause::Check, None) => now,
        };
        Some(self.retry_at.unwrap_or(allowed_at))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns when a list is read whose server sends notifications at these times. Each read takes 10 ms; all times
    /// are in milliseconds.
    fn read_times(notifications: &[u64]) -> Vec<u64> {
        let (start, mut schedule, mut reads) =
            (Instant::now(), RefreshSchedule::default(), Vec::<u64>::new());
        for ms in 0..60_000 {
            let now = start + Duration::from_millis(ms);
            if notifications.binary_search(&ms).is_ok() {
                schedule.mark_changed(ListKind::Tools);
            }
            match reads.last().copied() {
                Some(read_at) if ms < read_at + 10 => continue,
                Some(read_at) if ms == read_at + 10 => schedule.record_read(ListKind::Tools, now),
                _ => {}
            }
            reads.extend(schedule.take_due(now).map(|_| ms));
        }
        reads
    }

    #[test]
    fn frequent_notifications_increase_the_refresh_delay() {
        for (notifications, expected) in [
            (vec![0], vec![0]),
            // A second change soon after the first is deferred, not lost; so is one during the read.
            (vec![0, 5], vec![0, 110]),
            (vec![0, 50, 60, 70], vec![0, 110]),
            (vec![0, 50, 150], vec![0, 110, 320]),
            // A list that changes rarely is read each time.
            (vec![0, 1_000, 2_000, 3_000], vec![0, 1_000, 2_000, 3_000]),
            // After a quiet period the delay is short again.
            (vec![0, 50, 150, 350, 3_000, 3_005], vec![0, 110, 320, 730, 3_000, 3_110]),
        ] {
            assert_eq!(read_times(&notifications), expected, "{notifications:?}");
        }
        // Every 2 ms for half a minute.
        let notifications: Vec<_> = (0..15_000).map(|number| number * 2).collect();
        let times = read_times(&notifications);
        let gaps: Vec<_> = times.windows(2).map(|pair| pair[1] - pair[0]).collect();
        assert_eq!(gaps, [110, 210, 410, 810, 1_610, 3_210, 5_010, 5_010, 5_010, 5_010, 5_010]);
        assert!(times.last() >= notifications.last(), "the last notice is acted on");
    }

    #[test]
    fn failed_reads_back_off() {
        let (start, mut schedule, mut now) = (Instant::now(), RefreshSchedule::default(), Instant::now());
        let mut reads = Vec::new();
        for _ in 0..12 {
            schedule.record_failure(ListKind::Prompts, now, 0.0);
            // A notification in between changes nothing.
            schedule.mark_changed(ListKind::Prompts);
            now = schedule.next_refresh_at(now).unwrap();
            reads.push(now.duration_since(start).as_secs());
            assert_eq!(schedule.take_due(now), Some(ListKind::Prompts));
        }
        assert_eq!(reads, [1, 3, 7, 15, 31, 63, 127, 255, 511, 811, 1111, 1411]);
        schedule.record_read(ListKind::Prompts, now);
        schedule.mark_changed(ListKind::Prompts);
        assert_eq!(schedule.next_refresh_at(now), Some(now + MIN_REFRESH_DELAY));
    }

    #[test]
    fn list_is_checked_at_most_once_a_minute() {
        let (start, mut schedule, mut reads) = (Instant::now(), RefreshSchedule::default(), Vec::new());
        for second in 0..200 {
            let now = start + Duration::from_secs(second);
            schedule.check(ListKind::Tools);
            if schedule.take_due(now).is_some() {
                reads.push(second);
                schedule.record_read(ListKind::Tools, now);
            }
        }
        assert_eq!(reads, [0, 60, 120, 180]);
        // A notification does not wait for the check that is pending.
        let now = start + Duration::from_secs(200);
        schedule.mark_changed(ListKind::Tools);
        assert_eq!(schedule.take_due(now), Some(ListKind::Tools));
        assert_eq!(schedule.next_refresh_at(now), None, "the check is part of it");
        // A check that fails is retried like any other read.
        schedule.check(ListKind::Tools);
        schedule.record_failure(ListKind::Tools, now, 0.0);
        schedule.check(ListKind::Tools);
        assert_eq!(schedule.next_refresh_at(now), Some(now + RETRY_DELAYS.initial));
    }

    #[test]
    fn requested_refresh_ignores_the_delay() {
        let (now, mut schedule) = (Instant::now(), RefreshSchedule::default());
        schedule.record_read(ListKind::Tools, now);
        schedule.mark_changed(ListKind::Tools);
        assert_eq!(
            (schedule.take_due(now), schedule.next_refresh_at(now)),
            (None, Some(now + MIN_REFRESH_DELAY))
        );
        schedule.request_now(ListKind::Tools);
        schedule.mark_changed(ListKind::Tools);
        schedule.request_now(ListKind::Prompts);
        assert_eq!(
            [schedule.take_due(now), schedule.take_due(now), schedule.take_due(now)],
            [Some(ListKind::Tools), Some(ListKind::Prompts), None]
        );
    }
}
