use std::sync::atomic::AtomicU64;

use bytes::Bytes;
use http::StatusCode;
use rmcp::model::ErrorCode;
use serde::Deserialize;
use tokio::sync::Mutex;

use super::super::error::{ConnectionError, FailureSource};
use super::super::response::RpcResponse;
use super::super::server_message::{self, ServerMessage};
use crate::resource::Reason;

/// The state of the requests that check whether the session is still valid.
#[derive(Debug, Default)]
pub(super) struct SessionCheck {
    /// Held while a check is in flight.
    pub(super) lock: Mutex<()>,
    /// The number in the id of the next check.
    pub(super) next_id: AtomicU64,
}

/// The state of a session, as far as a response shows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum SessionState {
    /// Nothing indicates that the session is lost.
    Valid,
    /// The session may be lost; another request has to show it.
    Uncertain,
    /// The server does not recognize the session any more.
    Lost,
}

/// The members of a JSON-RPC error that are relevant to the session.
#[derive(Debug, Deserialize)]
struct RpcError {
    #[serde(default)]
    code: i64,
    #[serde(default)]
    message: String,
}

/// Determines the state of the session from a response. `error` is the JSON of its JSON-RPC error, if there is one.
///
/// The specification requires 404 for a lost session (2025-11-25, Transports, Session Management). Some servers return
/// 400, 401 or another client error with a JSON-RPC error of any code, or an error with a success status. A request that
/// is invalid for another reason, or that the credentials do not permit, can get the same response, so those only make the
/// session uncertain.
pub(super) fn session_state(status: StatusCode, has_session: bool, error: Option<&[u8]>) -> SessionState {
    let error = error.and_then(|raw| serde_json::from_slice::<RpcError>(raw).ok());
    let unknown_method =
        error.as_ref().is_some_and(|error| error.code == i64::from(ErrorCode::METHOD_NOT_FOUND.0));
    let is_about_session = error.as_ref().is_some_and(|error| mentions_session(&error.message));
    match status {
        // These concern one request only, or the time of the request.
        StatusCode::REQUEST_TIMEOUT
        | StatusCode::PAYLOAD_TOO_LARGE
        | StatusCode::TOO_EARLY
        | StatusCode::TOO_MANY_REQUESTS => SessionState::Valid,
        StatusCode::NOT_FOUND if has_session && !unknown_method => SessionState::Lost,
        status if has_session && status.is_client_error() => SessionState::Uncertain,
        _ if is_about_session && !unknown_method => SessionState::Uncertain,
        _ => SessionState::Valid,
    }
}

/// True if the response to a session check shows that the session is lost: its error is not "method not found", and
/// [`session_state`] is not `Valid`.
pub(super) fn shows_session_lost(status: StatusCode, has_session: bool, error: Option<&[u8]>) -> bool {
    let unknown_method = error
        .and_then(|raw| serde_json::from_slice::<RpcError>(raw).ok())
        .is_some_and(|error| error.code == i64::from(ErrorCode::METHOD_NOT_FOUND.0));
    !unknown_method && session_state(status, has_session, error) != SessionState::Valid
}

/// True for messages such as "No valid session ID provided" and "Server not initialized".
fn mentions_session(message: &str) -> bool {
    let message = message.to_ascii_lowercase();
    message.contains("session") || message.contains("initializ")
}

/// Returns the error that ends a connection whose session is lost. The server did not process the request.
pub(super) fn session_lost_error(status: StatusCode) -> ConnectionError {
    let message = format!("the server does not recognize the session any more (HTTP {status})");
    ConnectionError {
        failure_source: FailureSource::Session,
        ..ConnectionError::new(Reason::ConnectFailed, message)
    }
}

/// Returns the JSON-RPC error in a body, if there is one.
pub(super) fn rpc_error(body: &Bytes) -> Option<Bytes> {
    match server_message::read(body.clone()).kind {
        ServerMessage::Response(_, RpcResponse::Error(raw)) => Some(raw),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn session_state_of_responses_to_an_unknown_session() {
        use SessionState::{Lost, Uncertain, Valid};
        const NO_SESSION: &str = r#"{"code":-32000,"message":"Bad Request: No valid session ID provided"}"#;
        const NOT_FOUND: &str = r#"{"code":-32001,"message":"Session not found"}"#;
        const NOT_INITIALIZED: &str = r#"{"code":-32000,"message":"Bad Request: Server not initialized"}"#;
        const INVALID: &str = r#"{"code":-32602,"message":"x is required"}"#;
        const NO_METHOD: &str = r#"{"code":-32601,"message":"Method not found"}"#;
        const ODD: &str = r#"{"code":"E_SESSION","message":17}"#;
        for (status, has_session, error, expected) in [
            (404, true, None, Lost),
            (404, true, Some(NOT_FOUND), Lost),
            (404, true, Some(NO_METHOD), Uncertain),
            (404, false, Some(NO_METHOD), Valid),
            (404, false, None, Valid),
            (400, true, Some(NO_SESSION), Uncertain),
            (400, true, Some(INVALID), Uncertain),
            (400, true, Some(ODD), Uncertain),
            (400, true, None, Uncertain),
            (409, true, None, Uncertain),
            (410, true, None, Uncertain),
            (422, true, Some(INVALID), Uncertain),
            (400, false, Some(INVALID), Valid),
            (400, false, Some(NOT_INITIALIZED), Uncertain),
            (200, true, Some(NO_SESSION), Uncertain),
            (200, true, Some(INVALID), Valid),
            (200, true, Some(NO_METHOD), Valid),
            (500, true, Some(INVALID), Valid),
            (500, true, Some(NO_SESSION), Uncertain),
            (401, true, None, Uncertain),
            (401, false, None, Valid),
            (403, true, Some(NO_SESSION), Uncertain),
            (403, false, None, Valid),
            (413, true, None, Valid),
            (429, true, None, Valid),
        ] {
            let case = format!("{status} {has_session} {error:?}");
            let (status, error) = (StatusCode::from_u16(status).unwrap(), error.map(str::as_bytes));
            assert_eq!(session_state(status, has_session, error), expected, "{case}");
            let shows = expected != Valid && error != Some(NO_METHOD.as_bytes());
            assert_eq!(shows_session_lost(status, has_session, error), shows, "{case}");
        }
    }
}
