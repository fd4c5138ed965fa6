//! Answers to agents, put together from raw pieces.

use std::borrow::Cow;

use bytes::Bytes;
use http::StatusCode;
use memchr::memmem;
use rmcp::model::ErrorCode;

use super::routed_method::RoutedMethod;
use crate::catalog::RemovedName;
use crate::resource::{ObjectKey, Problem, Reason};
use crate::upstream::CallRefusal;
use crate::wire::{
    ConnectionError, Era, FailureSource, JsonEdit, JsonRpcId, ListKind, Members, RpcResponse, members,
};

/// An error to answer a request with.
#[derive(Debug)]
pub(super) struct ResponseError {
    pub(super) status: StatusCode,
    code: ErrorCode,
    message: Cow<'static, str>,
    data: Option<serde_json::Value>,
}

impl ResponseError {
    /// An error that says the request itself is wrong: HTTP 400.
    pub(super) fn bad_request(code: ErrorCode, message: impl Into<Cow<'static, str>>) -> Self {
        Self { status: StatusCode::BAD_REQUEST, code, message: message.into(), data: None }
    }

    /// An error about what a well-formed request asks for: HTTP 200.
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

    /// The whole message.
    pub(super) fn to_message(&self, id: Option<&JsonRpcId>) -> Bytes {
        let mut error = serde_json::json!({ "code": self.code.0, "message": self.message });
        if let (Some(data), Some(error)) = (&self.data, error.as_object_mut()) {
            error.insert("data".to_owned(), data.clone());
        }
        build_message(id, "error", &[error.to_string().as_bytes()])
    }
}

/// The whole message with a result, given in pieces.
pub(super) fn result_message(id: &JsonRpcId, pieces: &[&[u8]]) -> Bytes {
    build_message(Some(id), "result", pieces)
}

/// The whole message with a server's answer, as an agent of this era expects it, and its HTTP status.
pub(super) fn server_response(
    id: &JsonRpcId,
    reply: &RpcResponse,
    ask: RoutedMethod,
    era: Era,
) -> (StatusCode, Bytes) {
    match reply {
        RpcResponse::Result(raw) if ask == RoutedMethod::ReadResource && era == Era::Modern => {
            (StatusCode::OK, result_message_for_era(id, &with_cache_members(raw), era))
        }
        RpcResponse::Result(raw) => (StatusCode::OK, result_message_for_era(id, raw, era)),
        RpcResponse::Error(raw) => {
            // Read as JSON before it came here, so this never fails.
            let error = std::str::from_utf8(raw).unwrap_or("null");
            let error = if ask == RoutedMethod::ReadResource {
                map_not_found_code(error, era)
            } else {
                Cow::Borrowed(error)
            };
            (http_status_of_error(&error, era), build_message(Some(id), "error", &[error.as_bytes()]))
        }
    }
}

/// A tool result that tells the model what went wrong.
pub(super) fn tool_error(id: &JsonRpcId, text: &str, era: Era) -> Bytes {
    let content = serde_json::json!({ "content": [{ "type": "text", "text": text }], "isError": true });
    result_message_for_era(id, content.to_string().as_bytes(), era)
}

/// What a caller is told of a server that refuses: who, why, and whether to call again.
pub(super) fn refusal_text(server: &ObjectKey, refusal: &CallRefusal) -> String {
    match refusal {
        CallRefusal::Removed(problem) => {
            format!("MCP server {server} was taken away ({problem}). Do not call its tools again.")
        }
        CallRefusal::Unavailable(problem) => {
            format!(
                "MCP server {server} is not available ({problem}). Nothing was sent to it. {}",
                retry_advice(problem)
            )
        }
    }
}

/// Says that an item was changed by its server while the call waited for a connection.
pub(super) fn changed_item_text(server: &ObjectKey, list: ListKind, name: &str) -> String {
    let item = list.item_noun();
    format!(
        "MCP server {server} changed its {item} {name:?} while it was being connected. Nothing was sent to it. Read \
         {} again before you use it.",
        list.method()
    )
}

/// The same for something that is not offered any more.
pub(super) fn removed_item_text(list: ListKind, name: &str, gone: &RemovedName) -> String {
    let RemovedName { server, problem } = gone;
    let what = match list {
        ListKind::Tools => "Tool",
        ListKind::Prompts => "Prompt",
        ListKind::Resources => "Resource",
        ListKind::Templates => "Resource template",
    };
    format!(
        "{what} {name:?} of MCP server {server} is not there any more ({problem}). {}",
        retry_advice(problem)
    )
}

/// Why a request leads nowhere.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum RouteError {
    /// It does not say what it is for.
    InvalidParams(&'static str),
    /// There never was such a thing.
    Unknown(String),
    /// There was, and it went.
    Removed(String),
}

/// The answer to a request that leads nowhere.
pub(super) fn route_error_response(
    id: &JsonRpcId,
    miss: &RouteError,
    ask: RoutedMethod,
    era: Era,
) -> (StatusCode, Bytes) {
    let failure = match miss {
        RouteError::InvalidParams(why) => {
            ResponseError::in_band(ErrorCode::INVALID_PARAMS, format!("Invalid params: {why}"))
        }
        RouteError::Removed(text) if ask == RoutedMethod::CallTool => {
            return (StatusCode::OK, tool_error(id, text, era));
        }
        RouteError::Unknown(text) | RouteError::Removed(text) => {
            let code = match (ask, era) {
                (RoutedMethod::ReadResource, Era::Legacy) => ErrorCode::RESOURCE_NOT_FOUND,
                _ => ErrorCode::INVALID_PARAMS,
            };
            ResponseError::in_band(code, text.clone())
        }
    };
    (failure.status, failure.to_message(Some(id)))
}

/// The answer to a request that its server did not answer: a result for the model where the protocol has one.
pub(super) fn failure_message(id: &JsonRpcId, text: &str, ask: RoutedMethod, era: Era) -> Bytes {
    match ask {
        RoutedMethod::CallTool => tool_error(id, text, era),
        _ => ResponseError::in_band(ErrorCode::INTERNAL_ERROR, text.to_owned()).to_message(Some(id)),
    }
}

/// The same for a connection that failed under a call.
pub(super) fn connection_failure_text(server: &ObjectKey, error: &ConnectionError) -> String {
    let ConnectionError { problem, dispatched, failure_source: sign, .. } = error;
    if *dispatched {
        return format!(
            "MCP server {server} failed while it worked on the call ({problem}). The call may have taken effect: \
             look before you call again."
        );
    }
    let what = match sign {
        FailureSource::Status(_) => format!("refused the call ({problem})"),
        FailureSource::RetryAfter => format!("is not available ({problem}). Nothing was sent to it"),
        FailureSource::Session => format!("did not take the call ({problem})"),
        FailureSource::Connection | FailureSource::Exit(_) => {
            format!("could not be reached ({problem}). Nothing was sent to it")
        }
    };
    format!("MCP server {server} {what}. {}", retry_advice(problem))
}

/// The same for a call that took too long.
pub(super) fn timeout_text(server: &ObjectKey, missed: &str) -> String {
    format!(
        "MCP server {server} {missed}, and the call was cancelled. It may have taken effect: look before you \
         call again."
    )
}

fn retry_advice(problem: &Problem) -> &'static str {
    match problem.reason {
        Reason::Removed | Reason::Suspended => "Do not call it again.",
        reason if reason.requires_user_action() => {
            "It will not work until a person acts: do not call it again."
        }
        _ => "It may work again later.",
    }
}

fn build_message(id: Option<&JsonRpcId>, member: &str, pieces: &[&[u8]]) -> Bytes {
    let id = id.map_or(&b"null"[..], JsonRpcId::as_bytes);
    let start: [&[u8]; 5] = [br#"{"jsonrpc":"2.0","id":"#, id, b",\"", member.as_bytes(), b"\":"];
    let end: [&[u8]; 1] = [b"}"];
    let parts = start.iter().chain(pieces).chain(&end);
    let mut message = Vec::with_capacity(parts.clone().map(|part| part.len()).sum());
    parts.for_each(|part| message.extend_from_slice(part));
    message.into()
}

fn result_message_for_era(id: &JsonRpcId, raw: &[u8], era: Era) -> Bytes {
    let (start, rest) = result_for_era(raw, era);
    result_message(id, &[start.as_bytes(), &rest])
}

/// The modern era needs a `resultType` in every result, the legacy one knows none; all else stays as it is.
///
/// Gives how the result begins, and what follows.
fn result_for_era(result: &[u8], era: Era) -> (&'static str, Cow<'_, [u8]>) {
    // Most results need no look at their members.
    let members = memmem::find(result, br#""resultType""#).and_then(|_| parse_members(result));
    if let Some(members) = &members
        && let Some(value) = members.get("resultType")
    {
        return match (era, value.get()) {
            (Era::Legacy, r#""complete""#) => {
                ("", Cow::Owned(members.rewrite(&[JsonEdit::Remove("resultType")]).into()))
            }
            _ => ("", Cow::Borrowed(result)),
        };
    }
    match (era, result.trim_ascii_start().strip_prefix(b"{")) {
        (Era::Modern, Some(rest)) if rest.trim_ascii_start().starts_with(b"}") => {
            (r#"{"resultType":"complete""#, Cow::Borrowed(rest))
        }
        (Era::Modern, Some(rest)) => (r#"{"resultType":"complete","#, Cow::Borrowed(rest)),
        _ => ("", Cow::Borrowed(result)),
    }
}

/// The modern era wants to know how long a resource may be kept: not at all, if its server does not say.
fn with_cache_members(result: &[u8]) -> Cow<'_, [u8]> {
    let Some(members) = parse_members(result) else { return Cow::Borrowed(result) };
    let missing = [("ttlMs", "0"), ("cacheScope", r#""private""#)]
        .into_iter()
        .filter(|(key, _)| members.get(key).is_none());
    let edits: Vec<_> = missing.map(|(key, value)| JsonEdit::Set(key, value)).collect();
    Cow::Owned(members.rewrite(&edits).into())
}

fn parse_members(object: &[u8]) -> Option<Members<'_>> {
    members(std::str::from_utf8(object).ok()?).ok()
}

/// The legacy era has a code of its own for a resource that is not there; the modern one has none.
fn map_not_found_code(error: &str, era: Era) -> Cow<'_, str> {
    let code = ErrorCode::RESOURCE_NOT_FOUND.0.to_string();
    let Ok(members) = members(error) else { return Cow::Borrowed(error) };
    let is_that = members.get("code").is_some_and(|found| found.get() == code);
    if era == Era::Legacy || !is_that {
        return Cow::Borrowed(error);
    }
    let code = ErrorCode::INVALID_PARAMS.0.to_string();
    Cow::Owned(members.rewrite(&[JsonEdit::Set("code", &code)]))
}

/// The modern era gives some errors an HTTP status of their own.
fn http_status_of_error(error: &str, era: Era) -> StatusCode {
    #[derive(serde::Deserialize)]
    struct ErrorWithCode {
        code: i32,
    }
    let code = serde_json::from_str(error).map(|ErrorWithCode { code }| ErrorCode(code));
    match (era, code) {
        (Era::Modern, Ok(ErrorCode::METHOD_NOT_FOUND)) => StatusCode::NOT_FOUND,
        (
            Era::Modern,
            Ok(
                ErrorCode::HEADER_MISMATCH
                | ErrorCode::MISSING_REQUIRED_CLIENT_CAPABILITY
                | ErrorCode::UNSUPPORTED_PROTOCOL_VERSION,
            ),
        ) => StatusCode::BAD_REQUEST,
        _ => StatusCode::OK,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn result_is_adapted_to_the_era_and_otherwise_unchanged() {
        for (raw, legacy, modern) in [
            (r"{}", r"{}", r#"{"resultType":"complete"}"#),
            (" { } ", " { } ", r#"{"resultType":"complete" } "#),
            (
                r#"{ "content": [], "x-new":1.0e+2 }"#,
                r#"{ "content": [], "x-new":1.0e+2 }"#,
                r#"{"resultType":"complete", "content": [], "x-new":1.0e+2 }"#,
            ),
            (
                r#"{"content":[],"resultType":"complete","_meta":{}}"#,
                r#"{"content":[],"_meta":{}}"#,
                r#"{"content":[],"resultType":"complete","_meta":{}}"#,
            ),
            (
                r#"{"structuredContent":{"resultType":"complete"}}"#,
                r#"{"structuredContent":{"resultType":"complete"}}"#,
                r#"{"resultType":"complete","structuredContent":{"resultType":"complete"}}"#,
            ),
            (r#"{"resultType":"task"}"#, r#"{"resultType":"task"}"#, r#"{"resultType":"task"}"#),
        ] {
            for (era, expected) in [(Era::Legacy, legacy), (Era::Modern, modern)] {
                let (start, rest) = result_for_era(raw.as_bytes(), era);
                assert_eq!(format!("{start}{}", String::from_utf8_lossy(&rest)), expected);
            }
        }
    }

    #[test]
    fn read_response_has_cache_members_and_the_not_found_code() {
        let read = |text: &'static str, error: bool, era| {
            let raw = Bytes::from_static(text.as_bytes());
            let answer = if error { RpcResponse::Error(raw) } else { RpcResponse::Result(raw) };
            let (_, message) =
                server_response(&JsonRpcId::from_number(1), &answer, RoutedMethod::ReadResource, era);
            let text = String::from_utf8(message.to_vec()).unwrap();
            text.strip_prefix(r#"{"jsonrpc":"2.0","id":1,""#).unwrap().to_owned()
        };
        let old = r#"{"contents":[]}"#;
        assert_eq!(read(old, false, Era::Legacy), r#"result":{"contents":[]}}"#);
        assert_eq!(
            read(old, false, Era::Modern),
            r#"result":{"resultType":"complete","contents":[],"ttlMs":0,"cacheScope":"private"}}"#
        );
        let new = r#"{"resultType":"complete","ttlMs":5,"cacheScope":"public","contents":[]}"#;
        assert_eq!(read(new, false, Era::Modern), format!(r#"result":{new}}}"#));
        let error = r#"{"code":-32002,"message":"m","data":{"uri":"x:1"}}"#;
        assert_eq!(read(error, true, Era::Legacy), format!(r#"error":{error}}}"#));
        assert_eq!(
            read(error, true, Era::Modern),
            format!(r#"error":{}}}"#, error.replace("-32002", "-32602"))
        );
    }

    #[test]
    fn modern_errors_map_to_http_status() {
        for (raw, status) in [
            (r#"{"code":-32601,"message":"m"}"#, 404),
            (r#"{"code":-32021,"message":"m"}"#, 400),
            (r#"{"code":-32602,"message":"m"}"#, 200),
            (r#"{"message":"m"}"#, 200),
        ] {
            assert_eq!(http_status_of_error(raw, Era::Modern).as_u16(), status, "{raw}");
            assert_eq!(http_status_of_error(raw, Era::Legacy).as_u16(), 200, "{raw}");
        }
    }

    #[test]
    fn error_texts_name_the_server_the_reason_and_the_advice() {
        let server = ObjectKey::new("default", "gh");
        let removed = Problem::new(Reason::Removed, "gh.yaml was deleted");
        let text = refusal_text(&server, &CallRefusal::Removed(removed.clone()));
        assert_eq!(
            text,
            "MCP server default/gh was taken away (Removed: gh.yaml was deleted). Do not call its tools again."
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
