//! What a response to a request holds.

use std::fmt;
use std::pin::Pin;

use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::{HeaderMap, Response, StatusCode};

use super::super::error::ConnectionError;
use super::super::response::RpcResponse;
use super::super::{MESSAGE_LIMIT, sse};
use super::pool::{CollectedBody, PooledBody};
use crate::resource::Reason;

/// What a response consists of, as far as it is known.
pub(super) enum ResponseKind {
    /// The head of the response has not come yet.
    Sending(Pin<Box<dyn Future<Output = Result<Self, ConnectionError>> + Send>>),
    /// One JSON message.
    Json(CollectedBody),
    /// Messages one by one.
    Stream(PooledBody, sse::SseDecoder),
    /// Read already.
    Done(Option<RpcResponse>),
    /// Not something that holds an answer.
    Unusable(String),
}

impl ResponseKind {
    /// What a response that says success holds.
    pub(super) fn from_response(response: Response<PooledBody>) -> Self {
        let (head, body) = response.into_parts();
        let kind = head.headers.get(CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default();
        if is_event_stream(&head.headers) {
            Self::Stream(body, sse::SseDecoder::new(MESSAGE_LIMIT))
        } else if kind.starts_with("application/json") {
            Self::Json(CollectedBody::new(body))
        } else if head.status == StatusCode::ACCEPTED {
            Self::Unusable("the server took the request without answering it (HTTP 202)".into())
        } else {
            Self::Unusable(format!(
                "the server answered with {kind:?}, which is neither JSON nor an event stream"
            ))
        }
    }
}

impl fmt::Debug for ResponseKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Sending(_) => "Sending",
            Self::Json(_) => "Json",
            Self::Stream(..) => "Stream",
            Self::Done(_) => "Done",
            Self::Unusable(_) => "Unusable",
        })
    }
}

/// True if a response is an event stream.
pub(super) fn is_event_stream(headers: &HeaderMap) -> bool {
    headers.get(CONTENT_TYPE).is_some_and(|kind| kind.as_bytes().starts_with(b"text/event-stream"))
}

/// Takes the next message out of an event stream; `None` if more bytes are needed.
pub(super) fn next_event(events: &mut sse::SseDecoder) -> Result<Option<Bytes>, ConnectionError> {
    events.next().map_err(|sse::EventTooLong| {
        let message = format!("the server sent an event longer than {} MiB", MESSAGE_LIMIT >> 20);
        ConnectionError::new(Reason::ConnectFailed, message).into_dispatched()
    })
}
