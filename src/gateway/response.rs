//! Builds JSON-RPC responses to agents from raw JSON.

use std::borrow::Cow;

use bytes::Bytes;
use http::StatusCode;
use rmcp::model::ErrorCode;

use super::result_for_era::result_for_era;
use super::routed_method::RoutedMethod;
use crate::catalog::RemovedName;
use crate::resource::{ObjectKey, Problem, Reason};
use crate::upstream::{CallRefusal, ConnectRefusal};
use crate::wire::{ClientCapabilities, ConnectionError, Era, FailureSource, JsonRpcId, ListKind};

/// A JSON-RPC error response and its HTTP status.
#[derive(Debug)]
pub(super) struct ResponseError {
    pub(super) status: StatusCode,
    code: ErrorCode,
    message: Cow<'static, str>,
    data: Option<serde_json::Value>,
}

impl ResponseError {
    /// Creates an error for a malformed request: HTTP 400.
    pub(super) fn bad_request(code: ErrorCode, message: impl Into<Cow<'static, str>>) -> Self {
        Self { status: StatusCode::BAD_REQUEST, code, message: message.into(), data: None }
    }

    /// Creates an error for a well-formed request: HTTP 200.
    pub(super) fn in_band(code: ErrorCode, message: impl Into<Cow<'static, str>>) -> Self {
        Self { status: StatusCode::OK, ..Self::bad_request(code, message) }
    }

    #[cfg(test)]
    pub(super) fn code(&self) -> ErrorCode {
        self.code
    }

    pub(super) fn with_status(self, status: StatusCode) -> Self {
        Self { status, ..self }
    }

    pub(super) fn with_data(self, data: serde_json::Value) -> Self {
        Self { data: Some(data), ..self }
    }

    /// Serializes the whole JSON-RPC message.
    pub(super) fn to_message(&self, id: Option<&JsonRpcId>) -> Bytes {
        let mut error = serde_json::json!({ "code": self.code.0, "message": self.message });
        if let (Some(data), Some(error)) = (&self.data, error.as_object_mut()) {
            error.insert("data".to_owned(), data.clone());
        }
        build_message(id, "error", &[error.to_string().as_bytes()])
    }
}

/// Returns the error for params that a method does not accept.
pub(super) fn invalid_params(reason: impl std::fmt::Display) -> ResponseError {
    ResponseError::in_band(ErrorCode::INVALID_PARAMS, format!("Invalid params: {reason}"))
}

/// Returns the first members of a list result. The modern era requires cache members; lists may not be cached.
pub(super) fn cache_members(era: Era) -> &'static str {
    match era {
        Era::Modern => r#""resultType":"complete","ttlMs":0,"cacheScope":"private","#,
        Era::Legacy => "",
    }
}

/// Builds the whole JSON-RPC message with a result, which is given in pieces.
pub(super) fn result_message(id: &JsonRpcId, pieces: &[&[u8]]) -> Bytes {
    build_message(Some(id), "result", pieces)
}

/// Builds a tool result with `isError`, whose text describes the failure to the model.
pub(super) fn tool_error(id: &JsonRpcId, text: &str, era: Era) -> Bytes {
    let content = serde_json::json!({ "content": [{ "type": "text", "text": text }], "isError": true });
    result_message_for_era(id, content.to_string().as_bytes(), era)
}

/// Describes a refused call: the server, the reason, and whether to call again.
pub(super) fn refusal_text(server: &ObjectKey, refusal: &CallRefusal) -> String {
    match refusal {
        CallRefusal::Removed(problem) => {
            format!("MCP server {server} was removed ({problem}). Do not call its tools again.")
        }
        CallRefusal::Unavailable(problem) => {
            format!(
                "MCP server {server} is not available ({problem}). Nothing was sent to it. {}",
                retry_advice(problem)
            )
        }
    }
}

/// Describes a call that is refused because its server has the maximum number of calls.
pub(super) fn busy_server_text(server: &ObjectKey, max: usize) -> String {
    format!(
        "MCP server {server} has {max} calls in flight, the maximum. Nothing was sent to it. Call it again when some of \
         them have ended."
    )
}

/// Describes a request that is refused because its session has the maximum number of requests in flight.
pub(super) fn busy_session_text(max: usize) -> String {
    format!(
        "This session has {max} requests in flight, the maximum. Nothing was sent to the server. Wait until some of them \
         have ended, then try again."
    )
}

/// Describes a call of a caller that cannot be told from others, to a server on which each has a connection of its own.
pub(super) fn unknown_caller_text(server: &ObjectKey) -> String {
    format!(
        "MCP server {server} gives each caller a connection of its own (spec.isolation: Session), and this request does \
         not say which caller it is from. Nothing was sent to it. Connect the agent with an endpoint path of its own, \
         such as /as/ID/mcp, where ID is a name that no other agent uses."
    )
}

/// Describes a call for which the caller gets no connection of its own.
pub(super) fn connect_refusal_text(server: &ObjectKey, refusal: &ConnectRefusal) -> String {
    match refusal {
        ConnectRefusal::TooMany(limit) => format!(
            "MCP server {server} has a connection of its own for each caller, and {limit} callers have one already, as \
             many as spec.maxSessions permits. Nothing was sent to it. It may work again later, when a session of \
             another agent has ended; otherwise an operator must raise spec.maxSessions."
        ),
        ConnectRefusal::Refused(refusal) => refusal_text(server, refusal),
    }
}

/// Describes an item that its server changed while the call waited for a connection.
pub(super) fn changed_item_text(server: &ObjectKey, list: ListKind, name: &str) -> String {
    let noun = list.item_noun();
    format!(
        "MCP server {server} changed its {noun} {name:?} while it was connecting. Nothing was sent to it. Request \
         {} again before you use it.",
        list.method()
    )
}

/// Describes an item that is no longer offered.
pub(super) fn removed_item_text(list: ListKind, name: &str, removed: &RemovedName) -> String {
    let RemovedName { server, problem } = removed;
    let noun = match list {
        ListKind::Tools => "Tool",
        ListKind::Prompts => "Prompt",
        ListKind::Resources => "Resource",
        ListKind::Templates => "Resource template",
    };
    format!(
        "{noun} {name:?} of MCP server {server} is no longer available ({problem}). {}",
        retry_advice(problem)
    )
}

/// The reason why a request has no target.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum RouteError {
    /// The params do not name an item.
    InvalidParams(&'static str),
    /// No item of this list has this name or URI.
    Unknown(ListKind, String),
    /// The item exists, but does not support the request.
    Unsupported(String),
    /// The item was removed.
    Removed(String),
}

impl RouteError {
    /// Returns the text for the agent.
    pub(super) fn text(&self) -> String {
        match self {
            Self::InvalidParams(reason) => (*reason).to_owned(),
            Self::Unknown(list, name) => format!("Unknown {}: {name}", list.item_noun()),
            Self::Unsupported(text) | Self::Removed(text) => text.clone(),
        }
    }
}

/// Builds the HTTP status and the message for a request without a target.
pub(super) fn route_error_response(
    id: &JsonRpcId,
    route_error: &RouteError,
    method: RoutedMethod,
    era: Era,
) -> (StatusCode, Bytes) {
    let error = match route_error {
        RouteError::InvalidParams(reason) => invalid_params(reason),
        RouteError::Removed(text) if method == RoutedMethod::CallTool => {
            return (StatusCode::OK, tool_error(id, text, era));
        }
        RouteError::Unknown(..) | RouteError::Unsupported(_) | RouteError::Removed(_) => {
            let exists = matches!(route_error, RouteError::Unsupported(_));
            let code = match (method, era) {
                (RoutedMethod::ReadResource, Era::Legacy) if !exists => ErrorCode::RESOURCE_NOT_FOUND,
                _ => ErrorCode::INVALID_PARAMS,
            };
            ResponseError::in_band(code, route_error.text())
        }
    };
    (error.status, error.to_message(Some(id)))
}

/// Builds the message for a request without a response from its server: a tool result for the model where the method
/// has one, else a JSON-RPC error.
pub(super) fn failure_message(id: &JsonRpcId, text: &str, method: RoutedMethod, era: Era) -> Bytes {
    match method {
        RoutedMethod::CallTool => tool_error(id, text, era),
        _ => ResponseError::in_band(ErrorCode::INTERNAL_ERROR, text.to_owned()).to_message(Some(id)),
    }
}

/// Returns the JSON of the error for an agent without a capability that its request needs (2026-07-28).
pub(super) fn missing_capability_error(required: ClientCapabilities) -> Bytes {
    let capabilities = required.to_json();
    let code = ErrorCode::MISSING_REQUIRED_CLIENT_CAPABILITY.0;
    let message = "the request needs a capability that the client has not declared";
    format!(r#"{{"code":{code},"message":"{message}","data":{{"requiredCapabilities":{capabilities}}}}}"#)
        .into()
}

/// Describes a connection that failed during a call.
pub(super) fn connection_failure_text(server: &ObjectKey, error: &ConnectionError) -> String {
    let ConnectionError { problem, dispatched, failure_source, .. } = error;
    if *dispatched {
        return format!(
            "MCP server {server} failed during the call ({problem}). The call may have taken effect: check before you \
             call again."
        );
    }
    let outcome = match failure_source {
        FailureSource::Status(_) => format!("refused the call ({problem})"),
        FailureSource::RetryAfter => format!("is not available ({problem}). Nothing was sent to it"),
        FailureSource::LocalLimit => format!("was not called ({problem}). Nothing was sent to it"),
        FailureSource::Session => format!("did not accept the call ({problem})"),
        FailureSource::Connection | FailureSource::Response | FailureSource::Exit(_) => {
            format!("could not be reached ({problem}). Nothing was sent to it")
        }
    };
    format!("MCP server {server} {outcome}. {}", retry_advice(problem))
}

/// Describes a call that exceeded its timeout.
pub(super) fn timeout_text(server: &ObjectKey, reason: &str) -> String {
    format!(
        "MCP server {server} {reason}, and the call was cancelled. It may have taken effect: check before you \
         call again."
    )
}

fn retry_advice(problem: &Problem) -> &'static str {
    match problem.reason {
        Reason::Removed | Reason::Suspended => "Do not call it again.",
        reason if reason.requires_user_action() => {
            "It will not work until an operator fixes it: do not call it again."
        }
        _ => "It may work again later.",
    }
}

pub(super) fn build_message(id: Option<&JsonRpcId>, member: &str, pieces: &[&[u8]]) -> Bytes {
    let id = id.map_or(&b"null"[..], JsonRpcId::as_bytes);
    let start: [&[u8]; 5] = [br#"{"jsonrpc":"2.0","id":"#, id, b",\"", member.as_bytes(), b"\":"];
    let end: [&[u8]; 1] = [b"}"];
    let parts = start.iter().chain(pieces).chain(&end);
    let mut message = Vec::with_capacity(parts.clone().map(|part| part.len()).sum());
    parts.for_each(|part| message.extend_from_slice(part));
    message.into()
}

pub(super) fn result_message_for_era(id: &JsonRpcId, raw: &[u8], era: Era) -> Bytes {
    let (start, rest) = result_for_era(raw, era);
    result_message(id, &[start.as_bytes(), &rest])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn error_texts_name_the_server_the_reason_and_the_advice() {
        let server = ObjectKey::new("default", "gh");
        let removed = Problem::new(Reason::Removed, "gh.yaml was deleted");
        let text = refusal_text(&server, &CallRefusal::Removed(removed.clone()));
        assert_eq!(
            text,
            "MCP server default/gh was removed (Removed: gh.yaml was deleted). Do not call its tools again."
        );
        let text = removed_item_text(
            ListKind::Tools,
            "gh_search",
            &RemovedName { server: server.clone(), problem: removed },
        );
        assert!(
            text.starts_with("Tool \"gh_search\" of MCP server default/gh")
                && text.ends_with("Do not call it again."),
            "{text}"
        );
        let exited = ConnectionError::new(Reason::Exited, "exit code 1");
        assert!(
            connection_failure_text(&server, &exited)
                .ends_with("Nothing was sent to it. It may work again later.")
        );
        let mut busy =
            ConnectionError::new(Reason::ConnectFailed, "the server answered HTTP 429 Too Many Requests");
        busy.failure_source = FailureSource::Status(StatusCode::TOO_MANY_REQUESTS);
        assert_eq!(
            connection_failure_text(&server, &busy),
            "MCP server default/gh refused the call (ConnectFailed: the server answered HTTP 429 Too Many Requests). \
             It may work again later."
        );
        assert!(
            connection_failure_text(&server, &exited.into_dispatched()).contains("may have taken effect")
        );
    }
}
