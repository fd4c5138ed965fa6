use std::pin::Pin;
use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method};

use super::super::MAX_MESSAGE_BYTES;
use super::super::error::{ConnectionEnd, ConnectionError};
use super::super::response::{ResponseMessage, RpcResponse};
use super::super::server_message::{self, ServerMessage};
use super::client::{
    HttpClient, MAX_ERROR_BODY_BYTES, RequestError, SESSION_ID_HEADER, with_error_body_timeout,
};
use super::response::{ResponseKind, next_event};
use super::session::{SessionState, rpc_error, session_lost_error, session_state};
use crate::resource::Reason;

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
        let sending = async move {
            let is_handshaking = client.is_handshaking();
            let result = client.post_request(headers, &message).await;
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
    ) -> Result<ResponseKind, ConnectionError> {
        let response = self.send(&Method::POST, headers, message).await?;
        // Only the handshake starts a session, and only once.
        if self.is_handshaking()
            && !self.has_session()
            && let Some(session) = response.headers().get(SESSION_ID_HEADER)
            // Copied: the received value keeps the whole read buffer alive.
            && let Ok(session) = HeaderValue::from_bytes(session.as_bytes())
        {
            self.update_template(|template| drop(template.headers.insert(SESSION_ID_HEADER, session)));
        }
        if response.status().is_success() {
            return Ok(ResponseKind::from_response(response));
        }
        let (head, body) = response.into_parts();
        let body = with_error_body_timeout(body.collect(MAX_ERROR_BODY_BYTES))
            .await
            .and_then(Result::ok)
            .unwrap_or_default();
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
            RequestError::Connection(error) => Err(error),
        }
    }
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
        self.receive_head().await?;
        let mask = self.client.notifications().mask();
        let unusable = |message: String| {
            Err(ConnectionError::new(Reason::ConnectFailed, mask.redacted_line(&message, 300))
                .into_dispatched())
        };
        match &mut self.response {
            ResponseKind::Done(rpc_response) => match rpc_response.take() {
                Some(rpc_response) => Ok(ResponseMessage::Response(rpc_response)),
                None => unusable("the response was read already".into()),
            },
            ResponseKind::Unusable(message) => unusable(std::mem::take(message)),
            ResponseKind::Json(body) => {
                let body = body.read_to_end(MAX_MESSAGE_BYTES).await?;
                match server_message::classify(&body) {
                    Ok(ServerMessage::Response(_, rpc_response)) => {
                        if let RpcResponse::Error(error) = &rpc_response {
                            self.client.inspect_error_for_session_loss(error);
                        }
                        Ok(ResponseMessage::Response(rpc_response))
                    }
                    Ok(_) => unusable("the server returned a message that is not a response".into()),
                    Err(error) => unusable(format!("the server returned {error}")),
                }
            }
            ResponseKind::Sending(_) | ResponseKind::Stream(..) => self.next_from_stream(id).await,
        }
    }

    /// Returns the next message for the request from an event stream, and dispatches the others. Cancel safe.
    async fn next_from_stream(&mut self, id: u64) -> Result<ResponseMessage, ConnectionError> {
        let ResponseKind::Stream(body, events) = &mut self.response else {
            return Err(ConnectionError::new(Reason::ConnectFailed, "the response is not an event stream"));
        };
        loop {
            while let Some(message) = next_event(events)? {
                self.client.notifications().mark_received();
                match server_message::classify(&message) {
                    Ok(ServerMessage::Response(request_id, rpc_response))
                        if request_id == Some(id) || matches!(rpc_response, RpcResponse::Error(_)) =>
                    {
                        if let RpcResponse::Error(error) = &rpc_response {
                            self.client.inspect_error_for_session_loss(error);
                        }
                        return Ok(ResponseMessage::Response(rpc_response));
                    }
                    // These concern the whole connection, not only this request.
                    Ok(kind @ (ServerMessage::ListChanged(_) | ServerMessage::ResourceUpdated(_))) => {
                        self.client.notifications().dispatch(&kind, &message);
                    }
                    Ok(
                        kind @ (ServerMessage::Progress(_)
                        | ServerMessage::ListenAcknowledged(_)
                        | ServerMessage::ListenCancelled(_)
                        | ServerMessage::OtherNotification
                        | ServerMessage::LogMessage),
                    ) => {
                        if matches!(kind, ServerMessage::LogMessage) {
                            self.client.notifications().record_log_message(&message);
                        }
                        return Ok(ResponseMessage::Notification(message));
                    }
                    Ok(ServerMessage::Request(request_id, method)) => {
                        self.client.post_in_background(
                            "",
                            server_message::response_to(&request_id, &method),
                            None,
                        );
                    }
                    Ok(ServerMessage::Response(..)) => {
                        tracing::debug!("a response to another request was skipped")
                    }
                    Err(error) => self.client.notifications().log_malformed(&error),
                }
            }
            if let Some(chunk) = body.chunk().await? {
                events.push(&chunk);
            } else {
                let message = "the server ended the stream before the response";
                return Err(ConnectionError::new(Reason::ConnectFailed, message).into_dispatched());
            }
        }
    }

    /// Returns the pooled HTTP connection of an event stream to the pool. Call it after the response.
    pub(in crate::wire) fn recycle(self) {
        if let ResponseKind::Stream(body, _) = self.response {
            body.recycle();
        }
    }
}
