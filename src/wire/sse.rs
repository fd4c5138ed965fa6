use bytes::{Buf, Bytes, BytesMut};

/// Splits a byte stream into the data of its server-sent events (HTML Living Standard, §9.2).
///
/// Promises bounded memory: an event longer than the limit is an error. Comments, ids and retry hints are
/// skipped; the `event:` field is ignored, since MCP sends only messages.
#[derive(Debug)]
pub(super) struct Events {
    buffer: BytesMut,
    data: BytesMut,
    has_data: bool,
    limit: usize,
}

/// An event longer than the limit.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct TooLong;

impl Events {
    pub(super) fn new(limit: usize) -> Self {
        Self { buffer: BytesMut::new(), data: BytesMut::new(), has_data: false, limit }
    }

    /// Adds bytes as they came.
    pub(super) fn push(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// The data of the next whole event, if there is one.
    pub(super) fn next(&mut self) -> Result<Option<Bytes>, TooLong> {
        while let Some((end, skip)) = self.line_end() {
            let line = self.buffer.split_to(end);
            self.buffer.advance(skip);
            if line.is_empty() {
                if std::mem::take(&mut self.has_data) {
                    let data = self.data.split().freeze();
                    if !data.is_empty() {
                        return Ok(Some(data));
                    }
                }
                continue;
            }
            if let Some(value) = line.strip_prefix(b"data") {
                let value = match value {
                    [b':', b' ', value @ ..] | [b':', value @ ..] => value,
                    [] => &[],
                    _ => continue,
                };
                if self.data.len() + value.len() > self.limit {
                    return Err(TooLong);
                }
                if self.has_data {
                    self.data.extend_from_slice(b"\n");
                }
                self.data.extend_from_slice(value);
                self.has_data = true;
            }
        }
        if self.buffer.len() > self.limit { Err(TooLong) } else { Ok(None) }
    }

    /// Where the first line ends and how long its end is: LF, CR LF or CR. A CR at the very end of the
    /// buffer waits for what follows.
    fn line_end(&self) -> Option<(usize, usize)> {
        let end = self.buffer.iter().position(|byte| matches!(byte, b'\n' | b'\r'))?;
        match (self.buffer.get(end), self.buffer.get(end + 1)) {
            (Some(b'\n'), _) => Some((end, 1)),
            (_, Some(b'\n')) => Some((end, 2)),
            (_, Some(_)) => Some((end, 1)),
            (_, None) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(events: &mut Events) -> Vec<String> {
        let mut found = Vec::new();
        while let Some(data) = events.next().unwrap() {
            found.push(String::from_utf8(data.to_vec()).unwrap());
        }
        found
    }

    #[test]
    fn finds_events_however_they_are_cut() {
        let text = "data: a\n\n: comment\r\nid: 7\r\nevent: message\r\ndata:b\r\ndata: c\r\n\r\nretry: 1\n\ndata\n\ndatax: no\n\ndata: d\n\n";
        for size in 1..text.len() {
            let mut events = Events::new(1000);
            let mut found = Vec::new();
            for chunk in text.as_bytes().chunks(size) {
                events.push(chunk);
                found.extend(all(&mut events));
            }
            assert_eq!(found, ["a", "b\nc", "d"], "in chunks of {size}");
        }
    }

    #[test]
    fn an_event_that_never_ends_is_refused() {
        let mut events = Events::new(8);
        events.push(b"data: 123456789");
        assert_eq!(events.next(), Err(TooLong));
        let mut events = Events::new(8);
        events.push(b"data: 12345\ndata: 12345\n");
        assert_eq!(events.next(), Err(TooLong));
    }
}
