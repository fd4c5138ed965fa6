//! The media type of a response: by its Content-Type, or else by the start of its body.

use http::HeaderMap;
use http::header::CONTENT_TYPE;

/// The media type of a body, as far as MCP distinguishes them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum MediaType {
    /// A JSON text.
    Json,
    /// Server-sent events.
    EventStream,
    /// Anything else, or unknown.
    Other,
}

impl MediaType {
    /// Reads the Content-Type (RFC 9110 §8.3): its case and its parameters do not matter.
    pub(super) fn from_headers(headers: &HeaderMap) -> Self {
        let value = headers.get(CONTENT_TYPE).map(http::HeaderValue::as_bytes).unwrap_or_default();
        let essence = value.split(|byte| matches!(byte, b';' | b',')).next().unwrap_or_default();
        let is = |expected: &[u8]| essence.trim_ascii().eq_ignore_ascii_case(expected);
        if is(b"text/event-stream") {
            Self::EventStream
        } else if is(b"application/json") {
            Self::Json
        } else {
            Self::Other
        }
    }

    /// Guesses the type of a body that has another Content-Type, or none.
    pub(super) fn from_start(body: &[u8]) -> Self {
        let body = body.strip_prefix(b"\xef\xbb\xbf").unwrap_or(body).trim_ascii_start();
        let fields: [&[u8]; 4] = [b"data:", b"event:", b"id:", b"retry:"];
        match body.first() {
            Some(b'{' | b'[') => Self::Json,
            Some(_) if fields.into_iter().any(|field| body.starts_with(field)) => Self::EventStream,
            _ => Self::Other,
        }
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    #[test]
    fn type_is_read_from_the_content_type() {
        for (value, expected) in [
            ("application/json", MediaType::Json),
            ("Application/JSON;charset=UTF-8", MediaType::Json),
            (" application/json ; charset=utf-8", MediaType::Json),
            ("application/json, application/json", MediaType::Json),
            ("TEXT/Event-Stream; charset=utf-8", MediaType::EventStream),
            ("application/jsonp", MediaType::Other),
            ("text/event-stream-x", MediaType::Other),
            ("text/html", MediaType::Other),
            ("", MediaType::Other),
        ] {
            let headers = HeaderMap::from_iter([(CONTENT_TYPE, HeaderValue::from_static(value))]);
            assert_eq!(MediaType::from_headers(&headers), expected, "{value}");
        }
        assert_eq!(MediaType::from_headers(&HeaderMap::new()), MediaType::Other);
    }

    #[test]
    fn type_is_guessed_from_the_start_of_the_body() {
        for (start, expected) in [
            ("{\"jsonrpc\"", MediaType::Json),
            ("\u{feff} \r\n[", MediaType::Json),
            ("data: {", MediaType::EventStream),
            ("\nevent: message", MediaType::EventStream),
            ("<!DOCTYPE html>", MediaType::Other),
            ("database error", MediaType::Other),
            ("", MediaType::Other),
        ] {
            assert_eq!(MediaType::from_start(start.as_bytes()), expected, "{start}");
        }
    }
}
