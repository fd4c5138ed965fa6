use std::collections::VecDeque;
use std::fmt;
use std::sync::Arc;

use parking_lot::Mutex;

use super::super::secret_mask::{SecretMask, SecretMaskStream};
use crate::text;

const MAX_TAIL_BYTES: usize = 8 * 1024;

/// The last few kilobytes that a child wrote to stderr, as they may be told. Never in the child's way: it is always
/// read. Cheap to clone.
#[derive(Clone, Default)]
pub struct StderrTail(Arc<Mutex<TailBuffer>>);

#[derive(Default)]
struct TailBuffer {
    mask_stream: SecretMaskStream,
    tail: VecDeque<u8>,
}

impl StderrTail {
    /// Before anything is written: what is to be taken out of it.
    pub(in crate::wire) fn set_mask(&self, mask: SecretMask) {
        self.0.lock().mask_stream = SecretMaskStream::new(mask);
    }

    /// Takes up what was written, and gives what can be told by now.
    pub(in crate::wire) fn push(&self, bytes: &[u8]) -> Vec<u8> {
        let mut words = self.0.lock();
        let told = words.mask_stream.push(bytes);
        words.append(&told);
        told
    }

    /// Nothing more is written: gives the rest of what can be told.
    pub(in crate::wire) fn finish(&self) -> Vec<u8> {
        let mut words = self.0.lock();
        let told = words.mask_stream.finish();
        words.append(&told);
        told
    }

    /// The last lines that are not empty, as the end of a sentence: at most three, cut to a readable length. Empty if
    /// there are none.
    pub fn message_suffix(&self) -> String {
        let words = self.0.lock();
        let bytes: Vec<u8> = words.tail.iter().chain(words.mask_stream.pending().iter()).copied().collect();
        drop(words);
        let text = String::from_utf8_lossy(&bytes);
        let mut last: Vec<String> = text.lines().rev().filter_map(printable_line).take(3).collect();
        last.reverse();
        if last.is_empty() { String::new() } else { format!("; its last words: {}", last.join(" | ")) }
    }
}

impl TailBuffer {
    fn append(&mut self, told: &[u8]) {
        self.tail.extend(told);
        let excess = self.tail.len().saturating_sub(MAX_TAIL_BYTES);
        self.tail.drain(..excess);
    }
}

impl fmt::Debug for StderrTail {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("LastWords")
    }
}

/// A line that says something, of at most 200 characters.
fn printable_line(line: &str) -> Option<String> {
    Some(text::sanitize(line, 200)).filter(|line| !line.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tail_is_bounded_and_keeps_the_last_lines() {
        let words = StderrTail::default();
        for index in 0..10_000 {
            words.push(format!("line {index}\n\n").as_bytes());
        }
        assert_eq!(words.message_suffix(), "; its last words: line 9997 | line 9998 | line 9999");
        assert!(words.0.lock().tail.len() <= MAX_TAIL_BYTES);
        assert_eq!(StderrTail::default().message_suffix(), "");
    }

    #[test]
    fn line_without_newline_is_included() {
        let words = StderrTail::default();
        words.push(b"one\nPassword: ");
        assert_eq!(words.message_suffix(), "; its last words: one | Password:");
    }

    #[test]
    fn escape_characters_are_removed() {
        let words = StderrTail::default();
        words.push(b"\x1b[31mred\x1b[0m\n");
        assert_eq!(words.message_suffix(), "; its last words: [31mred[0m");
    }
}
