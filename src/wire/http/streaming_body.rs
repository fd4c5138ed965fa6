use std::future::poll_fn;
use std::pin::Pin;
use std::task::Poll;

use bytes::{Buf, Bytes, BytesMut};
use http::response::Parts;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Response, StatusCode, Uri, Version, header};
use httparse::Status;
use memchr::memchr;
use tokio::io::{AsyncRead, AsyncWriteExt, ReadBuf};

use super::super::ConnectionError;
use super::super::response::unusable_response;
use super::connect::ServerSocket;
use super::content_coding::ContentDecoder;
use crate::resource::Reason;

/// The maximum size of a response's head, and of a chunk's size line.
const MAX_HEAD_BYTES: usize = 64 * 1024;
/// The maximum number of headers of a response.
const MAX_HEADERS: usize = 100;
/// The bytes of one read from the socket.
const READ_BUFFER_BYTES: usize = 4096;

/// The body of a response that lasts as long as its connection, such as a notification stream.
///
/// Reads from the socket directly: an HTTP client would hold 25 KiB of buffers per server for hours. This type holds
/// only received bytes that were not read yet, usually none.
pub(super) struct StreamingBody {
    socket: ServerSocket,
    unread: BytesMut,
    framing: Framing,
    /// `None` for a body that is not encoded.
    decoder: Option<Box<ContentDecoder>>,
}

/// The framing of a body (RFC 9112 §6.3) and the position in it.
#[derive(Debug, PartialEq, Eq)]
enum Framing {
    /// The size line of a chunk comes next.
    ChunkSize,
    /// This many bytes of a chunk are left, and the end of its line.
    ChunkData(u64),
    /// The end of a chunk's line comes next.
    ChunkEnd,
    /// The last chunk has ended; trailers and an empty line come next.
    Trailers,
    /// This many bytes are left.
    Length(u64),
    /// The body lasts until the connection ends.
    UntilClose,
    End,
}

/// The next piece of a body.
#[derive(Debug, PartialEq, Eq)]
enum BodyPiece {
    Data(Bytes),
    /// More bytes are needed.
    Incomplete,
    End,
}

#[derive(Debug, PartialEq, Eq)]
struct InvalidFraming;

impl StreamingBody {
    /// Sends a request on a new connection and waits for the head of its response.
    pub(super) async fn send_request(
        mut socket: ServerSocket,
        (method, target, headers): (&Method, &Uri, &HeaderMap),
        body: &[u8],
    ) -> Result<Response<Self>, ConnectionError> {
        let request = encode_request(method, target, headers, body);
        let broken = |reason: &dyn std::fmt::Display| {
            let message = format!("the connection broke before the response: {reason}");
            ConnectionError::new(Reason::ConnectFailed, message).into_dispatched()
        };
        socket.write_all(&request).await.map_err(|error| broken(&error))?;
        drop(request);
        let mut unread = BytesMut::new();
        let head = loop {
            if let Some(head) = parse_head(&mut unread).map_err(|reason| broken(&reason))? {
                // Informational responses precede the final one (RFC 9110 §15.2).
                if !head.status.is_informational() {
                    break head;
                }
            } else if read_available(&mut socket, &mut unread).await.map_err(|error| broken(&error))? == 0 {
                return Err(broken(&"closed"));
            }
        };
        let framing = Framing::from_head(&head);
        let decoder = ContentDecoder::from_headers(&head.headers);
        Ok(Response::from_parts(head, Self { socket, unread, framing, decoder }))
    }

    /// Returns the next chunk; `None` at the end. Cancel safe.
    pub(super) async fn chunk(&mut self) -> Result<Option<Bytes>, ConnectionError> {
        let broken = |reason: &dyn std::fmt::Display| {
            let message = format!("the connection broke during the response: {reason}");
            ConnectionError::new(Reason::ConnectFailed, message).into_dispatched()
        };
        loop {
            match self.framing.next_piece(&mut self.unread) {
                Ok(BodyPiece::Data(data)) => {
                    let Some(decoder) = &mut self.decoder else { return Ok(Some(data)) };
                    let decoded = decoder.decode(&data).map_err(|why| unusable_response(&why))?;
                    if !decoded.is_empty() {
                        return Ok(Some(decoded));
                    }
                    continue;
                }
                Ok(BodyPiece::End) => return Ok(None),
                Ok(BodyPiece::Incomplete) => {}
                Err(InvalidFraming) => return Err(broken(&"invalid chunk framing")),
            }
            if read_available(&mut self.socket, &mut self.unread).await.map_err(|error| broken(&error))? == 0
            {
                // All data has arrived before the trailers.
                if matches!(self.framing, Framing::UntilClose | Framing::Trailers) {
                    return Ok(None);
                }
                return Err(broken(&"closed"));
            }
        }
    }

    /// Reads the whole body. A body longer than `limit` is an error.
    pub(super) async fn read_to_end(&mut self, limit: usize) -> Result<Bytes, ConnectionError> {
        let mut all = BytesMut::new();
        while let Some(chunk) = self.chunk().await? {
            if all.len() + chunk.len() > limit {
                let message = format!("the response is longer than {} MiB", limit >> 20);
                return Err(ConnectionError::new(Reason::ConnectFailed, message).into_dispatched());
            }
            all.extend_from_slice(&chunk);
        }
        Ok(all.freeze())
    }

    /// Reads the start of the body, about `limit` bytes at most, or less if the connection breaks.
    pub(super) async fn read_prefix(&mut self, limit: usize) -> Bytes {
        let mut start = BytesMut::new();
        while start.len() < limit
            && let Ok(Some(chunk)) = self.chunk().await
        {
            start.extend_from_slice(&chunk);
        }
        start.freeze()
    }
}

impl StreamingBody {
    /// Returns the socket if another request can be sent on it: the body has been read to its end, and the server keeps
    /// the connection open (RFC 9112 §9.3).
    pub(super) fn into_reusable_socket(self, head: &Parts) -> Option<ServerSocket> {
        let closes = head.headers.get_all(header::CONNECTION).iter().any(|value| {
            let value = value.to_str().unwrap_or_default();
            value.split(',').any(|option| option.trim().eq_ignore_ascii_case("close"))
        });
        let is_at_end = matches!(self.framing, Framing::End | Framing::Length(0)) && self.unread.is_empty();
        (is_at_end && !closes && head.version == Version::HTTP_11).then_some(self.socket)
    }
}

impl std::fmt::Debug for StreamingBody {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "StreamingBody({:?})", self.framing)
    }
}

/// Reads available bytes. Allocates no buffer while it waits.
async fn read_available(socket: &mut ServerSocket, into: &mut BytesMut) -> std::io::Result<usize> {
    poll_fn(|context| {
        let mut space = [0; READ_BUFFER_BYTES];
        let mut space = ReadBuf::new(&mut space);
        match Pin::new(&mut *socket).poll_read(context, &mut space) {
            Poll::Pending => {
                if into.is_empty() {
                    *into = BytesMut::new();
                }
                Poll::Pending
            }
            Poll::Ready(Ok(())) => {
                into.extend_from_slice(space.filled());
                Poll::Ready(Ok(space.filled().len()))
            }
            Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
        }
    })
    .await
}

fn encode_request(method: &Method, target: &Uri, headers: &HeaderMap, body: &[u8]) -> Vec<u8> {
    let mut request = format!("{method} {target} HTTP/1.1\r\n").into_bytes();
    let mut line = |name: &HeaderName, value: &[u8]| {
        for part in [name.as_str().as_bytes(), b": ", value, b"\r\n"] {
            request.extend_from_slice(part);
        }
    };
    for (name, value) in headers {
        line(name, value.as_bytes());
    }
    if !body.is_empty() {
        line(&header::CONTENT_LENGTH, body.len().to_string().as_bytes());
    }
    request.extend_from_slice(b"\r\n");
    request.extend_from_slice(body);
    request
}

/// Parses the head of a response once it is complete, and removes it from `unread`.
fn parse_head(unread: &mut BytesMut) -> Result<Option<Parts>, String> {
    let mut space = [httparse::EMPTY_HEADER; MAX_HEADERS];
    let mut parsed = httparse::Response::new(&mut space);
    let mut parser = httparse::ParserConfig::default();
    parser
        .allow_spaces_after_header_name_in_responses(true)
        .allow_obsolete_multiline_headers_in_responses(true)
        .ignore_invalid_headers_in_responses(true);
    let length = match parser.parse_response(&mut parsed, unread) {
        Ok(Status::Complete(length)) => length,
        Ok(Status::Partial) if unread.len() > MAX_HEAD_BYTES => {
            return Err("the response's head is too long".to_owned());
        }
        Ok(Status::Partial) => return Ok(None),
        Err(error) => return Err(error.to_string()),
    };
    let (mut head, ()) = Response::new(()).into_parts();
    let code = parsed.code.unwrap_or_default();
    head.version = if parsed.version == Some(1) { Version::HTTP_11 } else { Version::HTTP_10 };
    head.status = StatusCode::from_u16(code).map_err(|_| format!("{code} is not a valid HTTP status"))?;
    for field in parsed.headers {
        // A value over several lines is one with spaces (RFC 9112 §5.2).
        let value = field.value.iter().map(|byte| if matches!(byte, b'\r' | b'\n') { b' ' } else { *byte });
        let value = HeaderValue::from_bytes(&value.collect::<Vec<_>>());
        if let (Ok(name), Ok(value)) = (HeaderName::from_bytes(field.name.as_bytes()), value) {
            head.headers.append(name, value);
        }
    }
    unread.advance(length);
    Ok(Some(head))
}

impl Framing {
    fn from_head(head: &Parts) -> Self {
        let value = |name| head.headers.get(name).and_then(|value: &HeaderValue| value.to_str().ok());
        let chunked = value(header::TRANSFER_ENCODING)
            .is_some_and(|encoding| encoding.to_ascii_lowercase().trim_end().ends_with("chunked"));
        if matches!(head.status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED) {
            Self::End
        } else if chunked {
            Self::ChunkSize
        } else {
            let length = value(header::CONTENT_LENGTH).and_then(|length| length.trim().parse().ok());
            length.map_or(Self::UntilClose, Self::Length)
        }
    }

    /// Returns the next piece of the body and removes it from `unread`.
    fn next_piece(&mut self, unread: &mut BytesMut) -> Result<BodyPiece, InvalidFraming> {
        loop {
            match self {
                Self::End | Self::Length(0) => return Ok(BodyPiece::End),
                _ if unread.is_empty() => return Ok(BodyPiece::Incomplete),
                Self::UntilClose => return Ok(BodyPiece::Data(unread.split().freeze())),
                Self::Length(left) => return Ok(BodyPiece::Data(take_up_to(left, unread))),
                Self::ChunkSize => match httparse::parse_chunk_size(unread) {
                    Ok(Status::Complete((line, 0))) => {
                        unread.advance(line);
                        *self = Self::Trailers;
                    }
                    Ok(Status::Complete((line, size))) => {
                        unread.advance(line);
                        *self = Self::ChunkData(size);
                    }
                    Ok(Status::Partial) if unread.len() <= MAX_HEAD_BYTES => {
                        return Ok(BodyPiece::Incomplete);
                    }
                    _ => return Err(InvalidFraming),
                },
                Self::ChunkData(left) => {
                    let data = take_up_to(left, unread);
                    if *left == 0 {
                        *self = Self::ChunkEnd;
                    }
                    return Ok(BodyPiece::Data(data));
                }
                // Trailers are not used.
                Self::Trailers => match memchr(b'\n', unread) {
                    Some(end) => {
                        let is_empty = unread.get(..end).is_some_and(|line| line.trim_ascii().is_empty());
                        unread.advance(end + 1);
                        if is_empty {
                            *self = Self::End;
                        }
                    }
                    None if unread.len() <= MAX_HEAD_BYTES => return Ok(BodyPiece::Incomplete),
                    None => return Err(InvalidFraming),
                },
                Self::ChunkEnd => match &**unread {
                    [b'\r', b'\n', ..] => {
                        unread.advance(2);
                        *self = Self::ChunkSize;
                    }
                    [b'\r'] => return Ok(BodyPiece::Incomplete),
                    _ => return Err(InvalidFraming),
                },
            }
        }
    }
}

/// Takes the available bytes, at most `left`, and reduces `left` by their number.
fn take_up_to(left: &mut u64, unread: &mut BytesMut) -> Bytes {
    let size = usize::try_from(*left).unwrap_or(usize::MAX).min(unread.len());
    *left -= size as u64;
    unread.split_to(size).freeze()
}

#[cfg(test)]
mod fuzz;
#[cfg(test)]
mod tests {
    use super::*;

    /// Decodes a body whose bytes arrive in chunks of `size`; `None` if it does not end.
    fn decode_body(
        mut framing: Framing,
        bytes: &[u8],
        size: usize,
    ) -> Result<Option<String>, InvalidFraming> {
        let (mut unread, mut data) = (BytesMut::new(), Vec::new());
        for piece in bytes.chunks(size) {
            unread.extend_from_slice(piece);
            loop {
                match framing.next_piece(&mut unread)? {
                    BodyPiece::Data(more) => data.extend_from_slice(&more),
                    BodyPiece::Incomplete => break,
                    BodyPiece::End => return Ok(Some(String::from_utf8(data).unwrap())),
                }
            }
        }
        Ok(None)
    }

    #[test]
    fn body_is_decoded_at_any_chunking() {
        let chunks = b"5\r\nhello\r\n6;x=y\r\n world\r\n0\r\nTrailer: 1\r\n\r\n";
        for size in 1..=chunks.len() {
            assert_eq!(
                decode_body(Framing::ChunkSize, chunks, size),
                Ok(Some("hello world".into())),
                "{size}"
            );
            assert_eq!(decode_body(Framing::ChunkSize, &chunks[..20], size), Ok(None), "{size}");
            assert_eq!(decode_body(Framing::Length(3), b"abcd", size), Ok(Some("abc".into())), "{size}");
            assert_eq!(decode_body(Framing::UntilClose, b"abcd", size), Ok(None), "{size}");
        }
        for bad in [&b"x\r\n"[..], b"2\r\nabc\r\n", b"-1\r\n", b"fffffffffffffffff\r\n"] {
            assert_eq!(decode_body(Framing::ChunkSize, bad, 64), Err(InvalidFraming));
        }
        assert_eq!(
            decode_body(Framing::ChunkSize, &vec![b'0'; MAX_HEAD_BYTES + 1], MAX_HEAD_BYTES + 1),
            Err(InvalidFraming)
        );
    }

    #[test]
    fn parse_head_waits_for_the_whole_head_and_yields_the_framing() {
        for (fields, framing) in [
            ("Transfer-Encoding: gzip, Chunked\r\nContent-Length: 3", Framing::ChunkSize),
            ("Content-Length: 3", Framing::Length(3)),
            ("Content-Type: text/event-stream", Framing::UntilClose),
        ] {
            let whole = format!("HTTP/1.1 200 OK\r\n{fields}\r\n\r\n");
            let mut unread = BytesMut::from(&whole.as_bytes()[..whole.len() - 1]);
            assert!(parse_head(&mut unread).unwrap().is_none());
            unread.extend_from_slice(b"\nbody");
            let found = parse_head(&mut unread).unwrap().unwrap();
            assert_eq!((found.status, Framing::from_head(&found)), (StatusCode::OK, framing));
            assert_eq!(unread, "body");
        }
        let endless = format!("HTTP/1.1 200 OK\r\nX: {}", "x".repeat(MAX_HEAD_BYTES));
        assert!(parse_head(&mut BytesMut::from(&*endless)).unwrap_err().contains("too long"));
        assert!(parse_head(&mut BytesMut::from("SSH-2.0-OpenSSH\r\n")).is_err());
    }

    #[test]
    fn encode_request_writes_http_1_1() {
        let mut headers = HeaderMap::new();
        headers.insert(header::HOST, "h:1".parse().unwrap());
        let request = |method, body| {
            let bytes = encode_request(&method, &Uri::from_static("/mcp?a=b"), &headers, body);
            String::from_utf8(bytes).unwrap()
        };
        assert_eq!(request(Method::GET, b""), "GET /mcp?a=b HTTP/1.1\r\nhost: h:1\r\n\r\n");
        let post = "POST /mcp?a=b HTTP/1.1\r\nhost: h:1\r\ncontent-length: 2\r\n\r\n{}";
        assert_eq!(request(Method::POST, b"{}"), post);
    }
}
