use std::future::poll_fn;
use std::pin::Pin;
use std::task::Poll;

use bytes::{Buf, Bytes, BytesMut};
use http::response::Parts;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Response, StatusCode, Uri, header};
use httparse::Status;
use tokio::io::{AsyncRead, AsyncWriteExt, ReadBuf};

use super::super::ConnectionError;
use super::connect::ServerSocket;
use crate::resource::Reason;

/// The longest head of a response, and the longest line that frames a piece of its body.
const HEAD: usize = 64 * 1024;
/// The most headers of a response.
const HEADERS: usize = 100;
/// Read from the socket at once.
const READ: usize = 4096;

/// The body of a response that lasts as long as its connection, such as a stream of notices.
///
/// Read straight from the socket: an HTTP client's buffers, 25 KiB, would wait for hours beside each
/// server. This one holds what came and was not asked for yet, commonly nothing.
pub(super) struct StreamingBody {
    socket: ServerSocket,
    unread: BytesMut,
    framing: Framing,
}

/// How the end of a body is known (RFC 9112 §6.3), and where in it we are.
#[derive(Debug, PartialEq, Eq)]
enum Framing {
    /// A chunk's size comes next.
    Size,
    /// So much of a chunk is to come, and the end of its line.
    Chunk(u64),
    /// The end of a chunk's line comes next.
    ChunkEnd,
    /// So much is to come.
    Length(u64),
    /// Until the connection ends.
    Close,
    End,
}

/// What bytes that came amount to.
#[derive(Debug, PartialEq, Eq)]
enum Piece {
    Data(Bytes),
    /// Not enough to tell.
    More,
    End,
}

#[derive(Debug, PartialEq, Eq)]
struct BadFraming;

impl StreamingBody {
    /// Sends a request on a new connection and waits for the head of its response.
    pub(super) async fn ask(
        mut socket: ServerSocket,
        (method, target, headers): (&Method, &Uri, &HeaderMap),
        body: &[u8],
    ) -> Result<Response<Self>, ConnectionError> {
        let request = request(method, target, headers, body);
        let broken = |why: &dyn std::fmt::Display| {
            let message = format!("the connection broke before the answer: {why}");
            ConnectionError::new(Reason::ConnectFailed, message).dispatched()
        };
        socket.write_all(&request).await.map_err(|error| broken(&error))?;
        drop(request);
        let mut unread = BytesMut::new();
        let head = loop {
            if let Some(head) = head(&mut unread).map_err(|why| broken(&why))? {
                // Informational ones come before the real one (RFC 9110 §15.2).
                if !head.status.is_informational() {
                    break head;
                }
            } else if read(&mut socket, &mut unread).await.map_err(|error| broken(&error))? == 0 {
                return Err(broken(&"closed"));
            }
        };
        let framing = Framing::of(&head);
        Ok(Response::from_parts(head, Self { socket, unread, framing }))
    }

    /// The next piece, `None` at the end. Cancel safe.
    pub(super) async fn chunk(&mut self) -> Result<Option<Bytes>, ConnectionError> {
        let broken = |why: &dyn std::fmt::Display| {
            let message = format!("the connection broke within the answer: {why}");
            ConnectionError::new(Reason::ConnectFailed, message).dispatched()
        };
        loop {
            match self.framing.next(&mut self.unread) {
                Ok(Piece::Data(data)) => return Ok(Some(data)),
                Ok(Piece::End) => return Ok(None),
                Ok(Piece::More) => {}
                Err(BadFraming) => return Err(broken(&"its chunks are not HTTP")),
            }
            if read(&mut self.socket, &mut self.unread).await.map_err(|error| broken(&error))? == 0 {
                if self.framing == Framing::Close {
                    return Ok(None);
                }
                return Err(broken(&"closed"));
            }
        }
    }

    /// The start of the body, at most about `limit` bytes: for the message of an error.
    pub(super) async fn start(mut self, limit: usize) -> Bytes {
        let mut start = BytesMut::new();
        while start.len() < limit
            && let Ok(Some(chunk)) = self.chunk().await
        {
            start.extend_from_slice(&chunk);
        }
        start.freeze()
    }
}

impl std::fmt::Debug for StreamingBody {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Trickle({:?})", self.framing)
    }
}

/// Reads what has come, without a buffer that waits for it.
async fn read(socket: &mut ServerSocket, into: &mut BytesMut) -> std::io::Result<usize> {
    poll_fn(|context| {
        let mut space = [0; READ];
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

fn request(method: &Method, target: &Uri, headers: &HeaderMap, body: &[u8]) -> Vec<u8> {
    let path = target.path_and_query().map_or("/", http::uri::PathAndQuery::as_str);
    let mut request = format!("{method} {path} HTTP/1.1\r\n").into_bytes();
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

/// The head of a response, once it has come whole; takes it out of `unread`.
fn head(unread: &mut BytesMut) -> Result<Option<Parts>, String> {
    let mut space = [httparse::EMPTY_HEADER; HEADERS];
    let mut parsed = httparse::Response::new(&mut space);
    let length = match parsed.parse(unread) {
        Ok(Status::Complete(length)) => length,
        Ok(Status::Partial) if unread.len() > HEAD => return Err("its head is too long".to_owned()),
        Ok(Status::Partial) => return Ok(None),
        Err(error) => return Err(error.to_string()),
    };
    let (mut head, ()) = Response::new(()).into_parts();
    let code = parsed.code.unwrap_or_default();
    head.status = StatusCode::from_u16(code).map_err(|_| format!("{code} is not an HTTP status"))?;
    for field in parsed.headers {
        let name = HeaderName::from_bytes(field.name.as_bytes()).map_err(|error| error.to_string())?;
        let value = HeaderValue::from_bytes(field.value).map_err(|error| error.to_string())?;
        head.headers.append(name, value);
    }
    unread.advance(length);
    Ok(Some(head))
}

impl Framing {
    fn of(head: &Parts) -> Self {
        let value = |name| head.headers.get(name).and_then(|value: &HeaderValue| value.to_str().ok());
        let chunked = value(header::TRANSFER_ENCODING)
            .is_some_and(|encoding| encoding.to_ascii_lowercase().trim_end().ends_with("chunked"));
        if matches!(head.status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED) {
            Self::End
        } else if chunked {
            Self::Size
        } else {
            let length = value(header::CONTENT_LENGTH).and_then(|length| length.trim().parse().ok());
            length.map_or(Self::Close, Self::Length)
        }
    }

    /// The next piece of what came; takes it out of `unread`.
    fn next(&mut self, unread: &mut BytesMut) -> Result<Piece, BadFraming> {
        loop {
            match self {
                Self::End | Self::Length(0) => return Ok(Piece::End),
                _ if unread.is_empty() => return Ok(Piece::More),
                Self::Close => return Ok(Piece::Data(unread.split().freeze())),
                Self::Length(left) => return Ok(Piece::Data(take(left, unread))),
                Self::Size => match httparse::parse_chunk_size(unread) {
                    // What may follow the last chunk, trailers, says nothing of use.
                    Ok(Status::Complete((_, 0))) => *self = Self::End,
                    Ok(Status::Complete((line, size))) => {
                        unread.advance(line);
                        *self = Self::Chunk(size);
                    }
                    Ok(Status::Partial) if unread.len() <= HEAD => return Ok(Piece::More),
                    _ => return Err(BadFraming),
                },
                Self::Chunk(left) => {
                    let data = take(left, unread);
                    if *left == 0 {
                        *self = Self::ChunkEnd;
                    }
                    return Ok(Piece::Data(data));
                }
                Self::ChunkEnd => match &**unread {
                    [b'\r', b'\n', ..] => {
                        unread.advance(2);
                        *self = Self::Size;
                    }
                    [b'\r'] => return Ok(Piece::More),
                    _ => return Err(BadFraming),
                },
            }
        }
    }
}

/// As much as there is of what is left.
fn take(left: &mut u64, unread: &mut BytesMut) -> Bytes {
    let size = usize::try_from(*left).unwrap_or(usize::MAX).min(unread.len());
    *left -= size as u64;
    unread.split_to(size).freeze()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Everything that a body holds when its bytes come in pieces of a size; `None` if it never ends.
    fn body(mut framing: Framing, bytes: &[u8], size: usize) -> Result<Option<String>, BadFraming> {
        let (mut unread, mut data) = (BytesMut::new(), Vec::new());
        for piece in bytes.chunks(size) {
            unread.extend_from_slice(piece);
            loop {
                match framing.next(&mut unread)? {
                    Piece::Data(more) => data.extend_from_slice(&more),
                    Piece::More => break,
                    Piece::End => return Ok(Some(String::from_utf8(data).unwrap())),
                }
            }
        }
        Ok(None)
    }

    #[test]
    fn bodies_are_read_whole_however_their_bytes_come() {
        let chunks = b"5\r\nhello\r\n6;x=y\r\n world\r\n0\r\nTrailer: 1\r\n\r\n";
        for size in 1..=chunks.len() {
            assert_eq!(body(Framing::Size, chunks, size), Ok(Some("hello world".into())), "{size}");
            assert_eq!(body(Framing::Size, &chunks[..20], size), Ok(None), "{size}");
            assert_eq!(body(Framing::Length(3), b"abcd", size), Ok(Some("abc".into())), "{size}");
            assert_eq!(body(Framing::Close, b"abcd", size), Ok(None), "{size}");
        }
        for bad in [&b"x\r\n"[..], b"2\r\nabc\r\n", b"-1\r\n", b"fffffffffffffffff\r\n"] {
            assert_eq!(body(Framing::Size, bad, 64), Err(BadFraming));
        }
        assert_eq!(body(Framing::Size, &vec![b'0'; HEAD + 1], HEAD + 1), Err(BadFraming));
    }

    #[test]
    fn a_head_is_taken_once_it_is_whole_and_says_how_the_body_ends() {
        for (fields, framing) in [
            ("Transfer-Encoding: gzip, Chunked\r\nContent-Length: 3", Framing::Size),
            ("Content-Length: 3", Framing::Length(3)),
            ("Content-Type: text/event-stream", Framing::Close),
        ] {
            let whole = format!("HTTP/1.1 200 OK\r\n{fields}\r\n\r\n");
            let mut unread = BytesMut::from(&whole.as_bytes()[..whole.len() - 1]);
            assert!(head(&mut unread).unwrap().is_none());
            unread.extend_from_slice(b"\nrest");
            let found = head(&mut unread).unwrap().unwrap();
            assert_eq!((found.status, Framing::of(&found)), (StatusCode::OK, framing));
            assert_eq!(unread, "rest");
        }
        let endless = format!("HTTP/1.1 200 OK\r\nX: {}", "x".repeat(HEAD));
        assert!(head(&mut BytesMut::from(&*endless)).unwrap_err().contains("too long"));
        assert!(head(&mut BytesMut::from("SSH-2.0-OpenSSH\r\n")).is_err());
    }

    #[test]
    fn a_request_is_written_as_http_wants_it() {
        let mut headers = HeaderMap::new();
        headers.insert(header::HOST, "h:1".parse().unwrap());
        let request = |method, body| {
            let bytes = request(&method, &Uri::from_static("/mcp?a=b"), &headers, body);
            String::from_utf8(bytes).unwrap()
        };
        assert_eq!(request(Method::GET, b""), "GET /mcp?a=b HTTP/1.1\r\nhost: h:1\r\n\r\n");
        let post = "POST /mcp?a=b HTTP/1.1\r\nhost: h:1\r\ncontent-length: 2\r\n\r\n{}";
        assert_eq!(request(Method::POST, b"{}"), post);
    }
}
