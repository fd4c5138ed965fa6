//! The kinds of HTTP response to a JSON-RPC request.

use std::fmt;
use std::pin::Pin;

use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::{Response, StatusCode};

use super::super::error::ConnectionError;
use super::super::notifications::NotificationDispatcher;
use super::super::response::RpcResponse;
use super::super::{MAX_MESSAGE_BYTES, ProtocolViolation, lenient, sse};
use super::body_message::body_message;
use super::client::{MAX_ERROR_BODY_BYTES, with_error_body_timeout};
use super::media_type::MediaType;
use super::pool::{CollectedBody, PooledBody};
use crate::resource::Reason;

/// The kind and state of a response.
pub(super) enum ResponseKind {
    /// The head of the response has not arrived yet.
    Sending(Pin<Box<dyn Future<Output = Result<Self, ConnectionError>> + Send>>),
    /// One JSON message.
    Json(CollectedBody),
    /// An event stream of JSON messages.
    Stream(PooledBody, MessageEvents),
    /// The response was read already; holds a message that was not returned yet.
    Done(Option<RpcResponse>),
    /// A response that holds no JSON-RPC message. Holds the reason why.
    Unusable(String),
}

impl ResponseKind {
    /// Determines the kind of a response with a success status. A body without a known media type is judged by its start;
    /// that of another kind, such as an HTML page to sign in, is quoted.
    pub(super) async fn from_response(
        response: Response<PooledBody>,
        notifications: &NotificationDispatcher,
    ) -> Self {
        let (head, body) = response.into_parts();
        let mut body = match MediaType::from_headers(&head.headers) {
            MediaType::EventStream => return Self::Stream(body, MessageEvents::new()),
            MediaType::Json => return Self::Json(CollectedBody::new(body)),
            MediaType::Other => CollectedBody::new(body),
        };
        let start = with_error_body_timeout(body.start()).await.and_then(Result::ok);
        let media_type = start.map_or(MediaType::Other, MediaType::from_start);
        if media_type != MediaType::Other {
            notifications.record_violation(ProtocolViolation::ContentType);
        }
        match media_type {
            MediaType::Json => Self::Json(body),
            MediaType::EventStream => match body.into_parts() {
                Some((body, start)) => {
                    let mut events = MessageEvents::new();
                    events.push(&start);
                    Self::Stream(body, events)
                }
                None => Self::Unusable("its body is empty".into()),
            },
            MediaType::Other if head.status == StatusCode::ACCEPTED => {
                Self::Unusable("the server accepted the request without a response (HTTP 202)".into())
            }
            MediaType::Other => {
                let text = with_error_body_timeout(body.read_to_end(MAX_ERROR_BODY_BYTES)).await;
                let text = text.and_then(Result::ok).unwrap_or_default();
                let quoted = body_message(&String::from_utf8_lossy(&text));
                let quoted = if quoted.is_empty() { String::new() } else { format!(": {quoted}") };
                let kind = head.headers.get(CONTENT_TYPE).and_then(|kind| kind.to_str().ok());
                let kind = kind.unwrap_or_default();
                let why = "which is neither JSON nor an event stream";
                Self::Unusable(format!("the response has content type {kind:?}, {why}{quoted}"))
            }
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

/// Decodes an event stream into its messages. An event may hold a batch of them.
#[derive(Debug)]
pub(super) struct MessageEvents {
    events: sse::SseDecoder,
    /// The messages of a batch that were not returned yet.
    batch: std::vec::IntoIter<Bytes>,
}

impl MessageEvents {
    pub(super) fn new() -> Self {
        Self { events: sse::SseDecoder::new(MAX_MESSAGE_BYTES), batch: Vec::new().into_iter() }
    }

    /// Returns the messages of a stream that continues another one.
    pub(super) fn continued_at(position: sse::StreamPosition) -> Self {
        let events = sse::SseDecoder::continued_at(position, MAX_MESSAGE_BYTES);
        Self { events, batch: Vec::new().into_iter() }
    }

    /// Returns the position after the last complete event.
    pub(super) fn position(&self) -> sse::StreamPosition {
        self.events.position()
    }

    /// Adds received bytes.
    pub(super) fn push(&mut self, bytes: &[u8]) {
        self.events.push(bytes);
    }

    /// Returns the next message; `None` if more bytes are needed.
    pub(super) fn next(&mut self) -> Result<Option<Bytes>, ConnectionError> {
        loop {
            if let Some(message) = self.batch.next() {
                return Ok(Some(message));
            }
            let event = self.events.next().map_err(|sse::EventTooLong| {
                let message = format!("the server sent an event longer than {} MiB", MAX_MESSAGE_BYTES >> 20);
                ConnectionError::new(Reason::ConnectFailed, message).into_dispatched()
            })?;
            match event.as_ref().and_then(lenient::batch_elements) {
                Some(batch) => self.batch = batch.into_iter(),
                None => return Ok(event),
            }
        }
    }
}
