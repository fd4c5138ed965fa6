use std::borrow::Cow;

use bytes::Bytes;
use rmcp::model::ErrorCode;
use serde::Deserialize;
use serde_json::json;
use serde_json::value::RawValue;

use super::envelope::{Envelope, JsonRpcId, MalformedMessage, raw_member};
use super::input_request::{InputMethod, InputRequest};
use super::json_edit::{JsonEdit, Members, rewrite};
use super::lenient::{id_number, mend_encoding, request_id_of_unreadable};
use super::response::RpcResponse;
use super::{ListKind, ProtocolViolation};

/// The request that opens a notification stream of a modern server.
pub(super) const LISTEN_METHOD: &str = "subscriptions/listen";

/// The maximum length of the id of a server's request in bytes.
const MAX_ID_BYTES: usize = 1024;

/// The kind of a message from a server, as far as evenkeel distinguishes it.
#[derive(Debug)]
pub(super) enum ServerMessage {
    /// A response to a request of evenkeel, with the id of that request if it is a number.
    Response(Option<u64>, RpcResponse),
    /// Progress of the request with this id.
    Progress(u64),
    /// The server acknowledged the listen request with this id.
    ListenAcknowledged(u64),
    /// The server cancelled the request with this id: one of its own, or a listen request of evenkeel.
    Cancelled(JsonRpcId),
    /// A list changed.
    ListChanged(ListKind),
    /// The resource with this URI changed.
    ResourceUpdated(String),
    /// The URL of the elicitation with this id was opened and all is done there.
    ElicitationComplete(String),
    /// A log message.
    LogMessage,
    /// Any other notification.
    OtherNotification,
    /// A request of the server for input of an agent, with its id.
    InputRequest(JsonRpcId, InputRequest),
    /// Any other request of the server, with its id and method.
    Request(JsonRpcId, String),
    /// Text that is not a JSON-RPC message; with the id of the request that it responds to, if that can be told.
    Unreadable(Option<u64>),
}

/// A message as it was read.
#[derive(Debug)]
pub(super) struct ReadMessage {
    /// The text, which was mended if it was not UTF-8.
    pub(super) text: Bytes,
    /// The kind of the message.
    pub(super) kind: ServerMessage,
    /// The violation of the protocol that was tolerated.
    pub(super) violation: Option<ProtocolViolation>,
}

/// The members of a message, raw. A member that is null is `Some`, unlike in [`Envelope`].
#[derive(Deserialize)]
struct RawEnvelope<'a> {
    #[serde(borrow, default, deserialize_with = "raw_member")]
    jsonrpc: Option<&'a RawValue>,
    #[serde(borrow, default, deserialize_with = "raw_member")]
    id: Option<&'a RawValue>,
    #[serde(borrow, default, deserialize_with = "raw_member")]
    method: Option<&'a RawValue>,
    #[serde(borrow, default, deserialize_with = "raw_member")]
    params: Option<&'a RawValue>,
    #[serde(borrow, default, deserialize_with = "raw_member")]
    result: Option<&'a RawValue>,
    #[serde(borrow, default, deserialize_with = "raw_member")]
    error: Option<&'a RawValue>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ProgressParams<'a> {
    #[serde(borrow)]
    progress_token: &'a RawValue,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct CancelledParams<'a> {
    #[serde(borrow)]
    request_id: &'a RawValue,
}

#[derive(Deserialize)]
struct ResourceUpdatedParams {
    uri: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ElicitationCompleteParams {
    elicitation_id: String,
}

#[derive(Deserialize)]
struct AcknowledgedParams<'a> {
    #[serde(borrow, rename = "_meta")]
    meta: SubscriptionMeta<'a>,
}

#[derive(Deserialize)]
struct SubscriptionMeta<'a> {
    #[serde(borrow, rename = "io.modelcontextprotocol/subscriptionId")]
    id: &'a RawValue,
}

/// Reads a message: determines its kind and parses only what that needs. Tolerates what leaves no doubt about the
/// meaning. Never fails: text that is not a message is [`ServerMessage::Unreadable`].
pub(super) fn read(text: Bytes) -> ReadMessage {
    if let Some((kind, violation)) = classify(&text) {
        let is_passed_on = violation.is_some() && !matches!(kind, ServerMessage::Response(..));
        let text = if is_passed_on { with_valid_envelope(text) } else { text };
        return ReadMessage { text, kind, violation };
    }
    if let Some(mended) = mend_encoding(&text)
        && let Some((kind, _)) = classify(&mended)
    {
        return ReadMessage { text: mended, kind, violation: Some(ProtocolViolation::NotUtf8) };
    }
    let kind = ServerMessage::Unreadable(request_id_of_unreadable(&text));
    ReadMessage { text, kind, violation: Some(ProtocolViolation::NotJson) }
}

/// Determines the kind of a message, and the violation that is tolerated; `None` if it is not a JSON-RPC message.
fn classify(message: &Bytes) -> Option<(ServerMessage, Option<ProtocolViolation>)> {
    let envelope: RawEnvelope<'_> = serde_json::from_slice(message).ok()?;
    let is_version_2 = envelope.jsonrpc.is_some_and(|version| version.get() == r#""2.0""#);
    let mut violation = (!is_version_2).then_some(ProtocolViolation::InvalidEnvelope);
    let not_null = |member: Option<&RawValue>| member.is_some_and(|raw| raw.get() != "null");
    if !not_null(envelope.method) {
        if envelope.method.is_some() {
            violation = Some(ProtocolViolation::InvalidEnvelope);
        }
        let response = match (envelope.result, envelope.error) {
            (Some(result), None) => RpcResponse::Result(message.slice_ref(result.get().as_bytes())),
            (result, Some(error)) if not_null(Some(error)) => {
                if result.is_some() {
                    violation = Some(ProtocolViolation::InvalidEnvelope);
                }
                let (error, is_valid) = error_object(message, error);
                if !is_valid {
                    violation = Some(ProtocolViolation::InvalidEnvelope);
                }
                RpcResponse::Error(error)
            }
            (Some(result), Some(_)) => {
                violation = Some(ProtocolViolation::InvalidEnvelope);
                RpcResponse::Result(message.slice_ref(result.get().as_bytes()))
            }
            (None, _) => return None,
        };
        if matches!(&response, RpcResponse::Result(result) if !result.starts_with(b"{")) {
            violation = Some(ProtocolViolation::ResultType);
        }
        // An error response without an id belongs to no known request.
        let id = envelope.id.and_then(|id| id_number(id.get()));
        if id.is_some_and(|(_, is_inexact)| is_inexact) {
            violation = Some(ProtocolViolation::ResponseId);
        }
        return Some((ServerMessage::Response(id.map(|(number, _)| number), response), violation));
    }
    let method: Cow<'_, str> = serde_json::from_str(envelope.method?.get()).ok()?;
    if invalid_members(&envelope).next().is_some() {
        violation = Some(ProtocolViolation::InvalidEnvelope);
    }
    if let Some(id) = envelope.id.filter(|id| not_null(Some(id))) {
        // The response repeats the id and is queued until the server accepts it.
        let id = is_request_id(id).then(|| JsonRpcId::from_raw(id))?;
        let request = match InputMethod::from_method(&method) {
            Some(method) => {
                // Copied: the agent may respond much later, and a slice keeps the whole read buffer alive.
                let params = envelope.params.map(|params| Bytes::copy_from_slice(params.get().as_bytes()));
                ServerMessage::InputRequest(id, InputRequest::new(method, params.unwrap_or_default()))
            }
            None => ServerMessage::Request(id, method.into_owned()),
        };
        return Some((request, violation));
    }
    Some((notification(&method, envelope.params), violation))
}

/// True for a string or a number that is not too long to be repeated.
fn is_request_id(id: &RawValue) -> bool {
    let is_id = matches!(id.get().as_bytes().first(), Some(b'"' | b'-' | b'0'..=b'9'));
    is_id && id.get().len() <= MAX_ID_BYTES
}

/// Returns the names of the members of a request or notification that agents reject.
fn invalid_members(envelope: &RawEnvelope<'_>) -> impl Iterator<Item = &'static str> {
    let is = |member: Option<&RawValue>, is_invalid: fn(&str) -> bool| {
        member.is_some_and(|member| is_invalid(member.get()))
    };
    let members = [
        ("id", is(envelope.id, |id| id == "null")),
        ("params", is(envelope.params, |params| !params.starts_with('{'))),
        ("result", envelope.result.is_some()),
        ("error", envelope.error.is_some()),
    ];
    members.into_iter().filter_map(|(name, is_invalid)| is_invalid.then_some(name))
}

/// Returns a request or notification with `"jsonrpc":"2.0"` and without the members that agents reject.
fn with_valid_envelope(text: Bytes) -> Bytes {
    let edits: Vec<_> = serde_json::from_slice::<RawEnvelope<'_>>(&text)
        .iter()
        .flat_map(invalid_members)
        .map(JsonEdit::Remove)
        .chain([JsonEdit::Set("jsonrpc", r#""2.0""#)])
        .collect();
    let valid = std::str::from_utf8(&text).ok().and_then(|text| rewrite(text, &edits).ok());
    valid.map_or(text, Bytes::from)
}

/// Returns the kind of a notification.
fn notification(method: &str, params: Option<&RawValue>) -> ServerMessage {
    let params = params.map_or("{}", RawValue::get);
    let number = |raw: &RawValue| id_number(raw.get()).map(|(number, _)| number);
    match method {
        "notifications/progress" => serde_json::from_str::<ProgressParams<'_>>(params)
            .ok()
            .and_then(|progress| number(progress.progress_token))
            .map_or(ServerMessage::OtherNotification, ServerMessage::Progress),
        "notifications/subscriptions/acknowledged" => serde_json::from_str::<AcknowledgedParams<'_>>(params)
            .ok()
            .and_then(|subscribed| number(subscribed.meta.id))
            .map_or(ServerMessage::OtherNotification, ServerMessage::ListenAcknowledged),
        "notifications/cancelled" => serde_json::from_str::<CancelledParams<'_>>(params)
            .ok()
            .filter(|cancelled| is_request_id(cancelled.request_id))
            .map_or(ServerMessage::OtherNotification, |cancelled| {
                ServerMessage::Cancelled(JsonRpcId::from_raw(cancelled.request_id))
            }),
        "notifications/message" => ServerMessage::LogMessage,
        "notifications/resources/updated" => serde_json::from_str::<ResourceUpdatedParams>(params)
            .map_or(ServerMessage::OtherNotification, |ResourceUpdatedParams { uri }| {
                ServerMessage::ResourceUpdated(uri)
            }),
        "notifications/elicitation/complete" => serde_json::from_str::<ElicitationCompleteParams>(params)
            .map_or(ServerMessage::OtherNotification, |ElicitationCompleteParams { elicitation_id }| {
                ServerMessage::ElicitationComplete(elicitation_id)
            }),
        method => ListKind::from_notification(method)
            .map_or(ServerMessage::OtherNotification, ServerMessage::ListChanged),
    }
}

/// Returns the error of a response. Agents reject one that is not an object with a code and a message, so such an error
/// is replaced by an object that contains it; the second value is false then.
fn error_object(message: &Bytes, error: &RawValue) -> (Bytes, bool) {
    #[derive(Deserialize)]
    #[allow(dead_code, reason = "only their presence is checked")]
    struct ErrorObject<'a> {
        code: i64,
        #[serde(borrow)]
        message: Cow<'a, str>,
    }
    if serde_json::from_str::<ErrorObject<'_>>(error.get()).is_ok() {
        return (message.slice_ref(error.get().as_bytes()), true);
    }
    let text = error_message(error.get().as_bytes())
        .or_else(|| serde_json::from_str(error.get()).ok())
        .unwrap_or_else(|| error.get().to_owned());
    (json!({ "code": ErrorCode::INTERNAL_ERROR.0, "message": text }).to_string().into(), false)
}

/// True for the JSON of a JSON-RPC error with the code "method not found".
pub fn is_unknown_method(raw: &[u8]) -> bool {
    #[derive(Deserialize)]
    struct Error {
        code: i64,
    }
    serde_json::from_slice(raw).is_ok_and(|Error { code }| code == i64::from(ErrorCode::METHOD_NOT_FOUND.0))
}

/// Returns the `message` of the JSON of a JSON-RPC error.
pub(super) fn error_message(raw: &[u8]) -> Option<String> {
    #[derive(Deserialize)]
    struct Error {
        message: String,
    }
    serde_json::from_slice(raw).ok().map(|Error { message }| message)
}

/// Returns a progress notification with the agent's progress token in place of evenkeel's.
pub(super) fn with_progress_token(message: &[u8], token: &JsonRpcId) -> Result<Bytes, MalformedMessage> {
    let envelope = Envelope::parse(message)?;
    let token = std::str::from_utf8(token.as_bytes())
        .map_err(|_| MalformedMessage::NotJsonRpc("the progress token is not UTF-8"))?;
    let params = envelope.params.map_or("{}", RawValue::get);
    let params = rewrite(params, &[JsonEdit::Set("progressToken", token)])?;
    let text = std::str::from_utf8(message).map_err(|_| MalformedMessage::NotJsonRpc("not UTF-8"))?;
    Ok(rewrite(text, &[JsonEdit::Set("params", &params)])?.into())
}

/// Returns the response to a request of a server: a result for `ping`, "method not found" for all others.
pub(super) fn response_to(id: &JsonRpcId, method: &str) -> Bytes {
    let id = String::from_utf8_lossy(id.as_bytes());
    if method == "ping" {
        return format!(r#"{{"jsonrpc":"2.0","id":{id},"result":{{}}}}"#).into();
    }
    let error = r#"{"code":-32601,"message":"not offered by this client"}"#;
    format!(r#"{{"jsonrpc":"2.0","id":{id},"error":{error}}}"#).into()
}

/// Returns the whole message of a response to a request of a server.
pub(super) fn response_message(id: &JsonRpcId, response: &RpcResponse) -> Bytes {
    let (member, raw) = match response {
        RpcResponse::Result(raw) => (&b"result"[..], raw),
        RpcResponse::Error(raw) => (&b"error"[..], raw),
    };
    let parts = [br#"{"jsonrpc":"2.0","id":"#, id.as_bytes(), b",\"", member, b"\":", raw, b"}"];
    parts.concat().into()
}

/// An upper bound of the bytes of a message beyond its method and params.
const MAX_ENVELOPE_BYTES: usize = 80;

/// Builds a request or, without an id, a notification.
pub(super) fn message(id: Option<u64>, method: &str, params: Option<&str>) -> Bytes {
    let mut text = String::with_capacity(MAX_ENVELOPE_BYTES + method.len() + params.map_or(0, str::len));
    push_envelope_start(id, method, &mut text);
    if let Some(params) = params {
        text.push_str(",\"params\":");
        text.push_str(params);
    }
    text.push('}');
    text.into()
}

/// Builds a request whose params are edited.
pub(super) fn request<'e>(
    id: u64,
    method: &str,
    params: &Members<'_>,
    edits: impl Iterator<Item = JsonEdit<'e>> + Clone,
) -> Bytes {
    let mut text = String::with_capacity(MAX_ENVELOPE_BYTES + method.len() + params.max_len(edits.clone()));
    push_envelope_start(Some(id), method, &mut text);
    text.push_str(",\"params\":");
    params.rewrite_into(edits, &mut text);
    text.push('}');
    text.into()
}

fn push_envelope_start(id: Option<u64>, method: &str, text: &mut String) {
    text.push_str(r#"{"jsonrpc":"2.0""#);
    if let Some(id) = id {
        text.push_str(",\"id\":");
        text.push_str(&id.to_string());
    }
    text.push_str(",\"method\":\"");
    // Methods are constants or come from a routed request. None contains a quote or a backslash.
    text.extend(method.chars().filter(|char| !matches!(char, '"' | '\\') && !char.is_control()));
    text.push('"');
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read_text(text: &str) -> (ServerMessage, Option<ProtocolViolation>) {
        let ReadMessage { kind, violation, .. } = read(Bytes::copy_from_slice(text.as_bytes()));
        (kind, violation)
    }

    fn kind(text: &str) -> ServerMessage {
        let (kind, violation) = read_text(text);
        assert_eq!(violation, None, "{text}");
        kind
    }

    #[test]
    fn kinds_of_valid_messages() {
        assert!(matches!(
            kind(r#"{"jsonrpc":"2.0","id":7,"result":{"x": 1}}"#),
            ServerMessage::Response(Some(7), RpcResponse::Result(raw)) if raw == r#"{"x": 1}"#
        ));
        assert!(matches!(
            kind(r#"{"jsonrpc":"2.0","id":null,"error":{"code":-32700,"message":""}}"#),
            ServerMessage::Response(None, RpcResponse::Error(_))
        ));
        assert!(matches!(
            kind(r#"{"jsonrpc":"2.0","id":"session-1","result":{}}"#),
            ServerMessage::Response(None, RpcResponse::Result(_))
        ));
        assert!(matches!(
            kind(r#"{"jsonrpc":"2.0","method":"notifications/tools/list_changed"}"#),
            ServerMessage::ListChanged(ListKind::Tools)
        ));
        assert!(matches!(
            kind(r#"{"jsonrpc":"2.0","method":"notifications/resources/updated","params":{"uri":"a:b"}}"#),
            ServerMessage::ResourceUpdated(uri) if uri == "a:b"
        ));
        assert!(matches!(
            kind(r#"{"jsonrpc":"2.0","method":"notifications/message"}"#),
            ServerMessage::LogMessage
        ));
        for token in ["3", "\"3\""] {
            let params = format!(r#"{{"progressToken":{token},"progress":1}}"#);
            let text = format!(r#"{{"jsonrpc":"2.0","method":"notifications/progress","params":{params}}}"#);
            assert!(matches!(kind(&text), ServerMessage::Progress(3)), "{text}");
        }
        assert!(matches!(
            kind(r#"{"jsonrpc":"2.0","id":1,"method":"ping"}"#),
            ServerMessage::Request(_, method) if method == "ping"
        ));
    }

    #[test]
    fn responses_that_deviate_from_the_protocol_are_read() {
        use ProtocolViolation::{InvalidEnvelope, NotUtf8, ResponseId, ResultType};
        let error = r#"{"code":1,"message":"no"}"#;
        for (text, expected, violation) in [
            (r#"{"jsonrpc":"2.0","id":"7","result":{}}"#, "{}", ResponseId),
            (r#"{"jsonrpc":"2.0","id":7.0,"result":{}}"#, "{}", ResponseId),
            (r#"{"jsonrpc":"2.0","id":7,"result":null}"#, "null", ResultType),
            (r#"{"jsonrpc":"2.0","id":7,"result":null,"error":null}"#, "null", ResultType),
            (r#"{"jsonrpc":"2.0","id":7,"result":{},"error":null}"#, "{}", InvalidEnvelope),
            (r#"{"jsonrpc":"2.0","id":7,"method":null,"result":{}}"#, "{}", InvalidEnvelope),
            (r#"{"id":7,"result":{}}"#, "{}", InvalidEnvelope),
            (r#"{"jsonrpc":2.0,"id":7,"result":{}}"#, "{}", InvalidEnvelope),
            (r#"{"jsonrpc":"1.0","id":7,"result":{}}"#, "{}", InvalidEnvelope),
            ("\u{feff}{\"jsonrpc\":\"2.0\",\"id\":7,\"result\":{}}", "{}", NotUtf8),
            (
                r#"{"jsonrpc":"2.0","id":7,"result":null,"error":{"code":1,"message":"no"}}"#,
                error,
                InvalidEnvelope,
            ),
            (
                r#"{"jsonrpc":"2.0","id":7,"result":{},"error":{"code":1,"message":"no"}}"#,
                error,
                InvalidEnvelope,
            ),
            (
                r#"{"jsonrpc":"2.0","id":7,"error":"no such table"}"#,
                r#"{"code":-32603,"message":"no such table"}"#,
                InvalidEnvelope,
            ),
            (
                r#"{"jsonrpc":"2.0","id":7,"error":{"message":"no"}}"#,
                r#"{"code":-32603,"message":"no"}"#,
                InvalidEnvelope,
            ),
        ] {
            let (kind, found) = read_text(text);
            let ServerMessage::Response(Some(7), RpcResponse::Result(raw) | RpcResponse::Error(raw)) = kind
            else {
                panic!("{text}: {kind:?}")
            };
            assert_eq!((&raw[..], found), (expected.as_bytes(), Some(violation)), "{text}");
        }
        let latin_1 = read(Bytes::from_static(b"{\"jsonrpc\":\"2.0\",\"id\":7,\"result\":{\"a\":\"\xe9\"}}"));
        assert!(matches!(
            latin_1.kind,
            ServerMessage::Response(Some(7), RpcResponse::Result(raw)) if raw == "{\"a\":\"\u{fffd}\"}"
        ));
        assert_eq!(latin_1.violation, Some(NotUtf8));
    }

    #[test]
    fn notification_is_passed_on_without_members_that_agents_reject() {
        for (members, expected) in [
            (r#""params":null"#, r#"{"jsonrpc":"2.0","method":"m"}"#),
            (r#""params":[1],"id":null"#, r#"{"jsonrpc":"2.0","method":"m"}"#),
            (
                r#""params":{"a": 1},"result":1,"error":null"#,
                r#"{"jsonrpc":"2.0","method":"m","params":{"a": 1}}"#,
            ),
        ] {
            let text = format!(r#"{{"jsonrpc":"2.0","method":"m",{members}}}"#);
            let message = read(Bytes::from(text));
            assert!(matches!(message.kind, ServerMessage::OtherNotification), "{members}");
            let found = (&*message.text, message.violation);
            assert_eq!(found, (expected.as_bytes(), Some(ProtocolViolation::InvalidEnvelope)), "{members}");
        }
    }

    #[test]
    fn text_that_is_no_message_is_unreadable() {
        for (text, request_id) in [
            ("", None),
            ("Listening on port 3000", None),
            ("{}", None),
            ("[]", None),
            (r#"{"level":"info","msg":"started"}"#, None),
            (r#"{"jsonrpc":"2.0","id":7}"#, None),
            (r#"{"jsonrpc":"2.0","id":{},"method":"m"}"#, None),
            (r#"{"jsonrpc":"2.0","id":7,"error":null}"#, Some(7)),
            (r#"{"jsonrpc":"2.0","id":7,"result":{"a":NaN}}"#, Some(7)),
            (r#"{"jsonrpc":"2.0","id":7,"result":{"a":1}"#, Some(7)),
            (r#"{"jsonrpc":"2.0","id":7,"id":7,"result":{}}"#, Some(7)),
        ] {
            let (kind, violation) = read_text(text);
            assert!(matches!(kind, ServerMessage::Unreadable(id) if id == request_id), "{text}: {kind:?}");
            assert_eq!(violation, Some(ProtocolViolation::NotJson), "{text}");
        }
    }

    #[test]
    fn with_progress_token_replaces_only_the_token() {
        let message = br#"{"jsonrpc":"2.0","method":"notifications/progress","params":{"progressToken":3,"progress":0.10,"new":[]}}"#;
        assert_eq!(
            with_progress_token(
                message,
                &JsonRpcId::from_raw(&RawValue::from_string("\"t\"".into()).unwrap())
            )
            .unwrap(),
            r#"{"jsonrpc":"2.0","method":"notifications/progress","params":{"progressToken":"t","progress":0.10,"new":[]}}"#
        );
    }

    #[test]
    fn message_builds_requests_and_notifications() {
        assert_eq!(
            message(Some(1), "tools/list", Some("{}")),
            r#"{"jsonrpc":"2.0","id":1,"method":"tools/list","params":{}}"#
        );
        assert_eq!(message(None, "a\"b", None), r#"{"jsonrpc":"2.0","method":"ab"}"#);
    }
}
