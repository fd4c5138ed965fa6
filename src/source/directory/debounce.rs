//! Schedules the scans of the tree: at once on a first event, and again after a quiet period. Pure: the time is passed
//! in.

use std::time::Duration;

use tokio::time::Instant;

/// The tree is quiet if no event was received for this long.
const QUIET_PERIOD: Duration = Duration::from_millis(200);
/// The maximum delay of the scan at which changes are applied, for a tree that is never quiet.
const MAX_DELAY: Duration = Duration::from_secs(2);

/// Delays the scan at which changes are applied until no more events are received.
#[derive(Debug)]
pub(super) struct Debounce {
    /// The time between scans while no events are received.
    interval: Duration,
    /// The times of the first and the last event of the current activity.
    activity: Option<(Instant, Instant)>,
    /// True if the next scan is due at once: a completed file may declare a new object, or the activity has just begun.
    immediate: bool,
    /// The end of the last scan, and its duration.
    last_scan: Option<(Instant, Duration)>,
}

impl Debounce {
    /// Creates a schedule whose first scan is due at once. The start counts as activity, so that a tree that is
    /// changing at the start is scanned twice too.
    pub fn new(now: Instant) -> Self {
        Self { interval: Duration::ZERO, activity: Some((now, now)), immediate: true, last_scan: None }
    }

    /// Records an event; `completed` if a file may be complete.
    pub fn event_received(&mut self, now: Instant, completed: bool) {
        self.immediate |= completed || self.activity.is_none();
        let began = self.activity.map_or(now, |(began, _)| began);
        self.activity = Some((began, now));
    }

    /// Returns the time of the next scan.
    pub fn next_scan_at(&self, now: Instant) -> Instant {
        let Some((ended, duration)) = self.last_scan else {
            return now;
        };
        let periodic = ended + self.interval;
        let Some((began, last)) = self.activity else {
            return periodic;
        };
        let quiet_at = (last + QUIET_PERIOD).min(began + MAX_DELAY);
        // At most half of the time is spent on scans.
        let next = if self.immediate { now } else { quiet_at };
        next.max(ended + duration).min(periodic.max(now))
    }

    /// Records the start of a scan. Returns true if content that is unchanged since an earlier scan may be taken as
    /// complete.
    pub fn begin_scan(&mut self, now: Instant) -> bool {
        self.immediate = false;
        self.activity.is_none_or(|(began, last)| now >= last + QUIET_PERIOD || now >= began + MAX_DELAY)
    }

    /// Records the end of a scan that began at `began`; `needs_rescan` if a change waits for another scan.
    pub fn end_scan(
        &mut self,
        began: Instant,
        now: Instant,
        settled: bool,
        needs_rescan: bool,
        interval: Duration,
    ) {
        self.last_scan = Some((now, now - began));
        self.interval = interval;
        if settled {
            let later_event = self.activity.map(|(_, last)| last).filter(|last| *last > began);
            self.activity = if needs_rescan { Some(now) } else { later_event }.map(|since| (since, since));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const IDLE_INTERVAL: Duration = Duration::from_secs(30);

    fn millis(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    /// Scans at every time that is due until `end`; each scan takes 1 ms and `events` are received at their times.
    /// Returns the times of the scans, with `!` where the tree counts as settled.
    fn scan_times(events: &[(u64, bool)], needs_rescan: impl Fn(usize) -> bool, end: u64) -> Vec<String> {
        let start = Instant::now();
        let mut debounce = Debounce::new(start);
        let mut events = events.iter().map(|(at, completed)| (start + millis(*at), *completed)).peekable();
        let mut now = start;
        let mut scans = Vec::new();
        while now <= start + millis(end) {
            while let Some((at, completed)) = events.next_if(|(at, _)| *at <= now) {
                debounce.event_received(at, completed);
            }
            let due = debounce.next_scan_at(now);
            match events.peek() {
                Some((at, _)) if *at < due => now = *at,
                _ if due > now => now = due,
                _ => {
                    let settled = debounce.begin_scan(now);
                    let mark = if settled { "!" } else { "" };
                    scans.push(format!("{}{mark}", (now - start).as_millis()));
                    debounce.end_scan(
                        now,
                        now + millis(1),
                        settled,
                        needs_rescan(scans.len()),
                        IDLE_INTERVAL,
                    );
                    now += millis(1);
                }
            }
        }
        scans
    }

    #[test]
    fn scans_at_once_and_again_after_the_quiet_period() {
        let no_rescan = |_| false;
        assert_eq!(scan_times(&[], no_rescan, 31_000), ["0", "200!", "30201!"], "no events");
        assert_eq!(
            scan_times(&[(1_000, true)], no_rescan, 2_000),
            ["0", "200!", "1000", "1200!"],
            "one completed file"
        );
        assert_eq!(
            scan_times(&[(1_000, false), (1_003, false), (1_100, true), (1_150, false)], no_rescan, 2_000),
            ["0", "200!", "1000", "1100", "1350!"],
            "a file is created, written and closed, and another one is touched"
        );
        assert_eq!(
            scan_times(&[(1_000, false)], |scan| scan == 4, 2_000),
            ["0", "200!", "1000", "1200!", "1401!"],
            "a change that the second scan finds waits for a third"
        );
    }

    #[test]
    fn constant_events_neither_postpone_scans_forever_nor_busy_loop() {
        let events: Vec<_> = (1_000..9_000).map(|at| (at, false)).collect();
        let scans = scan_times(&events, |_| false, 9_000);
        assert_eq!(scans, ["0", "200!", "1000", "3000!", "3002", "5001!", "5003", "7002!", "7004"]);
        let completions: Vec<_> = (1_000..3_000).map(|at| (at, true)).collect();
        let scans = scan_times(&completions, |_| false, 3_000);
        assert!(scans.len() <= 1_010, "{} scans of 1 ms in 2 s", scans.len());
    }
}
