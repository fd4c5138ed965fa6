use bytes::Bytes;
use tokio::io::{AsyncBufRead, AsyncBufReadExt};

/// The bytes that are kept of each end of a line that is too long.
const KEPT_END_BYTES: usize = 256;

/// Reads the next line without its line end; `None` at the end of the stream. Not cancel safe.
///
/// A line longer than `limit` is returned as [`StdoutLine::TooLong`], and only its start and end are kept.
pub(super) async fn next_line(
    reader: &mut (impl AsyncBufRead + Unpin),
    limit: usize,
) -> std::io::Result<Option<StdoutLine>> {
    let mut line = Vec::new();
    let mut length = 0_usize;
    loop {
        let chunk = reader.fill_buf().await?;
        if chunk.is_empty() {
            return Ok((length > 0).then(|| StdoutLine::new(line, length, limit)));
        }
        let end = chunk.iter().position(|byte| *byte == b'\n');
        let part = chunk.get(..end.unwrap_or(chunk.len())).unwrap_or(chunk);
        length = length.saturating_add(part.len());
        line.extend_from_slice(part);
        if length > limit && line.len() > 4 * KEPT_END_BYTES {
            line.drain(KEPT_END_BYTES..line.len() - KEPT_END_BYTES);
            line.shrink_to(8 * KEPT_END_BYTES);
        }
        let used = part.len() + usize::from(end.is_some());
        reader.consume(used);
        if end.is_some() {
            return Ok(Some(StdoutLine::new(line, length, limit)));
        }
    }
}

/// A line of a child's output.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum StdoutLine {
    /// The bytes of the line.
    Text(Bytes),
    /// A line longer than the limit: its length, and its start followed by its end.
    TooLong(usize, Bytes),
}

impl StdoutLine {
    fn new(mut line: Vec<u8>, length: usize, limit: usize) -> Self {
        if length > limit {
            if line.len() > 2 * KEPT_END_BYTES {
                line.drain(KEPT_END_BYTES..line.len() - KEPT_END_BYTES);
            }
            return Self::TooLong(length, line.into());
        }
        if line.last() == Some(&b'\r') {
            line.pop();
        }
        Self::Text(line.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn lines_beyond_the_limit_are_reported_as_too_long() {
        let text = b"one\r\n\ntwo\n0123456789\nlast";
        let mut reader = tokio::io::BufReader::with_capacity(3, &text[..]);
        let mut lines = Vec::new();
        while let Some(line) = next_line(&mut reader, 8).await.unwrap() {
            lines.push(line);
        }
        let text = |text: &'static str| StdoutLine::Text(Bytes::from_static(text.as_bytes()));
        let long = StdoutLine::TooLong(10, Bytes::from_static(b"0123456789"));
        assert_eq!(lines, [text("one"), text(""), text("two"), long, text("last")]);
    }

    #[tokio::test]
    async fn both_ends_of_a_too_long_line_are_kept() {
        let line = format!("start{}end", "x".repeat(100_000));
        let mut reader = tokio::io::BufReader::new(line.as_bytes());
        let Some(StdoutLine::TooLong(length, ends)) = next_line(&mut reader, 10_000).await.unwrap() else {
            panic!("not too long")
        };
        assert_eq!((length, ends.len()), (line.len(), 2 * KEPT_END_BYTES));
        assert!(ends.starts_with(b"start") && ends.ends_with(b"end"));
    }
}
