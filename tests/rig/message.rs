//! Messages of the rig: requests, outcomes, and the texts of responses.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};

use hyper::HeaderMap;
use serde_json::value::RawValue;
use tokio::sync::mpsc;

use super::server::{InFlightRequest, ServerEvent};

/// An event between a request and its response.
pub(super) enum InterimEvent {
    /// The tool starts: a stream may be opened.
    Started,
    /// A complete JSON-RPC message.
    Message(String),
}

pub(super) type InterimSender = mpsc::UnboundedSender<InterimEvent>;

/// The outcome of a message.
pub(super) enum Outcome {
    Response {
        status: u16,
        text: String,
        session: Option<String>,
    },
    /// A notification or a response was accepted.
    Accepted,
    Http {
        status: u16,
        headers: BTreeMap<String, String>,
        body: String,
    },
    Junk(String),
    Drop,
    Cut,
    Endless,
    Exit(i32),
    CloseStdin,
    CloseStdout,
    /// The request was cancelled: no response.
    NoResponse,
    Listen(ListenStream),
}

/// A listen stream about to open. Its resource subscriptions are counted until the guard is dropped.
pub(super) struct ListenStream {
    pub id: String,
    pub filter: Box<RawValue>,
    pub guard: Option<InFlightRequest>,
}

/// A request, as raw JSON.
pub(super) struct IncomingRequest<'a> {
    pub id: &'a str,
    pub method: &'a str,
    pub params: &'a str,
    pub modern: bool,
    pub headers: Option<&'a HeaderMap>,
}

impl ListenStream {
    /// Returns the first message of the stream.
    pub fn acknowledgement(&self) -> String {
        format!(
            r#"{{"jsonrpc":"2.0","method":"notifications/subscriptions/acknowledged","params":{{"_meta":{{"io.modelcontextprotocol/subscriptionId":{}}},"notifications":{}}}}}"#,
            self.id, self.filter
        )
    }

    /// Returns the resources that its filter names.
    pub fn resource_uris(&self) -> Vec<String> {
        let uris = member(self.filter.get(), "resourceSubscriptions");
        uris.and_then(|uris| serde_json::from_str(uris.get()).ok()).unwrap_or_default()
    }

    /// Returns the message for an event, or `None` if the filter does not include it.
    pub fn message_for(&self, event: &ServerEvent) -> Option<String> {
        let (method, uri_member) = match event {
            ServerEvent::Notification(method) => {
                let key = match method.as_str() {
                    "notifications/tools/list_changed" => "toolsListChanged",
                    "notifications/prompts/list_changed" => "promptsListChanged",
                    "notifications/resources/list_changed" => "resourcesListChanged",
                    _ => return None,
                };
                if member(self.filter.get(), key)?.get() != "true" {
                    return None;
                }
                (method.as_str(), String::new())
            }
            ServerEvent::ResourceUpdated(uri) => {
                if !self.resource_uris().contains(uri) {
                    return None;
                }
                ("notifications/resources/updated", format!(r#","uri":"{uri}""#))
            }
            _ => return None,
        };
        let id = &self.id;
        Some(format!(
            r#"{{"jsonrpc":"2.0","method":"{method}","params":{{"_meta":{{"io.modelcontextprotocol/subscriptionId":{id}}}{uri_member}}}}}"#
        ))
    }
}

impl IncomingRequest<'_> {
    /// Returns a response with this result. A modern response also has `resultType`.
    pub fn result(&self, result: &str) -> Outcome {
        Outcome::Response { status: 200, text: self.result_message(result), session: None }
    }

    /// Returns a response with exactly this result.
    pub fn raw_result(&self, result: &str) -> Outcome {
        Outcome::Response {
            status: 200,
            text: format!(r#"{{"jsonrpc":"2.0","id":{},"result":{result}}}"#, self.id),
            session: None,
        }
    }

    /// Returns an error. `status` applies to modern HTTP, and to legacy HTTP unless the method is unknown.
    pub fn error(&self, status: u16, code: i32, message: &str, data: Option<&str>) -> Outcome {
        let unknown_method = code == -32601 && !self.modern;
        let status = if unknown_method { 200 } else { status };
        error_response(status, self.id, &error_object(code, message, data))
    }

    /// Returns the message of a response with this result.
    pub fn result_message(&self, result: &str) -> String {
        let result_type = if self.modern { r#""resultType":"complete""# } else { "" };
        let members = result.trim_start().strip_prefix('{').expect("a result is an object");
        let comma = if result_type.is_empty() || members.trim_start().starts_with('}') { "" } else { "," };
        format!(r#"{{"jsonrpc":"2.0","id":{},"result":{{{result_type}{comma}{members}}}"#, self.id)
    }
}

/// Returns a member of a JSON object, byte for byte.
pub(super) fn member<'a>(object: &'a str, name: &str) -> Option<&'a RawValue> {
    serde_json::from_str::<HashMap<Cow<'a, str>, &'a RawValue>>(object).ok()?.remove(name)
}

pub(super) fn error_object(code: i32, message: &str, data: Option<&str>) -> String {
    let message = serde_json::json!(message);
    let data = data.map(|data| format!(r#","data":{data}"#)).unwrap_or_default();
    format!(r#"{{"code":{code},"message":{message}{data}}}"#)
}

/// Returns an error response.
pub(super) fn error_response(status: u16, id: &str, error: &str) -> Outcome {
    Outcome::Response {
        status,
        text: format!(r#"{{"jsonrpc":"2.0","id":{id},"error":{error}}}"#),
        session: None,
    }
}
