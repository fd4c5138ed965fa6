//! The requests that check the health of the server and whether its session is still valid.
//!
//! They share one HTTP connection, which is kept between checks, so that a check of a healthy server needs no DNS lookup
//! and no TLS handshake. Unlike a pooled connection it holds no buffers.

use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use http::response::Parts;
use http::{Method, StatusCode};
use tokio::time::timeout;
use tracing::debug;

use super::super::error::ConnectionError;
use super::super::response::{RpcResponse, unusable_response};
use super::super::server_message::ServerMessage;
use super::super::{ListKind, MAX_MESSAGE_BYTES};
use super::client::{HttpClient, MAX_ERROR_BODY_BYTES, RequestError, with_error_body_timeout};
use super::media_type::MediaType;
use super::response::{MessageEvents, ResponseKind};
use super::session::{
    SessionCheck, SessionState, rpc_error, session_lost_error, session_state, shows_session_lost,
};
use super::streaming_body::StreamingBody;

/// The timeout of one request that checks the session.
const SESSION_CHECK_TIMEOUT: Duration = Duration::from_secs(10);
/// The wait for a response on the kept connection; after it another connection is used. The kept one may have been lost
/// without a sign, as by a firewall.
const KEPT_CONNECTION_TIMEOUT: Duration = Duration::from_secs(5);
/// The wait for the end of an event stream after the response, so that its connection can be kept.
const STREAM_END_TIMEOUT: Duration = Duration::from_secs(1);

/// The response to a check.
struct CheckResponse {
    head: Parts,
    /// The start of the body of a response with an error status.
    error_body: Bytes,
    /// The JSON-RPC response in the body of a response with a success status.
    response: Option<RpcResponse>,
}

impl CheckResponse {
    /// Returns the JSON-RPC error, if there is one.
    fn error(&self) -> Option<Bytes> {
        match &self.response {
            Some(RpcResponse::Error(error)) => Some(error.clone()),
            Some(RpcResponse::Result(_)) => None,
            None => rpc_error(&self.error_body),
        }
    }
}

impl HttpClient {
    /// Sends a request that checks the health of the server. Any response is a success, unless its status rejects the
    /// request without a JSON-RPC error, or it shows that the session is lost.
    pub(in crate::wire) async fn check_health(
        &self,
        method: &str,
        message: &Bytes,
    ) -> Result<RpcResponse, ConnectionError> {
        let check = self.send_check(method, message).await?;
        if shows_session_lost(check.head.status, self.has_session(), check.error().as_deref())
            && !self.is_session_valid().await
        {
            return Err(session_lost_error(check.head.status));
        }
        match check.response {
            Some(response) => Ok(response),
            None if check.head.status.is_success() => Err(unusable_response("it is not a JSON-RPC response")),
            None => match self.error_response(&check.head, &check.error_body) {
                RequestError::Response(response) => Ok(response),
                RequestError::Connection(error) => Err(error),
            },
        }
    }

    /// Checks whether the session is still valid: by a `ping`, and if that is rejected, by requesting a list that the
    /// server has. A timeout or a broken connection is no evidence, so the session counts as valid then.
    pub(super) async fn is_session_valid(&self) -> bool {
        // One check at a time is enough for all calls that failed together.
        let _lock = self.session_check().lock.lock().await;
        let fallback_list = self.0.template.load().fallback_list;
        for method in std::iter::once("ping").chain(fallback_list.map(ListKind::method)) {
            let id = self.session_check().next_id.fetch_add(1, Ordering::Relaxed);
            let message = format!(r#"{{"jsonrpc":"2.0","id":"session-{id}","method":"{method}"}}"#).into();
            let check = timeout(SESSION_CHECK_TIMEOUT, self.send_check(method, &message)).await;
            let is_lost = matches!(
                &check,
                Ok(Ok(check))
                    if shows_session_lost(check.head.status, self.has_session(), check.error().as_deref())
            );
            if !is_lost {
                debug!(method, "the session check found no evidence that the session is lost");
                return true;
            }
        }
        false
    }

    fn session_check(&self) -> &SessionCheck {
        self.0.session_check.get_or_init(Box::default)
    }

    /// True if an error in a response with a success status may mean that the session is lost.
    pub(super) fn may_mean_lost_session(&self, error: &[u8]) -> bool {
        !self.is_handshaking()
            && session_state(StatusCode::OK, self.has_session(), Some(error)) != SessionState::Valid
    }

    /// Checks the session after such an error. Returns the response for the caller if the session is valid.
    pub(super) async fn check_session(&self, response: RpcResponse) -> Result<ResponseKind, ConnectionError> {
        if self.is_session_valid().await {
            Ok(ResponseKind::Done(Some(response)))
        } else {
            Err(session_lost_error(StatusCode::OK))
        }
    }

    /// Sends a request that may be repeated: on the kept connection, or on a new one if there is none or it fails.
    async fn send_check(&self, method: &str, message: &Bytes) -> Result<CheckResponse, ConnectionError> {
        if let Some(error) = self.0.retry_after.request_error() {
            return Err(error);
        }
        let headers = self.authorized_headers(self.request_headers(method, None));
        let kept = self.0.check_socket.lock().take();
        let on_kept = async {
            let sent = self.send_on_socket(kept?, &Method::POST, &headers, message);
            timeout(KEPT_CONNECTION_TIMEOUT, sent).await.ok()?.ok()
        };
        let response = if let Some(response) = on_kept.await {
            response
        } else {
            let socket = self.0.pool.connect().await?;
            self.send_on_socket(socket, &Method::POST, &headers, message).await?
        };
        let (head, mut body) = response.into_parts();
        let mut check = CheckResponse { head, error_body: Bytes::new(), response: None };
        if !check.head.status.is_success() {
            let prefix = with_error_body_timeout(body.read_prefix(MAX_ERROR_BODY_BYTES)).await;
            check.error_body = prefix.unwrap_or_default();
        } else if MediaType::from_headers(&check.head.headers) == MediaType::EventStream {
            check.response = self.response_in_stream(&mut body).await?;
            let _ = timeout(STREAM_END_TIMEOUT, body.read_prefix(MAX_ERROR_BODY_BYTES)).await;
        } else {
            let text = body.read_to_end(MAX_MESSAGE_BYTES).await?;
            check.response = self.0.notifications.read_response(text);
        }
        *self.0.check_socket.lock() = body.into_reusable_socket(&check.head);
        Ok(check)
    }

    /// Returns the first response in an event stream, and dispatches the messages before it.
    async fn response_in_stream(
        &self,
        body: &mut StreamingBody,
    ) -> Result<Option<RpcResponse>, ConnectionError> {
        let mut events = MessageEvents::new();
        while let Some(chunk) = body.chunk().await? {
            events.push(&chunk);
            while let Some(message) = events.next()? {
                match self.0.notifications.read(message) {
                    (_, ServerMessage::Response(_, response)) => return Ok(Some(response)),
                    (message, kind) => self.dispatch(&kind, &message),
                }
            }
        }
        Ok(None)
    }
}
