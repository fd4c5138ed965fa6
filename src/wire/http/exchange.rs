use std::pin::Pin;
use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};

use super::super::error::{ConnectionEnd, ConnectionError};
use super::super::lenient;
use super::super::response::{RpcResponse, unreadable_response, unusable_response};
use super::super::response_message::ResponseMessage;
use super::super::server_message::ServerMessage;
use super::super::{ListKind, MAX_MESSAGE_BYTES};
use super::client::{HttpClient, RequestError, SESSION_ID_HEADER, read_error};
use super::response::ResponseKind;
use super::session::{SessionState, rpc_error, session_lost_error, session_state};
use crate::resource::Reason;

/// The most characters of the reason why a response cannot be used. It may quote the body.
const MAX_REASON_CHARS: usize = 300;

/// A request in flight and its response.
#[derive(Debug)]
pub(in crate::wire) struct HttpExchange {
    client: HttpClient,
    response: ResponseKind,
}

impl HttpClient {
    /// Prepares a request. It is sent when the exchange is first polled, and its response is read from the exchange.
    ///
    /// If the server cannot be reached or the session is lost, the connection has ended; this is recorded in `end`.
    pub(in crate::wire) fn request(
        &self,
        method: &str,
        name: Option<&str>,
        param_headers: Vec<(HeaderName, HeaderValue)>,
        message: Bytes,
        end: Arc<ConnectionEnd>,
    ) -> HttpExchange {
        let mut headers = self.request_headers(method, name);
        headers.extend(param_headers);
        let client = self.clone();
        let (is_initialize, is_repeatable) = (method == "initialize", is_repeatable(method));
        let sending = async move {
            let is_handshaking = client.is_handshaking();
            let result = client.post_request(headers, &message, is_initialize, is_repeatable).await;
            if let (Err(error), false) = (&result, is_handshaking)
                && error.ends_connection()
            {
                end.mark(error.clone());
            }
            result
        };
        HttpExchange::new(self.clone(), Box::pin(sending))
    }

    /// Posts a request and determines the kind of its response. Checks the session if the status makes it uncertain.
    async fn post_request(
        &self,
        headers: HeaderMap,
        message: &Bytes,
        is_initialize: bool,
        is_repeatable: bool,
    ) -> Result<ResponseKind, ConnectionError> {
        let response = self.send(&Method::POST, headers, message, is_repeatable).await?;
        // Only the response to `initialize` starts a session, not the rejection of the probe before it.
        if is_initialize
            && response.status().is_success()
            && let Some(session) = response.headers().get(SESSION_ID_HEADER)
            // Copied: the received value keeps the whole read buffer alive.
            && let Ok(session) = HeaderValue::from_bytes(session.as_bytes())
        {
            self.update_template(|template| drop(template.headers.insert(SESSION_ID_HEADER, session)));
        }
        if response.status().is_success() {
            return Ok(ResponseKind::from_response(response, &self.0.notifications).await);
        }
        let (head, body) = read_error(response).await;
        let outcome = self.error_response(&head, &body);
        let session_lost = !self.is_handshaking()
            && match session_state(head.status, self.has_session(), rpc_error(&body).as_deref()) {
                SessionState::Valid => false,
                SessionState::Uncertain => !self.is_session_valid().await,
                SessionState::Lost => true,
            };
        match outcome {
            _ if session_lost => Err(session_lost_error(head.status)),
            RequestError::Response(rpc_response) => Ok(ResponseKind::Done(Some(rpc_response))),
            RequestError::Connection(error) => Err(self.with_transport_advice(head.status, error)),
        }
    }

    /// Adds to the error of a handshake how to declare a server that probably speaks HTTP+SSE.
    fn with_transport_advice(&self, status: StatusCode, mut error: ConnectionError) -> ConnectionError {
        let is_refused = matches!(status, StatusCode::NOT_FOUND | StatusCode::METHOD_NOT_ALLOWED);
        if is_refused && self.is_handshaking() && self.0.url.path().trim_end_matches('/').ends_with("/sse") {
            error
                .problem
                .message
                .push_str(", and set spec.http.transport to SSE if the server speaks HTTP+SSE");
        }
        error
    }
}

/// True for requests that only read, so that the server may get them twice.
fn is_repeatable(method: &str) -> bool {
    let lists = ListKind::ALL.map(ListKind::method);
    lists.contains(&method)
        || matches!(
            method,
            "ping" | "server/discover" | "resources/read" | "prompts/get" | "completion/complete"
        )
}

impl HttpExchange {
    fn new(
        client: HttpClient,
        sending: Pin<Box<dyn Future<Output = Result<ResponseKind, ConnectionError>> + Send>>,
    ) -> Self {
        Self { client, response: ResponseKind::Sending(sending) }
    }

    /// Sends the request, if it is not sent yet, and waits for the head of the response. Cancel safe.
    async fn receive_head(&mut self) -> Result<(), ConnectionError> {
        if let ResponseKind::Sending(sending) = &mut self.response {
            let response = sending.await;
            // Reset on an error too: a completed future must not be polled again.
            self.response = ResponseKind::Done(None);
            self.response = response?;
        }
        Ok(())
    }

    /// Returns the next message for the request with this id. Cancel safe.
    pub(in crate::wire) async fn next(&mut self, id: u64) -> Result<ResponseMessage, ConnectionError> {
        loop {
            self.receive_head().await?;
            let rpc_response = match &mut self.response {
                ResponseKind::Done(rpc_response) => {
                    let rpc_response = rpc_response.take();
                    let read_already = || unusable_response("it was read already");
                    return rpc_response.map(ResponseMessage::Response).ok_or_else(read_already);
                }
                ResponseKind::Unusable(why) => {
                    let mask = self.client.notifications().mask();
                    return Err(unusable_response(&mask.redacted_line(why, MAX_REASON_CHARS)));
                }
                ResponseKind::Json(body) => {
                    let body = body.read_to_end(MAX_MESSAGE_BYTES).await?;
                    self.response_in_body(&body, id)?
                }
                ResponseKind::Sending(_) | ResponseKind::Stream(..) => match self.next_from_stream(id).await?
                {
                    Some(ResponseMessage::Response(rpc_response)) => rpc_response,
                    Some(notification) => return Ok(notification),
                    None => continue,
                },
            };
            match &rpc_response {
                // The session is checked before the caller gets the error: if it is lost, the request was not processed.
                RpcResponse::Error(error) if self.client.may_mean_lost_session(error) => {
                    let client = self.client.clone();
                    let checking = async move { client.check_session(rpc_response).await };
                    self.response = ResponseKind::Sending(Box::pin(checking));
                }
                _ => return Ok(ResponseMessage::Response(rpc_response)),
            }
        }
    }

    /// Returns the response in a JSON body, which may be a batch, and dispatches its other messages.
    fn response_in_body(&self, body: &Bytes, id: u64) -> Result<RpcResponse, ConnectionError> {
        if body.trim_ascii().is_empty() {
            return Err(unusable_response("its body is empty"));
        }
        let (mut response, mut unreadable) = (None, None);
        for message in lenient::messages(body.clone()) {
            match self.client.notifications().read(message) {
                (_, ServerMessage::Response(request_id, rpc_response)) => {
                    // The only response of a body belongs to its request, whatever its id is.
                    if response.is_none() || request_id == Some(id) {
                        response = Some(rpc_response);
                    }
                }
                (message, ServerMessage::Unreadable(_)) => unreadable = Some(message),
                (message, kind) => self.client.dispatch(&kind, &message),
            }
        }
        if response.is_some() {
            self.client.notifications().mark_received();
        }
        response.ok_or_else(|| match unreadable {
            Some(text) => unreadable_response(&text, self.client.notifications().mask()),
            None => unusable_response("it is not a JSON-RPC response"),
        })
    }

    /// Returns the next message for the request from an event stream, and dispatches the others. Returns `None` if the
    /// stream has ended and another one will continue it. Cancel safe.
    async fn next_from_stream(&mut self, id: u64) -> Result<Option<ResponseMessage>, ConnectionError> {
        let ResponseKind::Stream(body, events) = &mut self.response else {
            return Err(unusable_response("it is not an event stream"));
        };
        let notifications = self.client.notifications();
        loop {
            while let Some(message) = events.next()? {
                notifications.mark_received();
                match notifications.read(message) {
                    (_, ServerMessage::Response(request_id, rpc_response))
                        if request_id == Some(id) || matches!(rpc_response, RpcResponse::Error(_)) =>
                    {
                        return Ok(Some(ResponseMessage::Response(rpc_response)));
                    }
                    (message, ServerMessage::Unreadable(request_id)) if request_id == Some(id) => {
                        return Err(unreadable_response(&message, notifications.mask()));
                    }
                    (_, ServerMessage::InputRequest(id, request)) => {
                        return Ok(Some(ResponseMessage::InputRequest(id, request)));
                    }
                    (_, ServerMessage::Cancelled(id)) => {
                        return Ok(Some(ResponseMessage::InputCancelled(id)));
                    }
                    (
                        message,
                        kind @ (ServerMessage::Progress(_)
                        | ServerMessage::ListenAcknowledged(_)
                        | ServerMessage::ElicitationComplete(_)
                        | ServerMessage::OtherNotification
                        | ServerMessage::LogMessage),
                    ) => {
                        if matches!(kind, ServerMessage::LogMessage) {
                            notifications.record_log_message(&message);
                        }
                        return Ok(Some(ResponseMessage::Notification(message)));
                    }
                    // These concern the whole connection, not only this request.
                    (message, kind) => self.client.dispatch(&kind, &message),
                }
            }
            let ended = match body.chunk().await {
                Ok(Some(chunk)) => {
                    events.push(&chunk);
                    continue;
                }
                Ok(None) => {
                    let message = "the server ended the stream before the response";
                    ConnectionError::new(Reason::ConnectFailed, message).into_dispatched()
                }
                Err(error) => error,
            };
            let position = events.position();
            if !self.client.is_resumable(&position) {
                return Err(ended);
            }
            let client = self.client.clone();
            let resuming = async move { client.resume_stream(position).await };
            self.response = ResponseKind::Sending(Box::pin(resuming));
            return Ok(None);
        }
    }

    /// Returns the pooled HTTP connection of an event stream to the pool. Call it after the response.
    pub(in crate::wire) fn recycle(self) {
        if let ResponseKind::Stream(body, _) = self.response {
            body.recycle();
        }
    }
}
