//! When to look at the tree: at once on a first hint, again when it has been quiet. Pure: time is passed in.

use std::time::Duration;

use tokio::time::Instant;

/// The tree is quiet when nothing was heard for this long.
const QUIET_PERIOD: Duration = Duration::from_millis(200);
/// A tree that is never quiet is taken as it is after this long.
const MAX_DELAY: Duration = Duration::from_secs(2);

/// Puts off the look at which changes count until nothing more is heard.
#[derive(Debug)]
pub(super) struct Debounce {
    /// The time between looks when nothing is heard.
    interval: Duration,
    /// When it began to be noisy, and when it was last.
    activity: Option<(Instant, Instant)>,
    /// Something landed that may hold a new object, or it has just become noisy.
    immediate: bool,
    /// The end of the last look, and how long it took.
    last_scan: Option<(Instant, Duration)>,
}

impl Debounce {
    /// The first look is due at once, and counts as the beginning of noise: what was being changed at the
    /// start is looked at twice too.
    pub fn new(now: Instant) -> Self {
        Self { interval: Duration::ZERO, activity: Some((now, now)), immediate: true, last_scan: None }
    }

    /// Something was heard; `landed` if a file may be complete.
    pub fn event_received(&mut self, now: Instant, landed: bool) {
        self.immediate |= landed || self.activity.is_none();
        let began = self.activity.map_or(now, |(began, _)| began);
        self.activity = Some((began, now));
    }

    /// When to look next.
    pub fn next_scan_at(&self, now: Instant) -> Instant {
        let Some((ended, cost)) = self.last_scan else {
            return now;
        };
        let idle = ended + self.interval;
        let Some((began, last)) = self.activity else {
            return idle;
        };
        let quiet = (last + QUIET_PERIOD).min(began + MAX_DELAY);
        // At most half of the time is spent on looking.
        let next = if self.immediate { now } else { quiet };
        next.max(ended + cost).min(idle.max(now))
    }

    /// A look begins: whether what it finds unchanged since an earlier look may be taken as complete.
    pub fn begin_scan(&mut self, now: Instant) -> bool {
        self.immediate = false;
        self.activity.is_none_or(|(began, last)| now >= last + QUIET_PERIOD || now >= began + MAX_DELAY)
    }

    /// A look has ended, which began at `began`; `again` if something waits for a second one.
    pub fn end_scan(&mut self, began: Instant, now: Instant, settled: bool, again: bool, interval: Duration) {
        self.last_scan = Some((now, now - began));
        self.interval = interval;
        if settled {
            let heard = self.activity.map(|(_, last)| last).filter(|last| *last > began);
            self.activity = if again { Some(now) } else { heard }.map(|since| (since, since));
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

    /// Looks at every moment that is due until `end`, each taking 1 ms; `hints` are heard at their times.
    /// Gives the times of the looks, with `!` where the tree counts as settled.
    fn scan_times(hints: &[(u64, bool)], again: impl Fn(usize) -> bool, end: u64) -> Vec<String> {
        let start = Instant::now();
        let mut debounce = Debounce::new(start);
        let mut hints = hints.iter().map(|(at, landed)| (start + millis(*at), *landed)).peekable();
        let mut now = start;
        let mut looks = Vec::new();
        while now <= start + millis(end) {
            while let Some((at, landed)) = hints.next_if(|(at, _)| *at <= now) {
                debounce.event_received(at, landed);
            }
            let due = debounce.next_scan_at(now);
            match hints.peek() {
                Some((at, _)) if *at < due => now = *at,
                _ if due > now => now = due,
                _ => {
                    let settled = debounce.begin_scan(now);
                    let mark = if settled { "!" } else { "" };
                    looks.push(format!("{}{mark}", (now - start).as_millis()));
                    debounce.end_scan(now, now + millis(1), settled, again(looks.len()), IDLE_INTERVAL);
                    now += millis(1);
                }
            }
        }
        looks
    }

    #[test]
    fn scans_at_once_and_again_after_the_quiet_period() {
        let never = |_| false;
        assert_eq!(scan_times(&[], never, 31_000), ["0", "200!", "30201!"], "nothing is heard");
        assert_eq!(
            scan_times(&[(1_000, true)], never, 2_000),
            ["0", "200!", "1000", "1200!"],
            "one file lands"
        );
        assert_eq!(
            scan_times(&[(1_000, false), (1_003, false), (1_100, true), (1_150, false)], never, 2_000),
            ["0", "200!", "1000", "1100", "1350!"],
            "a file is made, written and closed, and another one touched"
        );
        assert_eq!(
            scan_times(&[(1_000, false)], |look| look == 4, 2_000),
            ["0", "200!", "1000", "1200!", "1401!"],
            "what is first seen in the second look waits for a third"
        );
    }

    #[test]
    fn constant_events_neither_postpone_scans_forever_nor_busy_loop() {
        let noise: Vec<_> = (1_000..9_000).map(|at| (at, false)).collect();
        let found = scan_times(&noise, |_| false, 9_000);
        assert_eq!(found, ["0", "200!", "1000", "3000!", "3002", "5001!", "5003", "7002!", "7004"]);
        let landings: Vec<_> = (1_000..3_000).map(|at| (at, true)).collect();
        let found = scan_times(&landings, |_| false, 3_000);
        assert!(found.len() <= 1_010, "{} looks of 1 ms in 2 s", found.len());
    }
}
