use bytes::Bytes;
use rmcp::model::ErrorCode;
use serde::Deserialize;
use serde_json::value::RawValue;

use super::ListKind;
use super::envelope::{Envelope, JsonRpcId, MalformedMessage};
use super::json_edit::{JsonEdit, Members, rewrite};
use super::response::RpcResponse;

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
    /// The server cancelled the request with this id. It may do so only for a listen request.
    ListenCancelled(u64),
    /// A list changed.
    ListChanged(ListKind),
    /// The resource with this URI changed.
    ResourceUpdated(String),
    /// A log message.
    LogMessage,
    /// Any other notification.
    OtherNotification,
    /// A request of the server, with its id and method.
    Request(JsonRpcId, String),
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
struct AcknowledgedParams<'a> {
    #[serde(borrow, rename = "_meta")]
    meta: SubscriptionMeta<'a>,
}

#[derive(Deserialize)]
struct SubscriptionMeta<'a> {
    #[serde(borrow, rename = "io.modelcontextprotocol/subscriptionId")]
    id: &'a RawValue,
}

/// Determines the kind of a message and parses only what that needs.
pub(super) fn classify(message: &Bytes) -> Result<ServerMessage, MalformedMessage> {
    let envelope = Envelope::parse(message)?;
    let Some(method) = envelope.method else {
        // An error response without an id belongs to no known request.
        let request_id = envelope.id.and_then(|id| id.get().parse().ok());
        let part = |raw: &RawValue| message.slice_ref(raw.get().as_bytes());
        let response = match (envelope.result, envelope.error) {
            (Some(result), _) => RpcResponse::Result(part(result)),
            (None, Some(error)) => RpcResponse::Error(part(error)),
            (None, None) => {
                return Err(MalformedMessage::NotJsonRpc("a response needs \"result\" or \"error\""));
            }
        };
        return Ok(ServerMessage::Response(request_id, response));
    };
    if let Some(id) = envelope.id {
        // The response repeats the id and is queued until the server accepts it.
        if id.get().len() > MAX_ID_BYTES {
            return Err(MalformedMessage::NotJsonRpc("the \"id\" of a request is too long"));
        }
        return Ok(ServerMessage::Request(JsonRpcId::from_raw(id), method.into_owned()));
    }
    Ok(match method.as_ref() {
        "notifications/progress" => envelope
            .params
            .and_then(|params| serde_json::from_str::<ProgressParams<'_>>(params.get()).ok())
            .and_then(|progress| progress.progress_token.get().parse().ok())
            .map_or(ServerMessage::OtherNotification, ServerMessage::Progress),
        "notifications/subscriptions/acknowledged" => envelope
            .params
            .and_then(|params| serde_json::from_str::<AcknowledgedParams<'_>>(params.get()).ok())
            .and_then(|subscribed| subscribed.meta.id.get().parse().ok())
            .map_or(ServerMessage::OtherNotification, ServerMessage::ListenAcknowledged),
        "notifications/cancelled" => envelope
            .params
            .and_then(|params| serde_json::from_str::<CancelledParams<'_>>(params.get()).ok())
            .and_then(|cancelled| cancelled.request_id.get().parse().ok())
            .map_or(ServerMessage::OtherNotification, ServerMessage::ListenCancelled),
        "notifications/message" => ServerMessage::LogMessage,
        "notifications/resources/updated" => envelope
            .params
            .and_then(|params| serde_json::from_str::<ResourceUpdatedParams>(params.get()).ok())
            .map_or(ServerMessage::OtherNotification, |ResourceUpdatedParams { uri }| {
                ServerMessage::ResourceUpdated(uri)
            }),
        method => ListKind::from_notification(method)
            .map_or(ServerMessage::OtherNotification, ServerMessage::ListChanged),
    })
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

/// Returns the request id of a truncated response, of which `message` holds the start followed by the end.
///
/// Servers write `id` before or after the long part.
pub(super) fn request_id_of_truncated(message: &[u8]) -> Option<u64> {
    const VERSION: &str = r#""jsonrpc":"2.0""#;
    let mut text = String::from_utf8_lossy(message).into_owned();
    text.retain(|char| !char.is_whitespace());
    let mut request_id = None;
    let mut start = text.strip_prefix('{')?;
    while !start.starts_with(r#""result":"#) && !start.starts_with(r#""error":"#) {
        start = match start.strip_prefix(r#""id":"#) {
            Some(rest) => {
                let (id, rest) = rest.split_once(',')?;
                request_id = id.parse().ok();
                rest
            }
            None => start.strip_prefix(VERSION)?.strip_prefix(',')?,
        };
    }
    let end = text.strip_suffix('}')?;
    let end = end.strip_suffix(VERSION).and_then(|end| end.strip_suffix(',')).unwrap_or(end);
    let (_, id) = end.rsplit_once(r#","id":"#).unwrap_or_default();
    request_id.or_else(|| id.parse().ok())
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

    fn classify_text(text: &str) -> ServerMessage {
        classify(&Bytes::copy_from_slice(text.as_bytes())).unwrap()
    }

    #[test]
    fn classify_distinguishes_message_kinds() {
        assert!(matches!(
            classify_text(r#"{"jsonrpc":"2.0","id":7,"result":{"x": 1}}"#),
            ServerMessage::Response(Some(7), RpcResponse::Result(raw)) if raw == r#"{"x": 1}"#
        ));
        assert!(matches!(
            classify_text(r#"{"jsonrpc":"2.0","id":"7","error":{}}"#),
            ServerMessage::Response(None, RpcResponse::Error(_))
        ));
        assert!(matches!(
            classify_text(r#"{"jsonrpc":"2.0","method":"notifications/tools/list_changed"}"#),
            ServerMessage::ListChanged(ListKind::Tools)
        ));
        assert!(matches!(
            classify_text(r#"{"jsonrpc":"2.0","method":"notifications/resources/updated","params":{"uri":"a:b"}}"#),
            ServerMessage::ResourceUpdated(uri) if uri == "a:b"
        ));
        assert!(matches!(
            classify_text(r#"{"jsonrpc":"2.0","method":"notifications/message"}"#),
            ServerMessage::LogMessage
        ));
        assert!(matches!(
            classify_text(
                r#"{"jsonrpc":"2.0","method":"notifications/progress","params":{"progressToken":3,"progress":1}}"#
            ),
            ServerMessage::Progress(3)
        ));
        assert!(matches!(
            classify_text(
                r#"{"jsonrpc":"2.0","method":"notifications/progress","params":{"progressToken":"3"}}"#
            ),
            ServerMessage::OtherNotification
        ));
        assert!(matches!(
            classify_text(r#"{"jsonrpc":"2.0","id":1,"method":"ping"}"#),
            ServerMessage::Request(_, method) if method == "ping"
        ));
    }

    #[test]
    fn request_id_is_found_in_a_truncated_response() {
        for (text, request_id) in [
            (r#"{"jsonrpc":"2.0","id":7,"result":{"a":"x~y"}}"#, Some(7)),
            (r#"{ "id": 7, "jsonrpc": "2.0", "error": {"data":"x~y"} }"#, Some(7)),
            (r#"{"result":{"a":"x~y"},"jsonrpc":"2.0","id":7}"#, Some(7)),
            (r#"{"jsonrpc":"2.0","result":{"a":"x~y"},"id":7,"jsonrpc":"2.0"}"#, Some(7)),
            (r#"{"jsonrpc":"2.0","result":{"a":"x~y","id":7}}"#, None),
            (r#"{"jsonrpc":"2.0","result":"x~y,\"id\":7}"#, None),
            (r#"{"jsonrpc":"2.0","id":"a","result":"x~y"}"#, None),
            (r#"{"jsonrpc":"2.0","method":"x~y","id":7}"#, None),
            (r#"{"jsonrpc":"2.0","id":7,"method":"x~y"}"#, None),
            ("x~y", None),
        ] {
            assert_eq!(request_id_of_truncated(text.as_bytes()), request_id, "{text}");
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
