use std::time::Duration;

use http::HeaderValue;

use super::{compose, cut};
use crate::wire::sse::{SseDecoder, StreamPosition};

const FRAGMENTS: &[&str] = &[
    "data",
    "data:",
    "data: ",
    "data:  x",
    "datax: ",
    "id",
    "id: ",
    "id:7",
    "retry: ",
    "retry:",
    "100",
    "event: message",
    ": comment",
    ":",
    " ",
    "{\"jsonrpc\":\"2.0\"}",
    "a",
    "\n",
    "\n",
    "\r",
    "\r\n",
    "\n\n",
    "\r\n\r\n",
    "\u{0}",
    "\u{feff}",
    "é",
];

/// The events and the position that a decoder returns for a stream.
#[derive(Debug, PartialEq, Eq)]
struct Decoded {
    events: Vec<Vec<u8>>,
    position: StreamPosition,
}

/// Decodes a stream that arrives in pieces. A decoder with a lower limit holds less, and fails instead.
fn decode(pieces: &[&[u8]], limit: usize) -> Option<Decoded> {
    let mut decoder = SseDecoder::new(limit);
    let mut events = Vec::new();
    for piece in pieces {
        decoder.push(piece);
        while let Some(event) = decoder.next().ok()? {
            // One line end for each further line.
            assert!(event.len() <= 2 * limit, "{} bytes in an event", event.len());
            events.push(event.to_vec());
        }
        assert!(decoder.held_bytes() <= 3 * limit, "{} bytes are held", decoder.held_bytes());
    }
    Some(Decoded { events, position: decoder.position() })
}

/// Interprets a stream as the HTML standard describes it, line by line. Events without data count as none.
fn interpret(text: &[u8]) -> Decoded {
    let mut rest = text.strip_prefix("\u{feff}".as_bytes()).unwrap_or(text);
    let mut decoded = Decoded { events: Vec::new(), position: StreamPosition::default() };
    let (mut data, mut id): (Vec<u8>, Option<Vec<u8>>) = (Vec::new(), None);
    while let Some(end) = rest.iter().position(|byte| matches!(byte, b'\n' | b'\r')) {
        let (line, more) = rest.split_at(end);
        // A CR at the end may be the first byte of a CR LF.
        if more == b"\r" {
            break;
        }
        rest = more.strip_prefix(b"\r\n").unwrap_or(&more[1..]);
        if line.is_empty() {
            if let Some(id) = id.take() {
                let id = Some(id).filter(|id| !id.is_empty() && id.len() <= 1024);
                decoded.position.last_event_id = id.and_then(|id| HeaderValue::from_bytes(&id).ok());
            }
            data.pop();
            if !data.is_empty() {
                decoded.events.push(std::mem::take(&mut data));
            }
            continue;
        }
        let colon = line.iter().position(|byte| *byte == b':').unwrap_or(line.len());
        let (name, value) = line.split_at(colon);
        let value = value.strip_prefix(b":").unwrap_or(value);
        let value = value.strip_prefix(b" ").unwrap_or(value);
        match name {
            b"data" => {
                data.extend_from_slice(value);
                data.push(b'\n');
            }
            b"id" if !value.contains(&0) => id = Some(value.to_vec()),
            b"retry" if value.iter().all(u8::is_ascii_digit) => {
                if let Ok(millis) = std::str::from_utf8(value).unwrap().parse() {
                    decoded.position.retry = Some(Duration::from_millis(millis));
                }
            }
            _ => {}
        }
    }
    decoded
}

#[test]
fn event_stream_is_decoded_as_the_standard_says_wherever_it_is_cut() {
    bolero::check!().for_each(|input: &[u8]| {
        for text in [input.to_vec(), compose(input, FRAGMENTS)] {
            let expected = interpret(&text);
            for pieces in [vec![&*text], text.chunks(1).collect(), cut(&text, input)] {
                assert_eq!(decode(&pieces, usize::MAX / 4).unwrap(), expected, "{}", text.escape_ascii());
                let _ = decode(&pieces, 32);
            }
        }
    });
}
