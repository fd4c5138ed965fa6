use bytes::Bytes;
use serde_json::Value;
use serde_json::value::RawValue;

use super::compose;
use crate::wire::lenient::messages;
use crate::wire::server_message::{ReadMessage, ServerMessage, read};
use crate::wire::{Envelope, RpcResponse};

const FRAGMENTS: &[&str] = &[
    "{",
    "}",
    "[",
    "]",
    ",",
    ":",
    " ",
    "\n",
    "\"jsonrpc\":\"2.0\"",
    "\"jsonrpc\":2.0",
    "\"jsonrpc\" : \"2\\u002e0\"",
    "\"id\":1",
    "\"id\":\"1\"",
    "\"id\":1.0",
    "\"id\":null",
    "\"id\":-1e5",
    "\"id\":{}",
    "\"method\":\"ping\"",
    "\"method\":null",
    "\"method\":\"a\\\"\\u00e9\"",
    "\"method\":\"notifications/message\"",
    "\"method\":\"notifications/progress\"",
    "\"method\":\"notifications/resources/updated\"",
    "\"method\":\"notifications/tools/list_changed\"",
    "\"params\":{}",
    "\"params\":[]",
    "\"params\":null",
    "\"params\":{\"progressToken\":3}",
    "\"params\":{\"uri\":\"a:b\"}",
    "\"result\":{}",
    "\"result\":null",
    "\"result\":\"x\"",
    "\"error\":{\"code\":1,\"message\":\"x\"}",
    "\"error\":\"x\"",
    "\"error\":null",
    "\"other\":[1,{\"a\":2}]",
    "NaN",
    "1e999",
    "\"\\ud800\"",
];

/// Composes an object of the fragments that are members.
fn object_of(input: &[u8]) -> Vec<u8> {
    let members: Vec<_> =
        FRAGMENTS.iter().filter(|fragment| fragment.starts_with('"') && fragment.contains(':')).collect();
    let chosen: Vec<&str> = input.iter().map(|byte| *members[usize::from(*byte) % members.len()]).collect();
    format!("{{{}}}", chosen.join(",")).into_bytes()
}

/// Parses a message completely. Returns `None` for a number out of range or a lone surrogate: that is valid JSON.
fn parse_value(text: &[u8]) -> Option<Value> {
    match serde_json::from_slice(text) {
        Ok(value) => Some(value),
        Err(error) => {
            let reason = error.to_string();
            let is_valid = ["number out of range", "surrogate", "end of hex escape"];
            assert!(is_valid.iter().any(|part| reason.contains(part)), "{}: {reason}", text.escape_ascii());
            None
        }
    }
}

fn parse_raw(raw: Option<&RawValue>) -> Value {
    raw.map_or(Value::Null, |raw| serde_json::from_str(raw.get()).unwrap())
}

fn check_envelope(text: &[u8]) {
    let Ok(envelope) = Envelope::parse(text) else { return };
    let Some(value) = parse_value(text) else { return };
    assert_eq!(value["jsonrpc"], "2.0");
    assert!(envelope.is_request() != envelope.is_notification() || envelope.method.is_none());
    assert_eq!(value.get("method").and_then(Value::as_str), envelope.method.as_deref());
    for (name, raw) in [
        ("id", envelope.id),
        ("params", envelope.params),
        ("result", envelope.result),
        ("error", envelope.error),
    ] {
        assert_eq!(value[name], parse_raw(raw), "{name}");
    }
}

fn check_server_message(text: &[u8]) {
    for message in messages(Bytes::copy_from_slice(text)) {
        let ReadMessage { text, kind, .. } = read(message.clone());
        let value = || parse_value(&text);
        match kind {
            ServerMessage::Unreadable(_) => {
                assert!(Envelope::parse(&message).is_err() || has_long_id(&message), "{message:?}");
            }
            ServerMessage::Response(id, response) => {
                if let (Some(id), Some(value)) = (id, value()) {
                    let found = &value["id"];
                    let text = found.as_str().map_or_else(|| found.to_string(), str::to_owned);
                    assert_eq!(text.trim().split('.').next(), Some(&*id.to_string()), "{value}");
                }
                let (RpcResponse::Result(raw) | RpcResponse::Error(raw)) = &response;
                let Some(raw) = parse_value(raw) else { continue };
                if let RpcResponse::Error(_) = response {
                    assert!(raw["code"].is_i64() && raw["message"].is_string(), "{raw}");
                } else if let Some(value) = value() {
                    assert_eq!(value["result"], raw);
                }
            }
            ServerMessage::Request(id, method) => {
                let Some(value) = value() else { continue };
                assert_eq!(value["method"], *method);
                assert_eq!(value["id"], serde_json::from_slice::<Value>(id.as_bytes()).unwrap());
            }
            // Agents get these, so their envelope is valid.
            ServerMessage::Progress(_)
            | ServerMessage::LogMessage
            | ServerMessage::ElicitationComplete(_)
            | ServerMessage::OtherNotification => {
                assert!(Envelope::parse(&text).unwrap().is_notification(), "{text:?}");
            }
            ServerMessage::ResourceUpdated(uri) => {
                assert!(value().is_none_or(|value| value["params"]["uri"] == *uri));
            }
            ServerMessage::ListenAcknowledged(_)
            | ServerMessage::Cancelled(_)
            | ServerMessage::ListChanged(_) => {}
            ServerMessage::InputRequest(id, request) => {
                let Some(value) = value() else { continue };
                assert_eq!(value["method"], request.method.as_str());
                assert_eq!(value["id"], serde_json::from_slice::<Value>(id.as_bytes()).unwrap());
                assert!(parse_value(request.params().as_bytes()).is_none_or(|params| params.is_object()));
            }
        }
    }
}

/// True for a message whose id is longer than evenkeel accepts from servers.
fn has_long_id(message: &[u8]) -> bool {
    Envelope::parse(message).is_ok_and(|envelope| envelope.id.is_some_and(|id| id.get().len() > 1024))
}

#[test]
fn accepted_message_is_one_for_every_parser() {
    bolero::check!().for_each(|input: &[u8]| {
        for text in [input.to_vec(), compose(input, FRAGMENTS), object_of(input)] {
            check_envelope(&text);
            check_server_message(&text);
        }
    });
}
