//! Checks whether the session is still valid after a response that leaves it open.

use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use http::{Method, StatusCode};
use tracing::debug;

use super::super::error::ConnectionError;
use super::super::response::RpcResponse;
use super::super::server_message::{self, ServerMessage};
use super::super::{ListKind, MAX_MESSAGE_BYTES, sse};
use super::client::{HttpClient, MAX_ERROR_BODY_BYTES, with_error_body_timeout};
use super::pool::PooledBody;
use super::response::{is_event_stream, next_event};
use super::session::{
    SessionCheck, SessionState, rpc_error, session_lost_error, session_state, shows_session_lost,
};

/// The timeout of one request that checks the session.
const SESSION_CHECK_TIMEOUT: Duration = Duration::from_secs(10);

impl HttpClient {
    /// Checks whether the session is still valid: by a `ping`, and if that is rejected, by requesting a list that the
    /// server has. A timeout or a broken connection is no evidence, so the session counts as valid then.
    pub(super) async fn is_session_valid(&self) -> bool {
        // One check at a time is enough for all calls that failed together.
        let _lock = self.session_check().lock.lock().await;
        let fallback_list = self.0.template.load().fallback_list;
        for method in std::iter::once("ping").chain(fallback_list.map(ListKind::method)) {
            let session_lost =
                tokio::time::timeout(SESSION_CHECK_TIMEOUT, self.probe_shows_session_lost(method)).await;
            if !matches!(session_lost, Ok(Ok(true))) {
                debug!(method, ?session_lost, "the session check found no evidence that the session is lost");
                return true;
            }
        }
        false
    }

    fn session_check(&self) -> &SessionCheck {
        self.0.session_check.get_or_init(Box::default)
    }

    /// Sends one request and returns true if its response shows that the session is lost.
    async fn probe_shows_session_lost(&self, method: &str) -> Result<bool, ConnectionError> {
        let id = self.session_check().next_id.fetch_add(1, Ordering::Relaxed);
        let message = format!(r#"{{"jsonrpc":"2.0","id":"session-{id}","method":"{method}"}}"#);
        let response = self.send(&Method::POST, self.request_headers(method, None), &message.into()).await?;
        let (head, body) = response.into_parts();
        let error = if head.status.is_success() && is_event_stream(&head.headers) {
            first_response_error(body).await?
        } else if head.status.is_success() {
            rpc_error(&body.collect(MAX_MESSAGE_BYTES).await?)
        } else {
            with_error_body_timeout(body.collect(MAX_ERROR_BODY_BYTES))
                .await
                .and_then(Result::ok)
                .and_then(|body| rpc_error(&body))
        };
        Ok(shows_session_lost(head.status, self.has_session(), error.as_deref()))
    }

    /// Requests a health check if an error in a response with a success status may mean that the session is lost.
    pub(super) fn inspect_error_for_session_loss(&self, error: &[u8]) {
        if !self.is_handshaking()
            && session_state(StatusCode::OK, self.has_session(), Some(error)) != SessionState::Valid
        {
            self.0.notifications.request_health_check();
        }
    }

    /// Returns the error that ends the connection if the JSON-RPC error of a health check shows that the session is
    /// lost.
    pub(in crate::wire) fn health_check_session_error(&self, error: &[u8]) -> Option<ConnectionError> {
        shows_session_lost(StatusCode::OK, self.has_session(), Some(error))
            .then(|| session_lost_error(StatusCode::OK))
    }
}

/// Returns the first response in an event stream if it is a JSON-RPC error.
async fn first_response_error(mut body: PooledBody) -> Result<Option<Bytes>, ConnectionError> {
    let mut events = sse::SseDecoder::new(MAX_MESSAGE_BYTES);
    while let Some(chunk) = body.chunk().await? {
        events.push(&chunk);
        while let Some(message) = next_event(&mut events)? {
            if let Ok(ServerMessage::Response(_, response)) = server_message::classify(&message) {
                return Ok(match response {
                    RpcResponse::Error(raw) => Some(raw),
                    RpcResponse::Result(_) => None,
                });
            }
        }
    }
    Ok(None)
}
