//! Fuzz test of the reader of responses, which reads from the socket itself. CONTRIBUTING.md says how to run it for longer.

use super::*;
use crate::wire::fuzz::{compose, cut};

const FRAGMENTS: &[&str] = &[
    "HTTP/1.1 200 OK\r\n",
    "HTTP/1.0 200 OK\r\n",
    "HTTP/1.1 204 \r\n",
    "HTTP/1.1 100 Continue\r\n\r\n",
    "HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n",
    "Content-Length: 3\r\n",
    "Content-Length: ",
    "Transfer-Encoding: chunked\r\n",
    "Transfer-Encoding: gzip, Chunked\r\n",
    "Content-Type: text/event-stream\r\n",
    "X : y\r\n",
    "X: a\r\n b\r\n",
    "\r\n",
    "\n",
    "\r",
    "0",
    "0\r\n",
    "3\r\nabc\r\n",
    "a;x=y\r\n",
    "A",
    "5",
    "ffffffffffffffff\r\n",
    "+3\r\n",
    "0\r\n\r\n",
    "0\r\nTrailer: 1\r\n\r\n",
    "data: x\n\n",
    "abc",
];

/// A response that was decoded from bytes instead of a socket.
#[derive(Debug, Default, PartialEq, Eq)]
struct DecodedResponse {
    status: Option<StatusCode>,
    body: Vec<u8>,
    is_complete: bool,
    error: Option<String>,
}

/// Decodes a response that arrives in pieces.
fn decode(pieces: &[&[u8]]) -> DecodedResponse {
    let (mut unread, mut framing, mut decoded) = (BytesMut::new(), None, DecodedResponse::default());
    for piece in pieces {
        unread.extend_from_slice(piece);
        while framing.is_none() {
            match parse_head(&mut unread) {
                Ok(Some(head)) if head.status.is_informational() => {}
                Ok(Some(head)) => {
                    decoded.status = Some(head.status);
                    framing = Some(Framing::from_head(&head));
                }
                Ok(None) => break,
                Err(reason) => return DecodedResponse { error: Some(reason), ..decoded },
            }
        }
        while let Some(framing) = &mut framing {
            match framing.next_piece(&mut unread) {
                Ok(BodyPiece::Data(data)) => {
                    assert!(!data.is_empty(), "a piece without data would be the end");
                    decoded.body.extend_from_slice(&data);
                }
                Ok(BodyPiece::Incomplete) => break,
                Ok(BodyPiece::End) => return DecodedResponse { is_complete: true, ..decoded },
                Err(InvalidFraming) => {
                    return DecodedResponse { error: Some("invalid chunk framing".into()), ..decoded };
                }
            }
        }
        assert!(unread.len() <= MAX_HEAD_BYTES + piece.len(), "{} bytes are held", unread.len());
    }
    decoded
}

/// Encodes a response with a body in chunks, whose form depends on the input, and returns it with the body.
fn encode_chunked(input: &[u8]) -> (Vec<u8>, Vec<u8>) {
    let (form, body) = input.split_first().unwrap_or((&0, &[]));
    let mut response = Vec::new();
    if form & 1 != 0 {
        response.extend_from_slice(b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n");
    }
    response.extend_from_slice(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n");
    let extension = if form & 2 != 0 { ";a=\"b\"" } else { "" };
    for chunk in cut(body, input) {
        let size = if form & 4 != 0 { format!("{:X}", chunk.len()) } else { format!("{:04x}", chunk.len()) };
        response.extend_from_slice(format!("{size}{extension}\r\n").as_bytes());
        response.extend_from_slice(chunk);
        response.extend_from_slice(b"\r\n");
    }
    response.extend_from_slice(if form & 8 != 0 { b"0\r\n\r\n" } else { b"0\r\nTrailer: 1\r\n\r\n" });
    (response, body.to_vec())
}

#[test]
fn response_is_decoded_to_what_was_encoded_wherever_it_is_cut() {
    bolero::check!().for_each(|input: &[u8]| {
        let (response, body) = encode_chunked(input);
        let expected = DecodedResponse { status: Some(StatusCode::OK), body, is_complete: true, error: None };
        for pieces in [vec![&*response], response.chunks(1).collect(), cut(&response, input)] {
            assert_eq!(decode(&pieces), expected);
        }
        for text in [input.to_vec(), compose(input, FRAGMENTS)] {
            let whole = decode(&[&*text]);
            for pieces in [text.chunks(1).collect(), cut(&text, input)] {
                assert_eq!(decode(&pieces), whole, "{}", text.escape_ascii());
            }
        }
    });
}
