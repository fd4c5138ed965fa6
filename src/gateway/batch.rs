//! JSON-RPC batches of agents, which only the protocol version 2025-03-26 has.
//!
//! Each message is handled like one that was posted alone, and all at the same time: cancellation, disconnects and
//! errors are the same. The response is a JSON array, or an event stream if one of the responses is.

use std::collections::HashSet;
use std::fmt;
use std::pin::Pin;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::stream::{self, FuturesUnordered, select_all};
use futures_util::{Stream, StreamExt};
use http::{HeaderMap, Response, StatusCode};
use rmcp::model::ErrorCode;
use serde::de::{Deserialize, Deserializer, Error, SeqAccess, Visitor};
use serde_json::value::RawValue;

use super::body::{self, ResponseBody, sse_event};
use super::era::request_era;
use super::handler::{ViewHandler, error_response};
use super::replica::AgentHttpRequest;
use super::response::ResponseError;
use crate::wire::{Envelope, Era, RequestParams};

/// The only protocol version with batches.
const BATCH_VERSION: &str = "2025-03-26";
/// The maximum number of messages in a batch.
const MAX_BATCH_MESSAGES: usize = 64;

/// A message that is being handled, with its place in the batch.
type PendingMessage = Pin<Box<dyn Future<Output = (usize, Response<ResponseBody>)> + Send>>;
type EventStream = Pin<Box<dyn Stream<Item = Bytes> + Send>>;

impl ViewHandler {
    /// Handles a batch.
    pub(super) async fn post_batch(
        self,
        path: &str,
        headers: HeaderMap,
        batch: &Bytes,
        accepts_stream: bool,
    ) -> Response<ResponseBody> {
        let messages = match self.check_batch(&headers, batch) {
            Ok(messages) => messages,
            Err(error) => return error_response(&error, None),
        };
        let (handler, headers, path) = (Arc::new(self), Arc::new(headers), Arc::<str>::from(path));
        let pending = messages.into_iter().enumerate().map(|(place, message)| -> PendingMessage {
            let (handler, headers, path) = (handler.clone(), headers.clone(), path.clone());
            Box::pin(async move {
                let request = AgentHttpRequest { path: &path, headers: &headers, body: &message };
                (place, handler.handle_message(&request, accepts_stream).await)
            })
        });
        join(pending.collect(), accepts_stream).await
    }

    /// Returns the messages of a batch that its session permits.
    fn check_batch(&self, headers: &HeaderMap, batch: &Bytes) -> Result<Vec<Bytes>, ResponseError> {
        // A modern version in the header is not one of a session.
        let era = request_era(headers, None, false, &RequestParams::default())?;
        let session =
            self.find_session(headers).map_err(|(status, text)| invalid(text).with_status(status))?;
        let version = if era == Era::Modern { "a later one" } else { session.protocol_version() };
        if version != BATCH_VERSION {
            let text = format!(
                "batches exist only in protocol version {BATCH_VERSION}, and this session has {version}: post each \
                 message alone"
            );
            return Err(invalid(text));
        }
        split(batch)
    }
}

fn invalid(reason: impl fmt::Display) -> ResponseError {
    ResponseError::bad_request(ErrorCode::INVALID_REQUEST, format!("Invalid request: {reason}"))
}

/// Splits a batch. A message in it that is malformed gets an error of its own later.
fn split(batch: &Bytes) -> Result<Vec<Bytes>, ResponseError> {
    let BoundedArray(messages) = serde_json::from_slice(batch).map_err(|error| match error.classify() {
        serde_json::error::Category::Data => invalid(error),
        _ => ResponseError::bad_request(ErrorCode::PARSE_ERROR, error.to_string()),
    })?;
    if messages.is_empty() {
        return Err(invalid("the batch is empty"));
    }
    let mut ids = HashSet::new();
    for envelope in messages.iter().filter_map(|message| Envelope::parse(message.get().as_bytes()).ok()) {
        if envelope.method.as_deref() == Some("initialize") {
            return Err(invalid("initialize must not be part of a batch"));
        }
        if let Some(id) = envelope.id.filter(|_| envelope.is_request())
            && !ids.insert(id.get())
        {
            return Err(invalid("two requests of the batch have the same id"));
        }
    }
    Ok(messages.iter().map(|message| batch.slice_ref(message.get().as_bytes())).collect())
}

/// A JSON array of at most [`MAX_BATCH_MESSAGES`] values.
struct BoundedArray<'a>(Vec<&'a RawValue>);

impl<'de: 'a, 'a> Deserialize<'de> for BoundedArray<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct ArrayVisitor;
        impl<'de> Visitor<'de> for ArrayVisitor {
            type Value = BoundedArray<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an array")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut array: A) -> Result<BoundedArray<'de>, A::Error> {
                let mut values = Vec::new();
                while let Some(value) = array.next_element()? {
                    if values.len() == MAX_BATCH_MESSAGES {
                        let text = format!("a batch has at most {MAX_BATCH_MESSAGES} messages");
                        return Err(Error::custom(text));
                    }
                    values.push(value);
                }
                Ok(BoundedArray(values))
            }
        }
        deserializer.deserialize_seq(ArrayVisitor)
    }
}

/// Joins the responses of a batch, in the order of its requests.
async fn join(mut pending: FuturesUnordered<PendingMessage>, accepts_stream: bool) -> Response<ResponseBody> {
    let mut messages = Vec::new();
    while let Some((place, response)) = pending.next().await {
        match response.into_body() {
            ResponseBody::Full(message) => messages.extend(message.map(|message| (place, message))),
            ResponseBody::Stream(events) if accepts_stream => {
                let complete = messages.into_iter().map(|(_, message)| sse_event(&message));
                return body::event_stream(stream::iter(complete).chain(join_events(events, pending)));
            }
            // A cancelled request, which has no response.
            ResponseBody::Stream(_) => {}
        }
    }
    if messages.is_empty() {
        return body::empty(StatusCode::ACCEPTED);
    }
    messages.sort_unstable_by_key(|(place, _)| *place);
    let messages: Vec<_> = messages.iter().map(|(_, message)| &**message).collect();
    body::json(StatusCode::OK, [&b"["[..], &messages.join(&b","[..]), b"]"].concat().into())
}

/// Returns the events of the response that is a stream, and those of the responses that follow, as they come.
fn join_events(
    first: EventStream,
    pending: FuturesUnordered<PendingMessage>,
) -> impl Stream<Item = Bytes> + Send {
    let others = pending.flat_map_unordered(None, |(_, response)| -> EventStream {
        match response.into_body() {
            ResponseBody::Full(message) => Box::pin(stream::iter(message.map(|message| sse_event(&message)))),
            ResponseBody::Stream(events) => events,
        }
    });
    select_all([first, Box::pin(others)])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn split_text(text: &str) -> Result<usize, i32> {
        let batch = Bytes::copy_from_slice(text.as_bytes());
        split(&batch).map(|messages| messages.len()).map_err(|error| {
            assert_eq!(error.status, 400);
            error.code().0
        })
    }

    #[test]
    fn batch_is_split_or_refused_as_a_whole() {
        let ping = |id: &str| format!(r#"{{"jsonrpc":"2.0","id":{id},"method":"ping"}}"#);
        let pings = |count: usize| {
            let pings: Vec<_> = (0..count).map(|id| ping(&id.to_string())).collect();
            format!("[{}]", pings.join(","))
        };
        let notification = r#"{"jsonrpc":"2.0","method":"notifications/initialized"}"#;
        let response = r#"{"jsonrpc":"2.0","id":1,"result":{}}"#;
        for (text, expected) in [
            (pings(1), Ok(1)),
            (pings(MAX_BATCH_MESSAGES), Ok(MAX_BATCH_MESSAGES)),
            (format!(" \n[{},{notification},{notification}] ", ping("1")), Ok(3)),
            (format!("[{},{}]", ping("1"), ping(r#""1""#)), Ok(2)),
            // The ids of responses are evenkeel's.
            (format!("[{response},{response},{}]", ping("1")), Ok(3)),
            ("[1,{},null]".to_owned(), Ok(3)),
            (pings(MAX_BATCH_MESSAGES + 1), Err(-32600)),
            ("[]".to_owned(), Err(-32600)),
            (format!("[{},{}]", ping("1"), ping("1")), Err(-32600)),
            (format!("[{}]", ping("1").replace("ping", "initialize")), Err(-32600)),
            ("[".to_owned(), Err(-32700)),
            ("[{]".to_owned(), Err(-32700)),
            ("[1] x".to_owned(), Err(-32700)),
            (format!("[{}]", "[".repeat(100_000)), Err(-32700)),
        ] {
            let head: String = text.chars().take(80).collect();
            assert_eq!(split_text(&text), expected, "{head}");
        }
    }
}
