//! What a response to a request holds.

use std::fmt;
use std::pin::Pin;

use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::{HeaderMap, Response, StatusCode};

use super::super::error::LinkError;
use super::super::reply::Reply;
use super::super::{MESSAGE_LIMIT, sse};
use super::connection::{Body, Collecting};
use crate::resource::Reason;

/// What a response consists of, as far as it is known.
pub(super) enum Form {
    /// The head of the response has not come yet.
    Sending(Pin<Box<dyn Future<Output = Result<Self, LinkError>> + Send>>),
    /// One JSON message.
    Json(Collecting),
    /// Messages one by one.
    Stream(Body, sse::Events),
    /// Read already.
    Done(Option<Reply>),
    /// Not something that holds an answer.
    Unusable(String),
}

impl Form {
    /// What a response that says success holds.
    pub(super) fn of(response: Response<Body>) -> Self {
        let (head, body) = response.into_parts();
        let kind = head.headers.get(CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default();
        if is_event_stream(&head.headers) {
            Self::Stream(body, sse::Events::new(MESSAGE_LIMIT))
        } else if kind.starts_with("application/json") {
            Self::Json(Collecting::new(body))
        } else if head.status == StatusCode::ACCEPTED {
            Self::Unusable("the server took the request without answering it (HTTP 202)".into())
        } else {
            Self::Unusable(format!(
                "the server answered with {kind:?}, which is neither JSON nor an event stream"
            ))
        }
    }
}

impl fmt::Debug for Form {
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
pub(super) fn next_event(events: &mut sse::Events) -> Result<Option<Bytes>, LinkError> {
    events.next().map_err(|sse::TooLong| {
        let message = format!("the server sent an event longer than {} MiB", MESSAGE_LIMIT >> 20);
        LinkError::new(Reason::ConnectFailed, message).dispatched()
    })
}
