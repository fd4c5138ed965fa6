use std::pin::Pin;
use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method};

use super::super::MESSAGE_LIMIT;
use super::super::error::{LinkError, Lost};
use super::super::inbound::{self, Inbound};
use super::super::reply::{Incoming, Reply};
use super::client::{Client, ERROR_BODY, Refused, SESSION, within};
use super::response::{Form, next_event};
use super::session::{SessionState, rpc_error, session_forgotten, session_state};
use crate::resource::Reason;

/// A request under way, and its response.
#[derive(Debug)]
pub(in crate::wire) struct Answering {
    client: Client,
    form: Form,
}

impl Client {
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
        lost: Arc<Lost>,
    ) -> Answering {
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
        Answering::new(self.clone(), Box::pin(sending))
    }

    async fn exchange(&self, headers: HeaderMap, message: &Bytes) -> Result<Form, LinkError> {
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
            return Ok(Form::of(response));
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
            Refused::Answer(reply) => Ok(Form::Done(Some(reply))),
            Refused::Error(error) => Err(error),
        }
    }
}

impl Answering {
    fn new(client: Client, sending: Pin<Box<dyn Future<Output = Result<Form, LinkError>> + Send>>) -> Self {
        Self { client, form: Form::Sending(sending) }
    }

    /// Sends the request, if that is still to do, and waits for the head of the response. Cancel safe.
    async fn head(&mut self) -> Result<(), LinkError> {
        if let Form::Sending(sending) = &mut self.form {
            let form = sending.await;
            // Done in any case: a finished future must not be asked again.
            self.form = Form::Done(None);
            self.form = form?;
        }
        Ok(())
    }

    /// The next message that concerns the request with this id. Cancel safe.
    pub(in crate::wire) async fn next(&mut self, id: u64) -> Result<Incoming, LinkError> {
        self.head().await?;
        let mask = self.client.ears().mask();
        let unusable = |message: String| {
            Err(LinkError::new(Reason::ConnectFailed, mask.words(&message, 300)).dispatched())
        };
        match &mut self.form {
            Form::Done(reply) => match reply.take() {
                Some(reply) => Ok(Incoming::Answer(reply)),
                None => unusable("the answer was read already".into()),
            },
            Form::Unusable(why) => unusable(std::mem::take(why)),
            Form::Json(body) => {
                let body = body.whole(MESSAGE_LIMIT).await?;
                match inbound::classify(&body) {
                    Ok(Inbound::Answer(_, reply)) => {
                        if let Reply::Error(error) = &reply {
                            self.client.doubt_session(error);
                        }
                        Ok(Incoming::Answer(reply))
                    }
                    Ok(_) => unusable("the server answered with a message that is no answer".into()),
                    Err(error) => unusable(format!("the server answered with {error}")),
                }
            }
            Form::Sending(_) | Form::Stream(..) => self.streamed(id).await,
        }
    }

    async fn streamed(&mut self, id: u64) -> Result<Incoming, LinkError> {
        let Form::Stream(body, events) = &mut self.form else {
            return Err(LinkError::new(Reason::ConnectFailed, "not a stream"));
        };
        loop {
            while let Some(message) = next_event(events)? {
                self.client.ears().heard();
                match inbound::classify(&message) {
                    Ok(Inbound::Answer(number, reply))
                        if number == Some(id) || matches!(reply, Reply::Error(_)) =>
                    {
                        if let Reply::Error(error) = &reply {
                            self.client.doubt_session(error);
                        }
                        return Ok(Incoming::Answer(reply));
                    }
                    // Not the caller's alone.
                    Ok(kind @ (Inbound::Changed(_) | Inbound::Updated(_))) => {
                        self.client.ears().take(&kind, &message);
                    }
                    Ok(
                        kind @ (Inbound::Progress(_)
                        | Inbound::Listening(_)
                        | Inbound::ListenEnded(_)
                        | Inbound::Notice
                        | Inbound::Logged),
                    ) => {
                        if matches!(kind, Inbound::Logged) {
                            self.client.ears().log(&message);
                        }
                        return Ok(Incoming::Notice(message));
                    }
                    Ok(Inbound::Question(question, method)) => {
                        self.client.post_soon("", inbound::answer(&question, &method), None);
                    }
                    Ok(Inbound::Answer(..)) => tracing::debug!("an answer to another request was skipped"),
                    Err(error) => self.client.ears().skipped(&error),
                }
            }
            if let Some(chunk) = body.chunk().await? {
                events.push(&chunk);
            } else {
                let message = "the server ended the stream before the answer";
                return Err(LinkError::new(Reason::ConnectFailed, message).dispatched());
            }
        }
    }

    /// After the answer: gives the connection back.
    pub(in crate::wire) fn recycle(self) {
        if let Form::Stream(body, _) = self.form {
            body.recycle();
        }
    }
}
