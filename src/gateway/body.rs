//! HTTP responses: one JSON message, a text, or an event stream.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use futures_util::Stream;
use http::header::{CACHE_CONTROL, CONTENT_TYPE, RETRY_AFTER};
use http::{HeaderName, HeaderValue, Response, StatusCode};
use http_body::{Frame, SizeHint};

/// The body of a response.
pub(super) enum ResponseBody {
    Full(Option<Bytes>),
    Stream(Pin<Box<dyn Stream<Item = Bytes> + Send>>),
}

impl http_body::Body for ResponseBody {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        match &mut *self {
            Self::Full(bytes) => Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes)))),
            Self::Stream(stream) => {
                stream.as_mut().poll_next(cx).map(|bytes| bytes.map(|bytes| Ok(Frame::data(bytes))))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        matches!(self, Self::Full(None))
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Full(bytes) => SizeHint::with_exact(bytes.as_ref().map_or(0, |bytes| bytes.len() as u64)),
            Self::Stream(_) => SizeHint::default(),
        }
    }
}

/// An SSE comment. It shows clients and proxies that a quiet stream is alive.
pub(super) const KEEP_ALIVE_COMMENT: Bytes = Bytes::from_static(b":\n\n");

/// Returns a response without a body.
pub(super) fn empty(status: StatusCode) -> Response<ResponseBody> {
    build_response(status, ResponseBody::Full(None), None)
}

/// Returns a response with one JSON message.
pub(super) fn json(status: StatusCode, message: Bytes) -> Response<ResponseBody> {
    build_response(
        status,
        ResponseBody::Full(Some(message)),
        Some(HeaderValue::from_static("application/json")),
    )
}

/// Returns a plain-text response, for requests that are not MCP.
pub(super) fn plain_text(status: StatusCode, text: impl Into<Bytes>) -> Response<ResponseBody> {
    let text = ResponseBody::Full(Some(text.into()));
    build_response(status, text, Some(HeaderValue::from_static("text/plain; charset=utf-8")))
}

/// Returns the response during shutdown: 503 with `Retry-After: 1`, because the next process starts soon.
pub(super) fn service_unavailable() -> Response<ResponseBody> {
    let mut response = plain_text(StatusCode::SERVICE_UNAVAILABLE, "evenkeel is shutting down\n");
    response.headers_mut().insert(RETRY_AFTER, HeaderValue::from_static("1"));
    response
}

/// Returns an event stream (SSE).
pub(super) fn event_stream(stream: impl Stream<Item = Bytes> + Send + 'static) -> Response<ResponseBody> {
    let content_type = HeaderValue::from_static("text/event-stream");
    let mut response =
        build_response(StatusCode::OK, ResponseBody::Stream(Box::pin(stream)), Some(content_type));
    let headers = response.headers_mut();
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    // Proxies must not buffer events.
    headers.insert(HeaderName::from_static("x-accel-buffering"), HeaderValue::from_static("no"));
    response
}

/// Returns the response to a cancelled request: an event stream that ends without a message.
pub(super) fn empty_stream() -> Response<ResponseBody> {
    event_stream(futures_util::stream::empty())
}

/// Encodes one message as an SSE event.
pub(super) fn sse_event(message: &[u8]) -> Bytes {
    let mut event = Vec::with_capacity(message.len() + 16);
    // A raw line break in JSON is white space, but it would end the SSE field.
    for line in message.split(|byte| matches!(byte, b'\n' | b'\r')) {
        event.extend_from_slice(b"data: ");
        event.extend_from_slice(line);
        event.push(b'\n');
    }
    event.push(b'\n');
    event.into()
}

fn build_response(
    status: StatusCode,
    body: ResponseBody,
    content_type: Option<HeaderValue>,
) -> Response<ResponseBody> {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    if let Some(content_type) = content_type {
        response.headers_mut().insert(CONTENT_TYPE, content_type);
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sse_event_splits_line_ends_in_its_message() {
        assert_eq!(sse_event(b"{}"), "data: {}\n\n");
        assert_eq!(sse_event(b"{\r\n\"a\":1\n}"), "data: {\ndata: \ndata: \"a\":1\ndata: }\n\n");
    }
}
