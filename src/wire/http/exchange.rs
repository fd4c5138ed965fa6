use std::pin::Pin;
use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method};

use super::super::MESSAGE_LIMIT;
use super::super::error::{ConnectionEnd, ConnectionError};
use super::super::response::{ResponseMessage, RpcResponse};
use super::super::server_message::{self, ServerMessage};
use super::client::{
    HttpClient, MAX_ERROR_BODY_BYTES, RequestError, SESSION_ID_HEADER, with_error_body_timeout,
};
use super::response::{ResponseKind, next_event};
use super::session::{SessionState, rpc_error, session_lost_error, session_state};
use crate::resource::Reason;

/// A request under way, and its response.
#[derive(Debug)]
pub(in crate::wire) struct HttpExchange {
    client: HttpClient,
    response: ResponseKind,
}

impl HttpClient {
    /// Posts a request; what comes of it is read from what this gives. Nothing is sent before that.
    ///
    /// A connection that cannot be made, or a session that the server forgot, is the end of the link, and is
    /// marked so in `lost`.
    pub(in crate::wire) fn request(
        &self,
        method: &str,
        name: Option<&str>,
        mirrored: Vec<(HeaderName, HeaderValue)>,
        message: Bytes,
        lost: Arc<ConnectionEnd>,
    ) -> HttpExchange {
        let mut headers = self.request_headers(method, name);
        headers.extend(mirrored);
        let client = self.clone();
        let sending = async move {
            let opening = client.is_handshaking();
            let result = client.post_request(headers, &message).await;
            if let (Err(error), false) = (&result, opening)
                && error.ends_connection()
            {
                lost.mark(error.clone());
            }
            result
        };
        HttpExchange::new(self.clone(), Box::pin(sending))
    }

    async fn post_request(
        &self,
        headers: HeaderMap,
        message: &Bytes,
    ) -> Result<ResponseKind, ConnectionError> {
        let response = self.send(&Method::POST, headers, message).await?;
        // Only the handshake opens a session, and only one.
        if self.is_handshaking()
            && !self.has_session()
            && let Some(session) = response.headers().get(SESSION_ID_HEADER)
            // A copy: the value as it came holds on to the whole read buffer.
            && let Ok(session) = HeaderValue::from_bytes(session.as_bytes())
        {
            self.update_template(|manner| drop(manner.headers.insert(SESSION_ID_HEADER, session)));
        }
        if response.status().is_success() {
            return Ok(ResponseKind::from_response(response));
        }
        let (head, body) = response.into_parts();
        let body = with_error_body_timeout(body.collect(MAX_ERROR_BODY_BYTES))
            .await
            .and_then(Result::ok)
            .unwrap_or_default();
        let refused = self.error_response(&head, &body);
        let forgotten = !self.is_handshaking()
            && match session_state(head.status, self.has_session(), rpc_error(&body).as_deref()) {
                SessionState::Valid => false,
                SessionState::Uncertain => !self.is_session_valid().await,
                SessionState::Lost => true,
            };
        match refused {
            _ if forgotten => Err(session_lost_error(head.status)),
            RequestError::Response(reply) => Ok(ResponseKind::Done(Some(reply))),
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

    /// Sends the request, if that is still to do, and waits for the head of the response. Cancel safe.
    async fn receive_head(&mut self) -> Result<(), ConnectionError> {
        if let ResponseKind::Sending(sending) = &mut self.response {
            let form = sending.await;
            // Done in any case: a finished future must not be asked again.
            self.response = ResponseKind::Done(None);
            self.response = form?;
        }
        Ok(())
    }

    /// The next message that concerns the request with this id. Cancel safe.
    pub(in crate::wire) async fn next(&mut self, id: u64) -> Result<ResponseMessage, ConnectionError> {
        self.receive_head().await?;
        let mask = self.client.notifications().mask();
        let unusable = |message: String| {
            Err(ConnectionError::new(Reason::ConnectFailed, mask.redacted_line(&message, 300))
                .into_dispatched())
        };
        match &mut self.response {
            ResponseKind::Done(reply) => match reply.take() {
                Some(reply) => Ok(ResponseMessage::Response(reply)),
                None => unusable("the answer was read already".into()),
            },
            ResponseKind::Unusable(why) => unusable(std::mem::take(why)),
            ResponseKind::Json(body) => {
                let body = body.read_to_end(MESSAGE_LIMIT).await?;
                match server_message::classify(&body) {
                    Ok(ServerMessage::Response(_, reply)) => {
                        if let RpcResponse::Error(error) = &reply {
                            self.client.inspect_error_for_session_loss(error);
                        }
                        Ok(ResponseMessage::Response(reply))
                    }
                    Ok(_) => unusable("the server answered with a message that is no answer".into()),
                    Err(error) => unusable(format!("the server answered with {error}")),
                }
            }
            ResponseKind::Sending(_) | ResponseKind::Stream(..) => self.next_from_stream(id).await,
        }
    }

    async fn next_from_stream(&mut self, id: u64) -> Result<ResponseMessage, ConnectionError> {
        let ResponseKind::Stream(body, events) = &mut self.response else {
            return Err(ConnectionError::new(Reason::ConnectFailed, "not a stream"));
        };
        loop {
            while let Some(message) = next_event(events)? {
                self.client.notifications().mark_received();
                match server_message::classify(&message) {
                    Ok(ServerMessage::Response(number, reply))
                        if number == Some(id) || matches!(reply, RpcResponse::Error(_)) =>
                    {
                        if let RpcResponse::Error(error) = &reply {
                            self.client.inspect_error_for_session_loss(error);
                        }
                        return Ok(ResponseMessage::Response(reply));
                    }
                    // Not the caller's alone.
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
                    Ok(ServerMessage::Request(question, method)) => {
                        self.client.post_in_background(
                            "",
                            server_message::response_to(&question, &method),
                            None,
                        );
                    }
                    Ok(ServerMessage::Response(..)) => {
                        tracing::debug!("an answer to another request was skipped")
                    }
                    Err(error) => self.client.notifications().log_malformed(&error),
                }
            }
            if let Some(chunk) = body.chunk().await? {
                events.push(&chunk);
            } else {
                let message = "the server ended the stream before the answer";
                return Err(ConnectionError::new(Reason::ConnectFailed, message).into_dispatched());
            }
        }
    }

    /// After the answer: gives the connection back.
    pub(in crate::wire) fn recycle(self) {
        if let ResponseKind::Stream(body, _) = self.response {
            body.recycle();
        }
    }
}
