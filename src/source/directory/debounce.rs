//! When to look at the tree: at once on a first hint, again when it has been quiet. Pure: time is passed in.

use std::time::Duration;

use tokio::time::Instant;

/// The tree is quiet when nothing was heard for this long.
const QUIET: Duration = Duration::from_millis(200);
/// A tree that is never quiet is taken as it is after this long.
const PATIENCE: Duration = Duration::from_secs(2);

/// Puts off the look at which changes count until nothing more is heard.
#[derive(Debug)]
pub(super) struct Debounce {
    /// The time between looks when nothing is heard.
    interval: Duration,
    /// When it began to be noisy, and when it was last.
    noise: Option<(Instant, Instant)>,
    /// Something landed that may hold a new object, or it has just become noisy.
    eager: bool,
    /// The end of the last look, and how long it took.
    looked: Option<(Instant, Duration)>,
}

impl Debounce {
    /// The first look is due at once, and counts as the beginning of noise: what was being changed at the
    /// start is looked at twice too.
    pub fn new(now: Instant) -> Self {
        Self { interval: Duration::ZERO, noise: Some((now, now)), eager: true, looked: None }
    }

    /// Something was heard; `landed` if a file may be complete.
    pub fn heard(&mut self, now: Instant, landed: bool) {
        self.eager |= landed || self.noise.is_none();
        let began = self.noise.map_or(now, |(began, _)| began);
        self.noise = Some((began, now));
    }

    /// When to look next.
    pub fn due(&self, now: Instant) -> Instant {
        let Some((ended, cost)) = self.looked else {
            return now;
        };
        let idle = ended + self.interval;
        let Some((began, last)) = self.noise else {
            return idle;
        };
        let quiet = (last + QUIET).min(began + PATIENCE);
        // At most half of the time is spent on looking.
        let next = if self.eager { now } else { quiet };
        next.max(ended + cost).min(idle.max(now))
    }

    /// A look begins: whether what it finds unchanged since an earlier look may be taken as complete.
    pub fn begin(&mut self, now: Instant) -> bool {
        self.eager = false;
        self.noise.is_none_or(|(began, last)| now >= last + QUIET || now >= began + PATIENCE)
    }

    /// A look has ended, which began at `began`; `again` if something waits for a second one.
    pub fn end(&mut self, began: Instant, now: Instant, settled: bool, again: bool, interval: Duration) {
        self.looked = Some((now, now - began));
        self.interval = interval;
        if settled {
            let heard = self.noise.map(|(_, last)| last).filter(|last| *last > began);
            self.noise = if again { Some(now) } else { heard }.map(|since| (since, since));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const IDLE: Duration = Duration::from_secs(30);

    fn ms(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    /// Looks at every moment that is due until `end`, each taking 1 ms; `hints` are heard at their times.
    /// Gives the times of the looks, with `!` where the tree counts as settled.
    fn looks(hints: &[(u64, bool)], again: impl Fn(usize) -> bool, end: u64) -> Vec<String> {
        let start = Instant::now();
        let mut debounce = Debounce::new(start);
        let mut hints = hints.iter().map(|(at, landed)| (start + ms(*at), *landed)).peekable();
        let mut now = start;
        let mut looks = Vec::new();
        while now <= start + ms(end) {
            while let Some((at, landed)) = hints.next_if(|(at, _)| *at <= now) {
                debounce.heard(at, landed);
            }
            let due = debounce.due(now);
            match hints.peek() {
                Some((at, _)) if *at < due => now = *at,
                _ if due > now => now = due,
                _ => {
                    let settled = debounce.begin(now);
                    let mark = if settled { "!" } else { "" };
                    looks.push(format!("{}{mark}", (now - start).as_millis()));
                    debounce.end(now, now + ms(1), settled, again(looks.len()), IDLE);
                    now += ms(1);
                }
            }
        }
        looks
    }

    #[test]
    fn looks_at_once_and_again_when_it_is_quiet() {
        let never = |_| false;
        assert_eq!(looks(&[], never, 31_000), ["0", "200!", "30201!"], "nothing is heard");
        assert_eq!(looks(&[(1_000, true)], never, 2_000), ["0", "200!", "1000", "1200!"], "one file lands");
        assert_eq!(
            looks(&[(1_000, false), (1_003, false), (1_100, true), (1_150, false)], never, 2_000),
            ["0", "200!", "1000", "1100", "1350!"],
            "a file is made, written and closed, and another one touched"
        );
        assert_eq!(
            looks(&[(1_000, false)], |look| look == 4, 2_000),
            ["0", "200!", "1000", "1200!", "1401!"],
            "what is first seen in the second look waits for a third"
        );
    }

    #[test]
    fn noise_without_end_does_not_put_it_off_for_ever_nor_make_it_spin() {
        let noise: Vec<_> = (1_000..9_000).map(|at| (at, false)).collect();
        let found = looks(&noise, |_| false, 9_000);
        assert_eq!(found, ["0", "200!", "1000", "3000!", "3002", "5001!", "5003", "7002!", "7004"]);
        let landings: Vec<_> = (1_000..3_000).map(|at| (at, true)).collect();
        let found = looks(&landings, |_| false, 3_000);
        assert!(found.len() <= 1_010, "{} looks of 1 ms in 2 s", found.len());
    }
}
