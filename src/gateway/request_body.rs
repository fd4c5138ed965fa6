//! The body of an agent's request, and the id in one that is refused.

use std::fmt;

use bytes::{Bytes, BytesMut};
use http::StatusCode;
use http_body_util::BodyExt;
use hyper::body::Incoming;
use rmcp::model::ErrorCode;
use serde::Deserializer;
use serde::de::{IgnoredAny, MapAccess, Visitor};
use serde_json::value::RawValue;
use tokio::time::timeout;

use super::limits::{ExceededLimit, Limits};
use super::response::ResponseError;
use crate::wire::JsonRpcId;

/// The size up to which a longer body is read, and discarded, to find the request's id at its end.
const MAX_DISCARDED_BYTES: usize = 64 << 20;
/// The bytes at both ends of a longer body in which the id is looked for.
const KEPT_BYTES: usize = 4 << 10;

/// A refused request.
pub(super) struct RefusedRequest {
    pub(super) error: ResponseError,
    /// The request's id, if it was found.
    pub(super) id: Option<JsonRpcId>,
    /// The limit that it exceeded.
    pub(super) limit: Option<ExceededLimit>,
}

impl RefusedRequest {
    /// Refuses a request because of its HTTP headers or its size.
    pub(super) fn new(status: StatusCode, message: impl Into<String>, body: &[u8]) -> Self {
        let error = ResponseError::bad_request(ErrorCode::INVALID_REQUEST, message.into());
        Self { error: error.with_status(status), id: request_id(body), limit: None }
    }

    fn beyond(self, limit: ExceededLimit) -> Self {
        Self { limit: Some(limit), ..self }
    }
}

/// True for a body that is a JSON-RPC batch: a JSON array.
pub(super) fn is_batch(body: &[u8]) -> bool {
    body.trim_ascii_start().starts_with(b"[")
}

/// Reads the body of a request.
pub(super) async fn read(body: Incoming, limits: &Limits) -> Result<Bytes, RefusedRequest> {
    let time_limit = limits.body_timeout;
    timeout(time_limit, read_bounded(body, limits.max_body_bytes)).await.unwrap_or_else(|_| {
        let text = format!("the request body did not arrive within {} s", time_limit.as_secs_f64());
        let refused = RefusedRequest::new(StatusCode::REQUEST_TIMEOUT, text, b"");
        Err(refused.beyond(ExceededLimit::BodyTime))
    })
}

async fn read_bounded(mut body: Incoming, max_bytes: usize) -> Result<Bytes, RefusedRequest> {
    let mut text = BytesMut::new();
    let mut length = 0;
    // Usually the only one, used without a copy.
    let mut first = Bytes::new();
    while let Some(frame) = body.frame().await {
        let Ok(frame) = frame else {
            let message = "the request body could not be read";
            return Err(RefusedRequest::new(StatusCode::BAD_REQUEST, message, &text));
        };
        let Ok(data) = frame.into_data() else { continue };
        length += data.len();
        if length == data.len() {
            first = data;
            continue;
        }
        text.extend_from_slice(&std::mem::take(&mut first));
        text.extend_from_slice(&data);
        if length > MAX_DISCARDED_BYTES.max(max_bytes) {
            break;
        }
        // Agents write the id before or after the long part.
        if length > max_bytes && text.len() > 4 * KEPT_BYTES {
            let end = text.split_off(text.len() - KEPT_BYTES);
            text.truncate(KEPT_BYTES);
            text.extend_from_slice(&end);
        }
    }
    if length > max_bytes {
        let message = format!("the request body is larger than {} KiB (--max-request-size)", max_bytes >> 10);
        let refused = RefusedRequest::new(StatusCode::PAYLOAD_TOO_LARGE, message, &text);
        return Err(refused.beyond(ExceededLimit::BodySize));
    }
    Ok(if text.is_empty() { first } else { text.freeze() })
}

/// Returns the id of a request of which `text` may hold just the start followed by the end.
fn request_id(text: &[u8]) -> Option<JsonRpcId> {
    id_at_start(text).or_else(|| id_at_end(text))
}

fn id_at_start(text: &[u8]) -> Option<JsonRpcId> {
    let mut id = None;
    // The error of a text that ends early matters less than the id before it.
    let _ = serde_json::Deserializer::from_slice(text).deserialize_map(IdVisitor(&mut id));
    id
}

/// Finds the id in the last members of an object: `…,"jsonrpc":"2.0","id":7}`.
fn id_at_end(text: &[u8]) -> Option<JsonRpcId> {
    let tail = text.get(text.len().saturating_sub(KEPT_BYTES)..)?;
    let tail = String::from_utf8_lossy(tail);
    let mut members = tail.trim_end().strip_suffix('}')?.trim_end();
    if let Some((rest, version)) = members.rsplit_once(',')
        && let Some(value) = version.trim().strip_prefix("\"jsonrpc\"")
        && value.trim_start().strip_prefix(':').is_some_and(|value| value.trim() == "\"2.0\"")
    {
        members = rest;
    }
    let (_, last) = members.rsplit_once("\"id\"")?;
    let value = last.trim_start().strip_prefix(':')?;
    let id: &RawValue = serde_json::from_str(value).ok()?;
    is_id(id).then(|| JsonRpcId::from_raw(id))
}

fn is_id(value: &RawValue) -> bool {
    value.get().starts_with(|first: char| first == '"' || first == '-' || first.is_ascii_digit())
}

struct IdVisitor<'i>(&'i mut Option<JsonRpcId>);

impl<'de> Visitor<'de> for IdVisitor<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<M: MapAccess<'de>>(self, mut members: M) -> Result<(), M::Error> {
        while let Some(name) = members.next_key::<String>()? {
            if name == "id" {
                let id: &RawValue = members.next_value()?;
                *self.0 = is_id(id).then(|| JsonRpcId::from_raw(id));
            } else {
                members.next_value::<IgnoredAny>()?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn id_is_found_in_a_part_of_a_request() {
        for (text, expected) in [
            (r#"{"jsonrpc":"2.0","id":7,"method":"tools/call","params":{"a":"xxx"#, Some("7")),
            (r#"{"id" : "a-1","params":[[[["#, Some(r#""a-1""#)),
            (r#"{"method":"tools/call","params":{"a":"xxx…xxx"}},"jsonrpc":"2.0","id":7}"#, Some("7")),
            (r#"{"method":"x","params":{"a":"x~x"},"id": "b" , "jsonrpc" : "2.0" } "#, Some(r#""b""#)),
            (r#"{"method":"x","params":{"a":"x~x","id":5}}"#, None),
            (r#"{"method":"x","id":null}"#, None),
            (r#"{"method":"x","id":{}}"#, None),
            ("name=value&id=7", None),
            ("", None),
        ] {
            let id = request_id(text.as_bytes());
            let id = id.as_ref().map(|id| String::from_utf8_lossy(id.as_bytes()).into_owned());
            assert_eq!(id.as_deref(), expected, "{text}");
        }
    }
}
