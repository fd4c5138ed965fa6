use bytes::{Buf, Bytes, BytesMut};
use memchr::memchr2;

/// Decodes a byte stream into the data of its server-sent events (HTML Living Standard, §9.2).
///
/// Promises bounded memory, and that each byte is scanned once at any chunking. An event longer than the limit is an
/// error. Comments, ids and retry hints are skipped. The `event:` field is ignored, since MCP sends only messages.
#[derive(Debug)]
pub(super) struct SseDecoder {
    /// The received bytes that are not a whole line yet.
    buffer: BytesMut,
    /// The length of the prefix of `buffer` that contains no line end.
    scanned: usize,
    /// The data of the unfinished event.
    data: Option<BytesMut>,
    limit: usize,
}

/// An event longer than the limit.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct EventTooLong;

impl SseDecoder {
    pub(super) fn new(limit: usize) -> Self {
        Self { buffer: BytesMut::new(), scanned: 0, data: None, limit }
    }

    /// Adds received bytes.
    pub(super) fn push(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// Returns the data of the next complete event, if there is one.
    pub(super) fn next(&mut self) -> Result<Option<Bytes>, EventTooLong> {
        while let Some(mut line) = self.next_line() {
            if line.is_empty() {
                match self.data.take() {
                    Some(data) if !data.is_empty() => return Ok(Some(data.freeze())),
                    _ => continue,
                }
            }
            let value = match line.strip_prefix(b"data") {
                Some([b':', b' ', ..]) => 6,
                Some([b':', ..]) => 5,
                Some([]) => 4,
                _ => continue,
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
        let line = self.buffer.split_to(end);
        self.buffer.advance(skip);
        self.scanned = 0;
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
