use std::collections::VecDeque;
use std::fmt;
use std::sync::Arc;

use parking_lot::Mutex;

use super::super::secret_mask::{SecretMask, SecretMaskStream};
use crate::text;

const KEPT: usize = 8 * 1024;

/// The last few kilobytes that a child wrote to stderr, as they may be told. Never in the child's way: it is always
/// read. Cheap to clone.
#[derive(Clone, Default)]
pub struct StderrTail(Arc<Mutex<Words>>);

#[derive(Default)]
struct Words {
    masking: SecretMaskStream,
    kept: VecDeque<u8>,
}

impl StderrTail {
    /// Before anything is written: what is to be taken out of it.
    pub(in crate::wire) fn mask(&self, mask: SecretMask) {
        self.0.lock().masking = SecretMaskStream::new(mask);
    }

    /// Takes up what was written, and gives what can be told by now.
    pub(in crate::wire) fn push(&self, bytes: &[u8]) -> Vec<u8> {
        let mut words = self.0.lock();
        let told = words.masking.push(bytes);
        words.keep(&told);
        told
    }

    /// Nothing more is written: gives the rest of what can be told.
    pub(in crate::wire) fn finish(&self) -> Vec<u8> {
        let mut words = self.0.lock();
        let told = words.masking.finish();
        words.keep(&told);
        told
    }

    /// The last lines that are not empty, as the end of a sentence: at most three, cut to a readable length. Empty if
    /// there are none.
    pub fn quoted(&self) -> String {
        let words = self.0.lock();
        let bytes: Vec<u8> = words.kept.iter().chain(words.masking.rest().iter()).copied().collect();
        drop(words);
        let text = String::from_utf8_lossy(&bytes);
        let mut last: Vec<String> = text.lines().rev().filter_map(readable).take(3).collect();
        last.reverse();
        if last.is_empty() { String::new() } else { format!("; its last words: {}", last.join(" | ")) }
    }
}

impl Words {
    fn keep(&mut self, told: &[u8]) {
        self.kept.extend(told);
        let excess = self.kept.len().saturating_sub(KEPT);
        self.kept.drain(..excess);
    }
}

impl fmt::Debug for StderrTail {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("LastWords")
    }
}

/// A line that says something, of at most 200 characters.
fn readable(line: &str) -> Option<String> {
    Some(text::bounded(line, 200)).filter(|line| !line.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keeps_the_end_and_no_more() {
        let words = StderrTail::default();
        for index in 0..10_000 {
            words.push(format!("line {index}\n\n").as_bytes());
        }
        assert_eq!(words.quoted(), "; its last words: line 9997 | line 9998 | line 9999");
        assert!(words.0.lock().kept.len() <= KEPT);
        assert_eq!(StderrTail::default().quoted(), "");
    }

    #[test]
    fn a_line_without_an_end_is_told_too() {
        let words = StderrTail::default();
        words.push(b"one\nPassword: ");
        assert_eq!(words.quoted(), "; its last words: one | Password:");
    }

    #[test]
    fn terminal_codes_do_not_reach_the_status() {
        let words = StderrTail::default();
        words.push(b"\x1b[31mred\x1b[0m\n");
        assert_eq!(words.quoted(), "; its last words: [31mred[0m");
    }
}
