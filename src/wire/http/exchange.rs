use std::pin::Pin;
use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method};

use super::super::MESSAGE_LIMIT;
use super::super::error::{ConnectionEnd, ConnectionError};
use super::super::response::{ResponseMessage, RpcResponse};
use super::super::server_message::{self, ServerMessage};
use super::client::{ERROR_BODY, HttpClient, RequestError, SESSION, within};
use super::response::{ResponseKind, next_event};
use super::session::{SessionState, rpc_error, session_forgotten, session_state};
use crate::resource::Reason;

/// A request under way, and its response.
#[derive(Debug)]
pub(in crate::wire) struct HttpExchange {
    client: HttpClient,
    form: ResponseKind,
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
        let mut headers = self.headers(method, name);
        headers.extend(mirrored);
        let client = self.clone();
        let sending = async move {
            let opening = client.is_opening();
            let result = client.exchange(headers, &message).await;
            if let (Err(error), false) = (&result, opening)
                && error.ends_the_link()
            {
                lost.mark(error.clone());
            }
            result
        };
        HttpExchange::new(self.clone(), Box::pin(sending))
    }

    async fn exchange(&self, headers: HeaderMap, message: &Bytes) -> Result<ResponseKind, ConnectionError> {
        let response = self.send(&Method::POST, headers, message).await?;
        // Only the handshake opens a session, and only one.
        if self.is_opening()
            && !self.has_session()
            && let Some(session) = response.headers().get(SESSION)
            // A copy: the value as it came holds on to the whole read buffer.
            && let Ok(session) = HeaderValue::from_bytes(session.as_bytes())
        {
            self.learn(|manner| drop(manner.headers.insert(SESSION, session)));
        }
        if response.status().is_success() {
            return Ok(ResponseKind::of(response));
        }
        let (head, body) = response.into_parts();
        let body = within(body.collect(ERROR_BODY)).await.and_then(Result::ok).unwrap_or_default();
        let refused = self.refused(&head, &body);
        let forgotten = !self.is_opening()
            && match session_state(head.status, self.has_session(), rpc_error(&body).as_deref()) {
                SessionState::Known => false,
                SessionState::Doubtful => !self.knows_session().await,
                SessionState::Forgotten => true,
            };
        match refused {
            _ if forgotten => Err(session_forgotten(head.status)),
            RequestError::Answer(reply) => Ok(ResponseKind::Done(Some(reply))),
            RequestError::Error(error) => Err(error),
        }
    }
}

impl HttpExchange {
    fn new(
        client: HttpClient,
        sending: Pin<Box<dyn Future<Output = Result<ResponseKind, ConnectionError>> + Send>>,
    ) -> Self {
        Self { client, form: ResponseKind::Sending(sending) }
    }

    /// Sends the request, if that is still to do, and waits for the head of the response. Cancel safe.
    async fn head(&mut self) -> Result<(), ConnectionError> {
        if let ResponseKind::Sending(sending) = &mut self.form {
            let form = sending.await;
            // Done in any case: a finished future must not be asked again.
            self.form = ResponseKind::Done(None);
            self.form = form?;
        }
        Ok(())
    }

    /// The next message that concerns the request with this id. Cancel safe.
    pub(in crate::wire) async fn next(&mut self, id: u64) -> Result<ResponseMessage, ConnectionError> {
        self.head().await?;
        let mask = self.client.ears().mask();
        let unusable = |message: String| {
            Err(ConnectionError::new(Reason::ConnectFailed, mask.words(&message, 300)).dispatched())
        };
        match &mut self.form {
            ResponseKind::Done(reply) => match reply.take() {
                Some(reply) => Ok(ResponseMessage::Answer(reply)),
                None => unusable("the answer was read already".into()),
            },
            ResponseKind::Unusable(why) => unusable(std::mem::take(why)),
            ResponseKind::Json(body) => {
                let body = body.whole(MESSAGE_LIMIT).await?;
                match server_message::classify(&body) {
                    Ok(ServerMessage::Answer(_, reply)) => {
                        if let RpcResponse::Error(error) = &reply {
                            self.client.doubt_session(error);
                        }
                        Ok(ResponseMessage::Answer(reply))
                    }
                    Ok(_) => unusable("the server answered with a message that is no answer".into()),
                    Err(error) => unusable(format!("the server answered with {error}")),
                }
            }
            ResponseKind::Sending(_) | ResponseKind::Stream(..) => self.streamed(id).await,
        }
    }

    async fn streamed(&mut self, id: u64) -> Result<ResponseMessage, ConnectionError> {
        let ResponseKind::Stream(body, events) = &mut self.form else {
            return Err(ConnectionError::new(Reason::ConnectFailed, "not a stream"));
        };
        loop {
            while let Some(message) = next_event(events)? {
                self.client.ears().heard();
                match server_message::classify(&message) {
                    Ok(ServerMessage::Answer(number, reply))
                        if number == Some(id) || matches!(reply, RpcResponse::Error(_)) =>
                    {
                        if let RpcResponse::Error(error) = &reply {
                            self.client.doubt_session(error);
                        }
                        return Ok(ResponseMessage::Answer(reply));
                    }
                    // Not the caller's alone.
                    Ok(kind @ (ServerMessage::Changed(_) | ServerMessage::Updated(_))) => {
                        self.client.ears().take(&kind, &message);
                    }
                    Ok(
                        kind @ (ServerMessage::Progress(_)
                        | ServerMessage::Listening(_)
                        | ServerMessage::ListenEnded(_)
                        | ServerMessage::Notice
                        | ServerMessage::Logged),
                    ) => {
                        if matches!(kind, ServerMessage::Logged) {
                            self.client.ears().log(&message);
                        }
                        return Ok(ResponseMessage::Notice(message));
                    }
                    Ok(ServerMessage::Question(question, method)) => {
                        self.client.post_soon("", server_message::answer(&question, &method), None);
                    }
                    Ok(ServerMessage::Answer(..)) => {
                        tracing::debug!("an answer to another request was skipped")
                    }
                    Err(error) => self.client.ears().skipped(&error),
                }
            }
            if let Some(chunk) = body.chunk().await? {
                events.push(&chunk);
            } else {
                let message = "the server ended the stream before the answer";
                return Err(ConnectionError::new(Reason::ConnectFailed, message).dispatched());
            }
        }
    }

    /// After the answer: gives the connection back.
    pub(in crate::wire) fn recycle(self) {
        if let ResponseKind::Stream(body, _) = self.form {
            body.recycle();
        }
    }
}
