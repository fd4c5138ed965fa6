use bytes::Bytes;
use tokio::io::{AsyncBufRead, AsyncBufReadExt};

/// Reads the next line without its end; `None` at the end of the stream.
///
/// A line longer than `limit` is skipped whole and given as [`Line::TooLong`], without being kept.
pub(super) async fn next(
    reader: &mut (impl AsyncBufRead + Unpin),
    limit: usize,
) -> std::io::Result<Option<Line>> {
    let mut line = Vec::new();
    let mut length = 0_usize;
    loop {
        let chunk = reader.fill_buf().await?;
        if chunk.is_empty() {
            return Ok((length > 0).then(|| Line::of(line, length, limit)));
        }
        let end = chunk.iter().position(|byte| *byte == b'\n');
        let part = chunk.get(..end.unwrap_or(chunk.len())).unwrap_or(chunk);
        length = length.saturating_add(part.len());
        if length <= limit {
            line.extend_from_slice(part);
        } else {
            line = Vec::new();
        }
        let used = part.len() + usize::from(end.is_some());
        reader.consume(used);
        if end.is_some() {
            return Ok(Some(Line::of(line, length, limit)));
        }
    }
}

/// A line of a child's output.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Line {
    /// Its bytes.
    Text(Bytes),
    /// Longer than the limit.
    TooLong(usize),
}

impl Line {
    fn of(mut line: Vec<u8>, length: usize, limit: usize) -> Self {
        if length > limit {
            return Self::TooLong(length);
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
    async fn reads_lines_and_skips_endless_ones() {
        let text = b"one\r\n\ntwo\n0123456789\nlast";
        let mut reader = tokio::io::BufReader::with_capacity(3, &text[..]);
        let mut found = Vec::new();
        while let Some(line) = next(&mut reader, 8).await.unwrap() {
            found.push(line);
        }
        let text = |text: &'static str| Line::Text(Bytes::from_static(text.as_bytes()));
        assert_eq!(found, [text("one"), text(""), text("two"), Line::TooLong(10), text("last")]);
    }
}
