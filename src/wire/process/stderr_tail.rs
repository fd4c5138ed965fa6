use std::collections::VecDeque;
use std::fmt;
use std::sync::Arc;

use parking_lot::Mutex;

use super::super::secret_mask::{SecretMask, SecretMaskStream};
use super::error_lines::error_lines;

/// The number of bytes that are kept.
const MAX_TAIL_BYTES: usize = 8 * 1024;

/// The last few kilobytes of a child's stderr, redacted. Never blocks the child: its stderr is always read. Cheap to
/// clone.
#[derive(Clone, Default)]
pub struct StderrTail(Arc<Mutex<TailBuffer>>);

#[derive(Default)]
struct TailBuffer {
    mask_stream: SecretMaskStream,
    tail: VecDeque<u8>,
}

impl StderrTail {
    /// Sets the mask. Call it before the first output.
    pub(in crate::wire) fn set_mask(&self, mask: SecretMask) {
        self.0.lock().mask_stream = SecretMaskStream::new(mask);
    }

    /// Adds output and returns the part that is redacted by now.
    pub(in crate::wire) fn push(&self, bytes: &[u8]) -> Vec<u8> {
        let mut buffer = self.0.lock();
        let redacted = buffer.mask_stream.push(bytes);
        buffer.append(&redacted);
        redacted
    }

    /// Returns the redacted rest. Call it at the end of the output.
    pub(in crate::wire) fn finish(&self) -> Vec<u8> {
        let mut buffer = self.0.lock();
        let redacted = buffer.mask_stream.finish();
        buffer.append(&redacted);
        redacted
    }

    /// Returns the lines that say why the process failed as a suffix for an error message: those of the last error, or
    /// else the last lines. At most three, each truncated to 200 characters. Empty if there are none.
    pub fn message_suffix(&self) -> String {
        let buffer = self.0.lock();
        let bytes: Vec<u8> = buffer.tail.iter().chain(buffer.mask_stream.pending().iter()).copied().collect();
        drop(buffer);
        let lines = error_lines(&String::from_utf8_lossy(&bytes));
        if lines.is_empty() { String::new() } else { format!("; last stderr output: {}", lines.join(" | ")) }
    }
}

impl TailBuffer {
    fn append(&mut self, redacted: &[u8]) {
        self.tail.extend(redacted);
        let excess = self.tail.len().saturating_sub(MAX_TAIL_BYTES);
        self.tail.drain(..excess);
    }
}

impl fmt::Debug for StderrTail {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("StderrTail")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tail_is_bounded_and_keeps_the_last_lines() {
        let tail = StderrTail::default();
        for index in 0..10_000 {
            tail.push(format!("line {index}\n\n").as_bytes());
        }
        assert_eq!(tail.message_suffix(), "; last stderr output: line 9997 | line 9998 | line 9999");
        assert!(tail.0.lock().tail.len() <= MAX_TAIL_BYTES);
        assert_eq!(StderrTail::default().message_suffix(), "");
    }

    #[test]
    fn line_without_newline_is_included() {
        let tail = StderrTail::default();
        tail.push(b"one\nPassword: ");
        assert_eq!(tail.message_suffix(), "; last stderr output: one | Password:");
    }

    #[test]
    fn escape_sequences_are_removed() {
        let tail = StderrTail::default();
        tail.push(b"\x1b[31mred\x1b[0m\n");
        assert_eq!(tail.message_suffix(), "; last stderr output: red");
    }
}
