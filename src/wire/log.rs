//! The log lines of servers, one ring buffer per server: lines of stderr, MCP log messages, and text that is no message.
//!
//! Never blocks the server. A reader that is too slow loses the oldest lines and gets their number.

use std::collections::VecDeque;
use std::sync::Arc;

use jiff::Timestamp;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::sync::Notify;

use super::Envelope;
use super::secret_mask::SecretMask;

/// The number of lines kept per server.
const MAX_LINES: usize = 1_000;
/// The bytes of text kept per server.
const MAX_BYTES: usize = 256 << 10;
/// The maximum length of a line in bytes. Longer lines are split.
const MAX_LINE_BYTES: usize = 4 << 10;
/// The most bytes that are kept of text that is not a message.
const MAX_UNREADABLE_BYTES: usize = 16 << 10;
/// The maximum number of lines that one read returns.
const PAGE_LINES: usize = 100;

/// The last log lines of one server, across all its connections. Cheap to clone; allocates with the first line.
#[derive(Clone, Debug, Default)]
pub struct ServerLog(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    ring: Mutex<Option<Box<LineRing>>>,
    line_added: Notify,
}

#[derive(Debug, Default)]
struct LineRing {
    lines: VecDeque<LogLine>,
    bytes: usize,
    /// The number of the oldest kept line.
    first_number: u64,
}

/// One log line.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogLine {
    /// The time at which evenkeel read the line.
    pub time: Timestamp,
    /// The level of an MCP log message, such as `warning`; `stderr`; `stdout` or `http` for text there that is not an MCP
    /// message; or `evenkeel` for what evenkeel did to the process.
    pub level: Arc<str>,
    /// The `logger` of an MCP log message.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub logger: Option<Arc<str>>,
    /// The text, as the server wrote it. Not trusted.
    pub text: Arc<str>,
}

/// The lines that one read returns.
#[derive(Debug)]
pub struct LogPage {
    /// The number of lines that were dropped before they could be read.
    pub dropped: u64,
    /// The next lines; empty if there are none yet.
    pub lines: Vec<LogLine>,
    /// The line number at which to continue.
    pub next: u64,
}

impl ServerLog {
    /// Returns the line number from which to read the last `lines` lines, or all kept lines.
    pub fn tail_start(&self, lines: Option<u64>) -> u64 {
        self.0.ring.lock().as_ref().map_or(0, |ring| match lines {
            Some(lines) => ring.first_number.max(ring.end().saturating_sub(lines)),
            None => ring.first_number,
        })
    }

    /// Returns the number of the next line to be added.
    pub fn end(&self) -> u64 {
        self.0.ring.lock().as_ref().map_or(0, |ring| ring.end())
    }

    /// Returns the lines from a line number on, at most 100.
    pub fn read(&self, from: u64) -> LogPage {
        let ring = self.0.ring.lock();
        let Some(ring) = ring.as_ref() else { return LogPage { dropped: 0, lines: Vec::new(), next: from } };
        let start = from.max(ring.first_number);
        let skipped = usize::try_from(start - ring.first_number).unwrap_or(usize::MAX);
        let lines: Vec<_> = ring.lines.iter().skip(skipped).take(PAGE_LINES).cloned().collect();
        let next = start + u64::try_from(lines.len()).unwrap_or_default();
        LogPage { dropped: start - from, lines, next }
    }

    /// Waits until there is a line to read from a line number on. Cancel safe.
    pub async fn wait_for_line(&self, from: u64) {
        loop {
            let line_added = self.0.line_added.notified();
            if self.0.ring.lock().as_ref().is_some_and(|ring| ring.end() > from) {
                return;
            }
            line_added.await;
        }
    }

    /// Adds the redacted text of a `notifications/message`. Ignores anything else.
    pub(super) fn push_notification(&self, notification: &[u8], mask: &SecretMask) {
        #[derive(Deserialize)]
        struct Message {
            level: String,
            #[serde(default)]
            logger: Option<String>,
            data: Value,
        }
        let Ok(envelope) = Envelope::parse(notification) else { return };
        let message = envelope.params.and_then(|params| serde_json::from_str::<Message>(params.get()).ok());
        let Some(Message { level, logger, data }) = message else { return };
        let text = data.as_str().map_or_else(|| data.to_string(), str::to_owned);
        let text = mask.redact(&text);
        let redact_and_cut =
            |text: String| -> Arc<str> { mask.redact(&text).chars().take(64).collect::<String>().into() };
        let (level, logger) = (redact_and_cut(level), logger.map(redact_and_cut));
        for line in text.lines() {
            for part in split_long_line(line.as_bytes()) {
                self.push(level.clone(), logger.clone(), part);
            }
        }
    }

    /// Adds text of a server that is not a message, redacted and at most [`MAX_UNREADABLE_BYTES`] of it.
    pub(super) fn push_unreadable(&self, level: &str, text: &[u8], mask: &SecretMask) {
        let text = String::from_utf8_lossy(text);
        // Redacted before it is cut, so that no part of a secret remains.
        let redacted = mask.redact(&text);
        let kept = redacted.get(..redacted.floor_char_boundary(MAX_UNREADABLE_BYTES)).unwrap_or_default();
        for part in kept.lines().flat_map(|line| split_long_line(line.as_bytes())) {
            self.push(level.into(), None, part);
        }
    }

    /// Adds a line of evenkeel about the server's process.
    pub(super) fn push_process_event(&self, text: &str) {
        self.push("evenkeel".into(), None, text.as_bytes());
    }

    /// Adds a redacted line of stderr.
    pub(super) fn push_stderr_line(&self, line: &[u8]) {
        for part in split_long_line(line) {
            self.push("stderr".into(), None, part);
        }
    }

    fn push(&self, level: Arc<str>, logger: Option<Arc<str>>, text: &[u8]) {
        let text: Arc<str> = String::from_utf8_lossy(text).into();
        let mut guard = self.0.ring.lock();
        let ring = guard.get_or_insert_default();
        ring.bytes += text.len();
        ring.lines.push_back(LogLine { time: Timestamp::now(), level, logger, text });
        while ring.lines.len() > MAX_LINES || ring.bytes > MAX_BYTES {
            let Some(oldest) = ring.lines.pop_front() else { break };
            ring.bytes -= oldest.text.len();
            ring.first_number += 1;
        }
        drop(guard);
        self.0.line_added.notify_waiters();
    }
}

impl LineRing {
    /// Returns the number of the next line to be added.
    fn end(&self) -> u64 {
        self.first_number + u64::try_from(self.lines.len()).unwrap_or_default()
    }
}

/// Splits a line into parts of at most [`MAX_LINE_BYTES`]. An empty line is one part.
fn split_long_line(line: &[u8]) -> impl Iterator<Item = &[u8]> {
    let empty = line.is_empty().then_some(line);
    empty.into_iter().chain(line.chunks(MAX_LINE_BYTES))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(page: &LogPage) -> Vec<&str> {
        page.lines.iter().map(|line| &*line.text).collect()
    }

    #[test]
    fn full_log_drops_the_oldest_lines_and_counts_them() {
        let log = ServerLog::default();
        for number in 0..MAX_LINES + 10 {
            log.push_stderr_line(number.to_string().as_bytes());
        }
        let page = log.read(4);
        assert_eq!((page.dropped, page.lines.len(), page.next), (6, PAGE_LINES, 110));
        log.push_stderr_line(&vec![b'x'; 2 * MAX_BYTES]);
        let ring = log.0.ring.lock();
        let ring = ring.as_ref().unwrap();
        assert!(ring.bytes <= MAX_BYTES && ring.lines.iter().all(|line| line.text.len() <= MAX_LINE_BYTES));
    }

    #[test]
    fn log_notifications_keep_level_and_logger() {
        let log = ServerLog::default();
        for message in [
            r#"{"jsonrpc":"2.0","method":"notifications/message","params":{"level":"warning","logger":"db","data":"slow\nvery"}}"#,
            r#"{"jsonrpc":"2.0","method":"notifications/message","params":{"level":"info","data":{"rows":3}}}"#,
            r#"{"jsonrpc":"2.0","method":"notifications/message","params":{"data":1}}"#,
            r#"{"jsonrpc":"2.0","method":"notifications/other"}"#,
            "junk",
        ] {
            log.push_notification(message.as_bytes(), &SecretMask::default());
        }
        let page = log.read(0);
        assert_eq!(texts(&page), ["slow", "very", r#"{"rows":3}"#]);
        assert_eq!((&*page.lines[0].level, page.lines[0].logger.as_deref()), ("warning", Some("db")));
    }

    #[tokio::test]
    async fn wait_for_line_returns_once_a_line_is_added() {
        let log = ServerLog::default();
        let reader = tokio::spawn({
            let log = log.clone();
            async move {
                log.wait_for_line(0).await;
                log.read(0).lines.len()
            }
        });
        tokio::task::yield_now().await;
        log.push_stderr_line(b"a");
        assert_eq!(reader.await.unwrap(), 1);
    }
}
