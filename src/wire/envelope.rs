use std::borrow::Cow;
use std::fmt;

use bytes::Bytes;
use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;

use super::json_edit::json_string;
use super::lenient::id_number;

/// A JSON-RPC 2.0 message whose parts are the bytes as received.
///
/// A request has `id` and `method`, a notification only `method`, a response `id` and one of `result` and
/// `error`. Unknown members are ignored.
///
/// ```
/// use evenkeel::wire::Envelope;
///
/// let message = Envelope::parse(br#"{"jsonrpc":"2.0","id":1,"method":"ping"}"#)?;
/// assert!(message.is_request());
/// assert_eq!(message.method.as_deref(), Some("ping"));
/// # Ok::<(), evenkeel::wire::MalformedMessage>(())
/// ```
#[derive(Debug, Deserialize)]
pub struct Envelope<'a> {
    /// `"2.0"`.
    #[serde(borrow)]
    pub jsonrpc: Option<Cow<'a, str>>,
    /// A string or a number, raw. `null` in a response counts as absent; a request with it is rejected.
    #[serde(borrow, default, deserialize_with = "raw_member")]
    pub id: Option<&'a RawValue>,
    /// The method of a request or notification.
    #[serde(borrow, default)]
    pub method: Option<Cow<'a, str>>,
    /// The parameters: an object.
    #[serde(borrow, default)]
    pub params: Option<&'a RawValue>,
    /// The result.
    #[serde(borrow, default)]
    pub result: Option<&'a RawValue>,
    /// The error: an object with `code` and `message`.
    #[serde(borrow, default)]
    pub error: Option<&'a RawValue>,
}

/// The reason why a message is not a valid JSON-RPC message.
#[derive(Debug, thiserror::Error)]
pub enum MalformedMessage {
    /// Not JSON, or not an object with members of the right types.
    #[error("a message that is not valid JSON-RPC: {0}")]
    Json(#[from] serde_json::Error),
    /// JSON, but not a request, notification or response.
    #[error("a message that is not valid JSON-RPC 2.0: {0}")]
    NotJsonRpc(&'static str),
}

impl<'a> Envelope<'a> {
    /// Parses one message. Rejects batches.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, MalformedMessage> {
        let mut envelope: Self = serde_json::from_slice(bytes)?;
        if envelope.jsonrpc.as_deref() != Some("2.0") {
            return Err(MalformedMessage::NotJsonRpc("\"jsonrpc\" must be \"2.0\""));
        }
        if let Some(id) = envelope.id {
            match id.get().as_bytes().first() {
                Some(b'"' | b'-' | b'0'..=b'9') => {}
                // The error of a message whose id could not be read.
                Some(b'n') if envelope.method.is_none() => envelope.id = None,
                _ => return Err(MalformedMessage::NotJsonRpc("\"id\" must be a string or a number")),
            }
        }
        if let Some(params) = envelope.params
            && !params.get().starts_with('{')
        {
            return Err(MalformedMessage::NotJsonRpc("\"params\" must be an object"));
        }
        let outcomes = usize::from(envelope.result.is_some()) + usize::from(envelope.error.is_some());
        match (&envelope.method, outcomes) {
            (Some(_), 0) | (None, 1) => Ok(envelope),
            _ => Err(MalformedMessage::NotJsonRpc(
                "it needs exactly one of \"method\", \"result\" and \"error\"",
            )),
        }
    }

    /// True for a request: it has a method and an id.
    pub fn is_request(&self) -> bool {
        self.method.is_some() && self.id.is_some()
    }

    /// True for a notification: it has a method and no id.
    pub fn is_notification(&self) -> bool {
        self.method.is_some() && self.id.is_none()
    }
}

/// Reads a member that is present, also if it is null.
pub(super) fn raw_member<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<&'de RawValue>, D::Error> {
    <&RawValue>::deserialize(deserializer).map(Some)
}

/// A JSON-RPC id as it was sent: `1` and `"1"` are different.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct JsonRpcId(Bytes);

impl JsonRpcId {
    /// Copies the raw text of an id that [`Envelope::parse`] accepted.
    pub fn from_raw(raw: &RawValue) -> Self {
        Self(Bytes::copy_from_slice(raw.get().as_bytes()))
    }

    /// Returns a numeric id.
    pub fn from_number(number: u64) -> Self {
        Self(number.to_string().into())
    }

    /// Returns an id that is a string.
    pub fn from_text(text: &str) -> Self {
        Self(json_string(text).into())
    }

    /// Returns the number, if the id is one.
    pub(super) fn number(&self) -> Option<u64> {
        id_number(std::str::from_utf8(&self.0).ok()?).map(|(number, _)| number)
    }

    /// Returns the JSON text.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for JsonRpcId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&String::from_utf8_lossy(&self.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parse_distinguishes_request_notification_and_response() {
        let request = Envelope::parse(br#"{"jsonrpc":"2.0","id":1,"method":"m","params":{"a": 1}}"#).unwrap();
        assert!(request.is_request());
        assert_eq!(request.params.unwrap().get(), r#"{"a": 1}"#);
        let notification = Envelope::parse(br#"{"jsonrpc":"2.0","method":"m"}"#).unwrap();
        assert!(notification.is_notification());
        let error = Envelope::parse(br#"{"jsonrpc":"2.0","id":null,"error":{}}"#).unwrap();
        assert!(error.id.is_none() && error.error.is_some());
        let response = Envelope::parse(br#"{"result":{},"id":"x","jsonrpc":"2.0","extra":[]}"#).unwrap();
        assert_eq!(
            JsonRpcId::from_raw(response.id.unwrap()),
            JsonRpcId::from_raw(&RawValue::from_string("\"x\"".into()).unwrap())
        );
    }

    #[test]
    fn parse_rejects_anything_else() {
        for text in [
            "",
            "[]",
            "1",
            "{}",
            r#"{"jsonrpc":"1.0","method":"m"}"#,
            r#"{"jsonrpc":"2.0"}"#,
            r#"{"jsonrpc":"2.0","id":{},"method":"m"}"#,
            r#"{"jsonrpc":"2.0","id":[1],"method":"m"}"#,
            r#"{"jsonrpc":"2.0","id":true,"method":"m"}"#,
            r#"{"jsonrpc":"2.0","id":null,"method":"m"}"#,
            r#"{"jsonrpc":"2.0","method":"m","id": null}"#,
            r#"{"jsonrpc":"2.0","method":"m","params":[1]}"#,
            r#"{"jsonrpc":"2.0","method":"m","result":{}}"#,
            r#"{"jsonrpc":"2.0","id":1,"result":{},"error":{}}"#,
            r#"[{"jsonrpc":"2.0","id":1,"method":"m"}]"#,
            r#"{"jsonrpc":"2.0","id":1,"method":"m"} x"#,
        ] {
            assert!(Envelope::parse(text.as_bytes()).is_err(), "{text}");
        }
    }
}
