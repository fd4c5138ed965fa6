use super::super::log::ServerLog;
use super::stderr_tail::StderrTail;

/// The most bytes of an unfinished line that are held back.
const MAX_HELD_BYTES: usize = 4 << 10;

/// Splits the stderr of one process into log lines.
#[derive(Debug)]
pub(in crate::wire) struct StderrLines {
    log: ServerLog,
    /// Redacts the output, and keeps its end for error messages.
    tail: StderrTail,
    partial_line: Vec<u8>,
}

impl StderrLines {
    pub(in crate::wire) fn new(log: ServerLog, tail: StderrTail) -> Self {
        Self { log, tail, partial_line: Vec::new() }
    }

    pub(in crate::wire) fn push(&mut self, bytes: &[u8]) {
        let redacted = self.tail.push(bytes);
        self.push_redacted(&redacted);
    }

    fn push_redacted(&mut self, bytes: &[u8]) {
        let mut lines = bytes.split(|byte| *byte == b'\n');
        let last = lines.next_back().unwrap_or_default();
        for line in lines {
            self.partial_line.extend_from_slice(line);
            self.flush();
        }
        self.partial_line.extend_from_slice(last);
        if self.partial_line.len() >= MAX_HELD_BYTES {
            self.flush();
        }
    }

    fn flush(&mut self) {
        let line = std::mem::take(&mut self.partial_line);
        self.log.push_stderr_line(line.strip_suffix(b"\r").unwrap_or(&line));
    }
}

impl Drop for StderrLines {
    /// Adds the rest of the output, which often ends without a newline.
    fn drop(&mut self) {
        let redacted = self.tail.finish();
        self.push_redacted(&redacted);
        if !self.partial_line.is_empty() {
            self.flush();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(log: &ServerLog, from: u64) -> Vec<String> {
        log.read(from).lines.iter().map(|line| line.text.to_string()).collect()
    }

    #[test]
    fn stderr_is_split_into_lines_at_any_chunking() {
        let log = ServerLog::default();
        let mut stderr = StderrLines::new(log.clone(), StderrTail::default());
        for bytes in ["o", "ne\ntwo\r\n\nth", "ree"] {
            stderr.push(bytes.as_bytes());
        }
        assert_eq!(texts(&log, 0), ["one", "two", ""]);
        drop(stderr);
        assert_eq!(texts(&log, 3), ["three"]);
        assert_eq!(texts(&log, log.tail_start(Some(2))), ["", "three"]);
    }
}
