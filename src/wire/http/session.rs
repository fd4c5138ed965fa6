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

/// Requests that show whether the server still knows the session.
#[derive(Debug, Default)]
pub(super) struct SessionCheck {
    /// Held while one is under way.
    pub(super) lock: Mutex<()>,
    /// Makes their ids.
    pub(super) next_id: AtomicU64,
}

/// How a response bears on the session in which its request was sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum SessionState {
    /// It says nothing against the session.
    Valid,
    /// The server may have forgotten the session; another request has to show it.
    Uncertain,
    /// The server has forgotten the session.
    Lost,
}

/// A JSON-RPC error, as far as it tells about the session.
#[derive(Debug, Deserialize)]
struct RpcError {
    #[serde(default)]
    code: i64,
    #[serde(default)]
    message: String,
}

/// Judges what a response says of the session; `error` is the JSON of its JSON-RPC error, if it holds one.
///
/// The specification has servers answer 404 (2025-11-25, Transports, Session Management). Others answer 400 or another
/// client error with a JSON-RPC error of any code, or an error in a response that says success; to those a request that
/// is wrong for another reason looks alike, so that they only raise a doubt.
pub(super) fn session_state(status: StatusCode, has_session: bool, error: Option<&[u8]>) -> SessionState {
    let error = error.and_then(|raw| serde_json::from_slice::<RpcError>(raw).ok());
    let unknown_method =
        error.as_ref().is_some_and(|error| error.code == i64::from(ErrorCode::METHOD_NOT_FOUND.0));
    let says_so = error.as_ref().is_some_and(|error| mentions_session(&error.message));
    match status {
        // Of the credentials, of one request alone, or of the time at which it came.
        StatusCode::UNAUTHORIZED
        | StatusCode::FORBIDDEN
        | StatusCode::REQUEST_TIMEOUT
        | StatusCode::PAYLOAD_TOO_LARGE
        | StatusCode::TOO_EARLY
        | StatusCode::TOO_MANY_REQUESTS => SessionState::Valid,
        StatusCode::NOT_FOUND if has_session && !unknown_method => SessionState::Lost,
        status if has_session && status.is_client_error() => SessionState::Uncertain,
        _ if says_so && !unknown_method => SessionState::Uncertain,
        _ => SessionState::Valid,
    }
}

/// Says whether a request that was sent for no other reason shows that the session is forgotten: its response holds no
/// result, and does not say either that only the method is unknown.
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

/// The end of a link whose session the server forgot. Nothing was done with the request that met it.
pub(super) fn session_lost_error(status: StatusCode) -> ConnectionError {
    let message = format!("the server no longer knows the session (HTTP {status})");
    ConnectionError {
        failure_source: FailureSource::Session,
        ..ConnectionError::new(Reason::ConnectFailed, message)
    }
}

/// The JSON-RPC error that a body holds, if it holds one.
pub(super) fn rpc_error(body: &Bytes) -> Option<Bytes> {
    match server_message::classify(body) {
        Ok(ServerMessage::Response(_, RpcResponse::Error(raw))) => Some(raw),
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
            (401, true, None, Valid),
            (403, true, Some(NO_SESSION), Valid),
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
