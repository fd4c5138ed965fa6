use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

const KEPT: usize = 8 * 1024;

/// The last few kilobytes that a child wrote to stderr. Never in the child's way: it is always read.
#[derive(Clone, Debug, Default)]
pub(super) struct Tail(Arc<Mutex<VecDeque<u8>>>);

impl Tail {
    pub(super) fn push(&self, bytes: &[u8]) {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        kept.extend(bytes);
        let excess = kept.len().saturating_sub(KEPT);
        kept.drain(..excess);
    }

    /// The last lines that are not empty, for a message: at most `lines`, cut to a readable length.
    pub(super) fn last(&self, lines: usize) -> Option<String> {
        let kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let bytes: Vec<u8> = kept.iter().copied().collect();
        drop(kept);
        let text = String::from_utf8_lossy(&bytes);
        let mut last: Vec<String> = text.lines().rev().filter_map(readable).take(lines).collect();
        last.reverse();
        (!last.is_empty()).then(|| last.join(" | "))
    }
}

/// A line without control characters, cut to 200.
fn readable(line: &str) -> Option<String> {
    let clean: String = line.chars().filter(|char| !char.is_control()).take(200).collect();
    (!clean.trim().is_empty()).then(|| clean.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keeps_the_end_and_no_more() {
        let tail = Tail::default();
        for index in 0..10_000 {
            tail.push(format!("line {index}\n\n").as_bytes());
        }
        assert_eq!(tail.last(2).unwrap(), "line 9998 | line 9999");
        assert!(tail.0.lock().unwrap().len() <= KEPT);
        assert_eq!(Tail::default().last(3), None);
    }

    #[test]
    fn terminal_codes_do_not_reach_the_status() {
        let tail = Tail::default();
        tail.push(b"\x1b[31mred\x1b[0m\n");
        assert_eq!(tail.last(1).unwrap(), "[31mred[0m");
    }
}
