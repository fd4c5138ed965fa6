use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use http::HeaderValue;
use memchr::{memchr, memchr2};

/// The maximum length of an event id that is kept.
const MAX_ID_BYTES: usize = 1024;
const BYTE_ORDER_MARK: &[u8] = "\u{feff}".as_bytes();

/// The position in an event stream at which another one can continue it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct StreamPosition {
    /// The id of the last event; `None` if the server gives none.
    pub(super) last_event_id: Option<HeaderValue>,
    /// The delay before the stream is opened again, as the server wishes.
    pub(super) retry: Option<Duration>,
}

/// Decodes a byte stream into the data of its server-sent events (HTML Living Standard, §9.2).
///
/// Promises bounded memory, and that each byte is scanned once at any chunking. An event longer than the limit is an
/// error. Comments are skipped. The `event:` field is ignored, since MCP sends only messages.
#[derive(Debug)]
pub(super) struct SseDecoder {
    /// The received bytes that are not a whole line yet.
    buffer: BytesMut,
    /// The length of the prefix of `buffer` that contains no line end.
    scanned: usize,
    /// True until the first line is read, which may begin with a byte order mark.
    is_at_start: bool,
    /// The data of the unfinished event.
    data: Option<BytesMut>,
    /// `None` as long as the server sends neither ids nor delays.
    fields: Option<Box<StreamFields>>,
    limit: usize,
}

/// The fields of a stream that are not data.
#[derive(Debug, Default)]
struct StreamFields {
    /// The id of the unfinished event, if it has one; empty if it withdraws the earlier one.
    unfinished_id: Option<Bytes>,
    position: StreamPosition,
}

/// An event longer than the limit.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct EventTooLong;

impl SseDecoder {
    pub(super) fn new(limit: usize) -> Self {
        Self { buffer: BytesMut::new(), scanned: 0, is_at_start: true, data: None, fields: None, limit }
    }

    /// Returns the decoder of a stream that continues another one.
    pub(super) fn continued_at(position: StreamPosition, limit: usize) -> Self {
        Self { fields: Some(Box::new(StreamFields { unfinished_id: None, position })), ..Self::new(limit) }
    }

    /// Returns the position after the last complete event.
    pub(super) fn position(&self) -> StreamPosition {
        self.fields.as_ref().map(|fields| fields.position.clone()).unwrap_or_default()
    }

    /// Returns the number of bytes that are held.
    #[cfg(test)]
    pub(super) fn held_bytes(&self) -> usize {
        self.buffer.len() + self.data.as_ref().map_or(0, BytesMut::len)
    }

    /// Adds received bytes.
    pub(super) fn push(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// Returns the data of the next complete event, if there is one.
    pub(super) fn next(&mut self) -> Result<Option<Bytes>, EventTooLong> {
        while let Some(mut line) = self.next_line() {
            if line.is_empty() {
                self.end_event();
                match self.data.take() {
                    Some(data) if !data.is_empty() => return Ok(Some(data.freeze())),
                    _ => continue,
                }
            }
            let value = match line.strip_prefix(b"data") {
                Some([b':', b' ', ..]) => 6,
                Some([b':', ..]) => 5,
                Some([]) => 4,
                _ => {
                    self.read_field(&line);
                    continue;
                }
            };
            line.advance(value);
            if self.data.as_ref().map_or(0, BytesMut::len) + line.len() > self.limit {
                return Err(EventTooLong);
            }
            match &mut self.data {
                Some(data) => {
                    data.extend_from_slice(b"\n");
                    data.extend_from_slice(&line);
                }
                // The common case: one `data:` line, used without a copy.
                None => self.data = Some(line),
            }
        }
        if self.buffer.len() > self.limit { Err(EventTooLong) } else { Ok(None) }
    }

    /// Reads a line with the id of the event or the delay before the next stream.
    fn read_field(&mut self, line: &[u8]) {
        let (name, value) = line.split_at(memchr(b':', line).unwrap_or(line.len()));
        let value = value.strip_prefix(b":").unwrap_or_default();
        let value = value.strip_prefix(b" ").unwrap_or(value);
        match name {
            b"id" if memchr(0, value).is_none() => {
                let is_kept = value.len() <= MAX_ID_BYTES;
                let id = if is_kept { Bytes::copy_from_slice(value) } else { Bytes::new() };
                self.fields.get_or_insert_default().unfinished_id = Some(id);
            }
            b"retry" if value.iter().all(u8::is_ascii_digit) => {
                let millis = std::str::from_utf8(value).ok().and_then(|digits| digits.parse().ok());
                if let Some(millis) = millis {
                    self.fields.get_or_insert_default().position.retry = Some(Duration::from_millis(millis));
                }
            }
            _ => {}
        }
    }

    /// Takes over the id of an event that is complete. It counts even if the event has no data.
    fn end_event(&mut self) {
        if let Some(StreamFields { unfinished_id, position }) = self.fields.as_deref_mut()
            && let Some(id) = unfinished_id.take()
        {
            position.last_event_id =
                Some(id).filter(|id| !id.is_empty()).and_then(|id| HeaderValue::from_maybe_shared(id).ok());
        }
    }

    /// Returns the next complete line without its end: LF, CR LF or CR. A CR at the end of the buffer is kept until the
    /// next byte arrives.
    fn next_line(&mut self) -> Option<BytesMut> {
        let rest = self.buffer.get(self.scanned..).unwrap_or_default();
        let Some(end) = memchr2(b'\n', b'\r', rest).map(|end| self.scanned + end) else {
            self.scanned = self.buffer.len();
            if self.buffer.is_empty() {
                // An idle stream uses no memory.
                self.buffer = BytesMut::new();
            }
            return None;
        };
        self.scanned = end;
        let skip = match (self.buffer.get(end), self.buffer.get(end + 1)) {
            (Some(b'\r'), None) => return None,
            (Some(b'\r'), Some(b'\n')) => 2,
            _ => 1,
        };
        let mut line = self.buffer.split_to(end);
        self.buffer.advance(skip);
        self.scanned = 0;
        if std::mem::take(&mut self.is_at_start) && line.starts_with(BYTE_ORDER_MARK) {
            line.advance(BYTE_ORDER_MARK.len());
        }
        Some(line)
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;

    fn drain_events(events: &mut SseDecoder) -> Vec<String> {
        let mut decoded = Vec::new();
        while let Some(data) = events.next().unwrap() {
            decoded.push(String::from_utf8(data.to_vec()).unwrap());
        }
        decoded
    }

    #[test]
    fn events_are_decoded_at_any_chunking() {
        let text = "data: a\n\n: comment\r\nid: 7\r\nevent: message\r\ndata:b\r\ndata: c\r\n\r\n\
            retry: 1\n\ndata\n\ndatax: no\n\ndata: d\n\n";
        for size in 1..text.len() {
            let mut events = SseDecoder::new(1000);
            let mut decoded = Vec::new();
            for chunk in text.as_bytes().chunks(size) {
                events.push(chunk);
                decoded.extend(drain_events(&mut events));
            }
            assert_eq!(decoded, ["a", "b\nc", "d"], "in chunks of {size}");
        }
    }

    #[test]
    fn byte_order_mark_is_ignored_only_at_the_start() {
        for size in 1..8 {
            let mut events = SseDecoder::new(1000);
            let mut decoded = Vec::new();
            for chunk in "\u{feff}data: a\n\ndata: \u{feff}b\n\n\u{feff}data: c\n\n".as_bytes().chunks(size) {
                events.push(chunk);
                decoded.extend(drain_events(&mut events));
            }
            assert_eq!(decoded, ["a", "\u{feff}b"], "in chunks of {size}");
        }
    }

    #[test]
    fn position_is_that_after_the_last_complete_event() {
        let long_id = format!("id: 1\n\nid: {}\n\n", "x".repeat(MAX_ID_BYTES + 1));
        for (text, id, retry) in [
            ("", None, None),
            ("id: 1\ndata: a\n\n", Some("1"), None),
            ("id:1\n\n", Some("1"), None),
            ("id: 1\ndata\n\nid: 2\ndata: unfinished\n", Some("1"), None),
            ("id: a:b c\n\n", Some("a:b c"), None),
            ("id: 1\n\ndata: a\n\n", Some("1"), None),
            ("id: 1\n\nid\n\n", None, None),
            ("id: 1\n\nid: 2\u{0}\n\n", Some("1"), None),
            (&*long_id, None, None),
            ("ids: 1\n\nretry: 1500\n", None, Some(1500)),
            ("retry: 20\nretry: 1.5\nretry: -1\nretry: \nretry: 99999999999999999999\n", None, Some(20)),
            ("event: end\nid: 7\nretry: 0\n: comment\n\n", Some("7"), Some(0)),
        ] {
            for size in 1..=text.len().max(1) {
                let mut events = SseDecoder::new(1 << 20);
                for chunk in text.as_bytes().chunks(size) {
                    events.push(chunk);
                    drain_events(&mut events);
                }
                let expected = StreamPosition {
                    last_event_id: id.map(HeaderValue::from_static),
                    retry: retry.map(Duration::from_millis),
                };
                assert_eq!(events.position(), expected, "{text:?} in chunks of {size}");
                if text.len() > 100 {
                    break;
                }
            }
        }
    }

    #[test]
    fn event_longer_than_the_limit_is_an_error() {
        let mut events = SseDecoder::new(8);
        events.push(b"data: 123456789");
        assert_eq!(events.next(), Err(EventTooLong));
        let mut events = SseDecoder::new(8);
        events.push(b"data: 12345\ndata: 12345\n");
        assert_eq!(events.next(), Err(EventTooLong));
    }

    #[test]
    fn long_event_in_small_chunks_is_scanned_once() {
        let start = Instant::now();
        let mut events = SseDecoder::new(4 << 20);
        events.push(b"data: ");
        for _ in 0..8 << 10 {
            events.push(&[b'x'; 500]);
            assert_eq!(events.next(), Ok(None));
            assert!(start.elapsed() < Duration::from_secs(10), "scanned bytes are scanned again");
        }
        events.push(b"\n\n");
        assert_eq!(events.next().unwrap().map(|data| data.len()), Some(500 * (8 << 10)));
    }
}
