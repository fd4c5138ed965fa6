//! Messages as the rig sees them: a request, what becomes of it, and the texts of answers.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};

use hyper::HeaderMap;
use serde_json::value::RawValue;
use tokio::sync::mpsc;

use super::server::{InFlightRequest, ServerEvent};

/// What is told on the way to an answer.
pub(super) enum InterimEvent {
    /// The tool begins: a stream may open.
    Started,
    /// A whole JSON-RPC message.
    Message(String),
}

pub(super) type InterimSender = mpsc::UnboundedSender<InterimEvent>;

/// What becomes of a message.
pub(super) enum Outcome {
    Response {
        status: u16,
        text: String,
        session: Option<String>,
    },
    /// A notification or an answer was taken.
    Accepted,
    Http {
        status: u16,
        headers: BTreeMap<String, String>,
        body: String,
    },
    Junk(String),
    Drop,
    Cut,
    Exit(i32),
    CloseStdin,
    CloseStdout,
    /// Cancelled: no answer.
    NoResponse,
    Listen(ListenStream),
}

/// A listen stream about to open; it is open as long as the guard lives.
pub(super) struct ListenStream {
    pub id: String,
    pub filter: Box<RawValue>,
    pub guard: Option<InFlightRequest>,
}

/// A request as the tools see it.
pub(super) struct IncomingRequest<'a> {
    pub id: &'a str,
    pub method: &'a str,
    pub params: &'a str,
    pub modern: bool,
    pub headers: Option<&'a HeaderMap>,
}

impl ListenStream {
    /// The first message of the stream.
    pub fn acknowledgement(&self) -> String {
        format!(
            r#"{{"jsonrpc":"2.0","method":"notifications/subscriptions/acknowledged","params":{{"_meta":{{"io.modelcontextprotocol/subscriptionId":{}}},"notifications":{}}}}}"#,
            self.id, self.filter
        )
    }

    /// The resources that its filter names.
    pub fn resource_uris(&self) -> Vec<String> {
        let uris = member(self.filter.get(), "resourceSubscriptions");
        uris.and_then(|uris| serde_json::from_str(uris.get()).ok()).unwrap_or_default()
    }

    /// What this stream is told of something that happened, if its filter asks for it.
    pub fn message_for(&self, event: &ServerEvent) -> Option<String> {
        let (method, more) = match event {
            ServerEvent::Notification(method) => {
                let wanted = match method.as_str() {
                    "notifications/tools/list_changed" => "toolsListChanged",
                    "notifications/prompts/list_changed" => "promptsListChanged",
                    "notifications/resources/list_changed" => "resourcesListChanged",
                    _ => return None,
                };
                if member(self.filter.get(), wanted)?.get() != "true" {
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
            r#"{{"jsonrpc":"2.0","method":"{method}","params":{{"_meta":{{"io.modelcontextprotocol/subscriptionId":{id}}}{more}}}}}"#
        ))
    }
}

impl IncomingRequest<'_> {
    /// An answer with this result; a modern one says that it is complete.
    pub fn result(&self, result: &str) -> Outcome {
        Outcome::Response { status: 200, text: self.result_message(result), session: None }
    }

    /// An answer with this result and nothing added to it.
    pub fn raw_result(&self, result: &str) -> Outcome {
        Outcome::Response {
            status: 200,
            text: format!(r#"{{"jsonrpc":"2.0","id":{},"result":{result}}}"#, self.id),
            session: None,
        }
    }

    /// An error; `status` is for modern HTTP, and for legacy HTTP where it is about the session.
    pub fn error(&self, status: u16, code: i32, message: &str, data: Option<&str>) -> Outcome {
        let about_the_method = code == -32601 && !self.modern;
        let status = if about_the_method { 200 } else { status };
        error_response(status, self.id, &error_object(code, message, data))
    }

    /// The whole message of such an answer.
    pub fn result_message(&self, result: &str) -> String {
        let kind = if self.modern { r#""resultType":"complete""# } else { "" };
        let rest = result.trim_start().strip_prefix('{').expect("a result is an object");
        let comma = if kind.is_empty() || rest.trim_start().starts_with('}') { "" } else { "," };
        format!(r#"{{"jsonrpc":"2.0","id":{},"result":{{{kind}{comma}{rest}}}"#, self.id)
    }
}

/// A member of a JSON object, as it stands there.
pub(super) fn member<'a>(object: &'a str, name: &str) -> Option<&'a RawValue> {
    serde_json::from_str::<HashMap<Cow<'a, str>, &'a RawValue>>(object).ok()?.remove(name)
}

pub(super) fn error_object(code: i32, message: &str, data: Option<&str>) -> String {
    let message = serde_json::json!(message);
    let data = data.map(|data| format!(r#","data":{data}"#)).unwrap_or_default();
    format!(r#"{{"code":{code},"message":{message}{data}}}"#)
}

/// A whole error message.
pub(super) fn error_response(status: u16, id: &str, error: &str) -> Outcome {
    Outcome::Response {
        status,
        text: format!(r#"{{"jsonrpc":"2.0","id":{id},"error":{error}}}"#),
        session: None,
    }
}
