//! The transport HTTP+SSE of MCP 2024-11-05, which MCP deprecated in 2025-03-26: the client opens one event stream, whose
//! first event names the endpoint for POST, and gets every message of the server on that stream.
//!
//! Promises that the end of the stream is the end of the connection, and that the endpoint is of the same origin.

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::Method;
use tokio::time::timeout;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::super::connection_context::ConnectionContext;
use super::super::error::{ConnectionEnd, ConnectionError};
use super::super::notifications::NotificationDispatcher;
use super::super::pending_calls::{CallKind, PendingCall, PendingCalls};
use super::super::response::RpcResponse;
use super::super::response_message::ResponseMessage;
use super::super::{ProtocolViolation, server_message};
use super::client::{HttpClient, MAX_ERROR_BODY_BYTES, RequestError, read_error, with_error_body_timeout};
use super::media_type::MediaType;
use super::response::MessageEvents;
use super::session::{SessionState, rpc_error, session_lost_error, session_state};
use super::streaming_body::StreamingBody;
use crate::resource::{HttpEndpoint, Reason};

/// The silence of the event stream after which a `ping` is sent. Many proxies end a stream after a minute of silence, and
/// here that would be the end of the connection.
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(25);
/// The id of the first `ping`: higher than the ids of requests, and exact in JavaScript.
const FIRST_PING_ID: u64 = 1 << 52;

/// A connection over HTTP+SSE.
pub(in crate::wire) struct SseConnection {
    client: HttpClient,
    calls: PendingCalls,
    end: Arc<ConnectionEnd>,
    /// Cancelling it, or dropping the guard, closes the event stream.
    close_guard: DropGuard,
}

/// A request that is posted, and whose response comes on the event stream.
pub(in crate::wire) struct SseCall {
    /// The POST in progress.
    posting: Option<PostFuture>,
    call: PendingCall,
}

/// Resolves to the response if the server rejects the POST with a JSON-RPC error.
type PostFuture = Pin<Box<dyn Future<Output = Result<Option<RpcResponse>, ConnectionError>> + Send>>;

/// An open event stream.
struct EventStream {
    body: StreamingBody,
    events: MessageEvents,
}

impl SseConnection {
    /// Opens the event stream and waits for the endpoint. A task on [`ConnectionContext::tasks`] then reads the stream
    /// until it ends, which is recorded in `end`.
    pub(in crate::wire) async fn open(
        endpoint: &HttpEndpoint,
        end: &Arc<ConnectionEnd>,
        notifications: &NotificationDispatcher,
        context: &ConnectionContext,
    ) -> Result<Self, ConnectionError> {
        let client = HttpClient::new(endpoint, notifications.clone(), context)?;
        context.attempt_step.record_request("the event stream");
        let mut stream = client.open_event_stream().await?;
        let reference = stream.endpoint().await?;
        client.set_post_target(&reference)?;
        notifications.record_violation(ProtocolViolation::DeprecatedTransport);
        let (calls, closing) = (PendingCalls::new(context.callers), CancellationToken::new());
        let close_guard = closing.clone().drop_guard();
        context.tasks.spawn({
            let (client, calls, end) = (client.clone(), calls.clone(), end.clone());
            async move {
                if let Some(error) = closing.run_until_cancelled(stream.read(&client, &calls)).await {
                    end.mark(error);
                }
                calls.fail_all();
            }
        });
        Ok(Self { client, calls, end: end.clone(), close_guard })
    }

    /// Returns the client that posts the messages.
    pub(in crate::wire) fn client(&self) -> &HttpClient {
        &self.client
    }

    /// Prepares a request. It is sent when the call is first polled. `wants_notifications` is true if the call takes
    /// notifications.
    pub(in crate::wire) fn request(
        &self,
        id: u64,
        kind: CallKind,
        wants_notifications: bool,
        method: &str,
        message: Bytes,
    ) -> SseCall {
        let call = self.calls.add(id, kind, wants_notifications, self.end.clone());
        let (client, method) = (self.client.clone(), method.to_owned());
        let posting = Box::pin(async move { client.post_sse_request(&method, &message).await });
        SseCall { posting: Some(posting), call }
    }

    /// Closes the event stream and all idle connections.
    pub(in crate::wire) async fn close(&self) {
        self.close_guard.token().cancel();
        self.client.close().await;
    }
}

impl SseCall {
    /// Returns the next message for the request. Cancel safe.
    pub(in crate::wire) async fn next(&mut self) -> Result<ResponseMessage, ConnectionError> {
        while let Some(posting) = &mut self.posting {
            tokio::select! {
                biased;
                // The response may come before the status of the POST.
                message = self.call.next() => return message,
                posted = posting => {
                    self.posting = None;
                    if let Some(response) = posted? {
                        return Ok(ResponseMessage::Response(response));
                    }
                }
            }
        }
        self.call.next().await
    }
}

impl HttpClient {
    /// Opens the event stream of HTTP+SSE.
    async fn open_event_stream(&self) -> Result<EventStream, ConnectionError> {
        let headers = self.event_stream_headers(None);
        let (head, mut body) = self.send_on_new_socket(&Method::GET, headers, b"").await?.into_parts();
        if head.status.is_success() && MediaType::from_headers(&head.headers) == MediaType::EventStream {
            return Ok(EventStream { body, events: MessageEvents::new() });
        }
        let text = with_error_body_timeout(body.read_prefix(MAX_ERROR_BODY_BYTES)).await.unwrap_or_default();
        if !head.status.is_success()
            && let RequestError::Connection(error) = self.error_response(&head, &text)
        {
            return Err(error);
        }
        Err(ConnectionError::new(
            Reason::HandshakeFailed,
            "the response is not an event stream; if the server speaks streamable HTTP, remove spec.http.transport",
        ))
    }

    /// Posts a request. A status that shows that the session is unknown ends the connection.
    async fn post_sse_request(
        &self,
        method: &str,
        message: &Bytes,
    ) -> Result<Option<RpcResponse>, ConnectionError> {
        let headers = self.request_headers(method, None);
        let response = self.send(&Method::POST, headers, message, false).await?;
        if response.status().is_success() {
            response.into_body().recycle();
            return Ok(None);
        }
        let (head, body) = read_error(response).await;
        let outcome = self.error_response(&head, &body);
        if !self.is_handshaking() {
            match session_state(head.status, true, rpc_error(&body).as_deref()) {
                SessionState::Lost => return Err(session_lost_error(head.status)),
                SessionState::Uncertain => self.notifications().request_health_check(),
                SessionState::Valid => {}
            }
        }
        match outcome {
            RequestError::Response(response) => Ok(Some(response)),
            RequestError::Connection(error) => Err(error),
        }
    }
}

impl EventStream {
    /// Waits for the event that names the endpoint: the first one that is not a JSON-RPC message.
    async fn endpoint(&mut self) -> Result<String, ConnectionError> {
        loop {
            while let Some(data) = self.events.next()? {
                if !matches!(data.trim_ascii().first(), Some(b'{' | b'[') | None) {
                    return Ok(String::from_utf8_lossy(data.trim_ascii()).into_owned());
                }
            }
            match self.body.chunk().await? {
                Some(chunk) => self.events.push(&chunk),
                None => return Err(stream_ended("before it named the endpoint")),
            }
        }
    }

    /// Reads messages until the stream ends, and returns the reason. Sends `ping` while the stream is silent, also during
    /// a call; its response, which comes on the stream, is ignored.
    async fn read(&mut self, client: &HttpClient, calls: &PendingCalls) -> ConnectionError {
        let mut next_ping = FIRST_PING_ID;
        loop {
            loop {
                match self.events.next() {
                    Ok(Some(message)) => {
                        let (message, kind) = client.notifications().read(message);
                        if let Some((message, kind)) = calls.receive(message, kind, client.notifications()) {
                            client.dispatch(&kind, &message);
                        }
                    }
                    Ok(None) => break,
                    Err(error) => return error,
                }
            }
            match timeout(KEEP_ALIVE_INTERVAL, self.body.chunk()).await {
                Ok(Ok(Some(chunk))) => self.events.push(&chunk),
                Ok(Ok(None)) => return stream_ended("which is the end of the connection"),
                Ok(Err(error)) => return error,
                Err(_) => {
                    let ping = server_message::message(Some(next_ping), "ping", None);
                    client.post_in_background("ping", ping, None);
                    next_ping += 1;
                }
            }
        }
    }
}

fn stream_ended(when: &str) -> ConnectionError {
    let message = format!("the server ended the event stream, {when}");
    ConnectionError::new(Reason::ConnectFailed, message)
}

impl fmt::Debug for SseConnection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SseConnection")
    }
}

impl fmt::Debug for SseCall {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SseCall")
    }
}
