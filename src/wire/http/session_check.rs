//! Finds out whether the server still knows the session, where a response left that open.

use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use http::{Method, StatusCode};
use tracing::debug;

use super::super::error::ConnectionError;
use super::super::response::RpcResponse;
use super::super::server_message::{self, ServerMessage};
use super::super::{ListKind, MESSAGE_LIMIT, sse};
use super::client::{ERROR_BODY, HttpClient, within};
use super::pool::PooledBody;
use super::response::{is_event_stream, next_event};
use super::session::{
    SessionCheck, SessionState, rpc_error, session_forgotten, session_state, shows_forgotten,
};

/// How long a request may take that shows whether the server knows the session.
const SESSION_CHECK: Duration = Duration::from_secs(10);

impl HttpClient {
    /// Asks whether the server still knows the session, where a response left that open: by a `ping`, and if that is
    /// refused, by a list that the server has. Silence and a connection that breaks show nothing.
    pub(super) async fn knows_session(&self) -> bool {
        // One request after another is enough for all calls that were refused together.
        let _one = self.session_check().one.lock().await;
        let list = self.0.manner.load().list;
        for method in std::iter::once("ping").chain(list.map(ListKind::method)) {
            let shows = tokio::time::timeout(SESSION_CHECK, self.shows_forgotten(method)).await;
            if !matches!(shows, Ok(Ok(true))) {
                debug!(method, ?shows, "nothing shows that the server forgot the session");
                return true;
            }
        }
        false
    }

    fn session_check(&self) -> &SessionCheck {
        self.0.session_check.get_or_init(Box::default)
    }

    async fn shows_forgotten(&self, method: &str) -> Result<bool, ConnectionError> {
        let id = self.session_check().number.fetch_add(1, Ordering::Relaxed);
        let message = format!(r#"{{"jsonrpc":"2.0","id":"session-{id}","method":"{method}"}}"#);
        let response = self.send(&Method::POST, self.headers(method, None), &message.into()).await?;
        let (head, body) = response.into_parts();
        let error = if head.status.is_success() && is_event_stream(&head.headers) {
            first_error(body).await?
        } else if head.status.is_success() {
            rpc_error(&body.collect(MESSAGE_LIMIT).await?)
        } else {
            within(body.collect(ERROR_BODY)).await.and_then(Result::ok).and_then(|body| rpc_error(&body))
        };
        Ok(shows_forgotten(head.status, self.has_session(), error.as_deref()))
    }

    /// Takes up an error that answers a request with a status that says success.
    pub(super) fn doubt_session(&self, error: &[u8]) {
        if !self.is_opening()
            && session_state(StatusCode::OK, self.has_session(), Some(error)) != SessionState::Known
        {
            self.0.ears.doubt();
        }
    }

    /// The end of the link, if an error that answers a health check says that the session is unknown.
    pub(in crate::wire) fn session_lost(&self, error: &[u8]) -> Option<ConnectionError> {
        shows_forgotten(StatusCode::OK, self.has_session(), Some(error))
            .then(|| session_forgotten(StatusCode::OK))
    }
}

/// Gives the JSON-RPC error of the first answer in an event stream, if that is an error.
async fn first_error(mut body: PooledBody) -> Result<Option<Bytes>, ConnectionError> {
    let mut events = sse::SseDecoder::new(MESSAGE_LIMIT);
    while let Some(chunk) = body.chunk().await? {
        events.push(&chunk);
        while let Some(message) = next_event(&mut events)? {
            if let Ok(ServerMessage::Answer(_, reply)) = server_message::classify(&message) {
                return Ok(match reply {
                    RpcResponse::Error(raw) => Some(raw),
                    RpcResponse::Result(_) => None,
                });
            }
        }
    }
    Ok(None)
}
