use std::fmt;
use std::pin::Pin;

use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::{HeaderMap, Response, StatusCode};

use super::super::error::LinkError;
use super::super::inbound::{self, Inbound};
use super::super::link::{Incoming, Reply};
use super::super::{MESSAGE_LIMIT, sse};
use super::client::Client;
use super::connection::{Body, Collecting};
use crate::resource::Reason;

/// A request under way, and its response.
#[derive(Debug)]
pub(in crate::wire) struct Answering {
    client: Client,
    form: Form,
}

/// What a response consists of, as far as it is known.
pub(super) enum Form {
    /// The head of the response has not come yet.
    Sending(Pin<Box<dyn Future<Output = Result<Self, LinkError>> + Send>>),
    /// One JSON message.
    Json(Collecting),
    /// Messages one by one.
    Stream(Body, sse::Events),
    /// Read already.
    Done(Option<Reply>),
    /// Not something that holds an answer.
    Unusable(String),
}

impl Form {
    /// What a response that says success holds.
    pub(super) fn of(response: Response<Body>) -> Self {
        let (head, body) = response.into_parts();
        let kind = head.headers.get(CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default();
        if is_event_stream(&head.headers) {
            Self::Stream(body, sse::Events::new(MESSAGE_LIMIT))
        } else if kind.starts_with("application/json") {
            Self::Json(Collecting::new(body))
        } else if head.status == StatusCode::ACCEPTED {
            Self::Unusable("the server took the request without answering it (HTTP 202)".into())
        } else {
            Self::Unusable(format!(
                "the server answered with {kind:?}, which is neither JSON nor an event stream"
            ))
        }
    }
}

impl fmt::Debug for Form {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Sending(_) => "Sending",
            Self::Json(_) => "Json",
            Self::Stream(..) => "Stream",
            Self::Done(_) => "Done",
            Self::Unusable(_) => "Unusable",
        })
    }
}

impl Answering {
    pub(super) fn new(
        client: Client,
        sending: Pin<Box<dyn Future<Output = Result<Form, LinkError>> + Send>>,
    ) -> Self {
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

pub(super) fn is_event_stream(headers: &HeaderMap) -> bool {
    headers.get(CONTENT_TYPE).is_some_and(|kind| kind.as_bytes().starts_with(b"text/event-stream"))
}

pub(super) fn next_event(events: &mut sse::Events) -> Result<Option<Bytes>, LinkError> {
    events.next().map_err(|sse::TooLong| {
        let message = format!("the server sent an event longer than {} MiB", MESSAGE_LIMIT >> 20);
        LinkError::new(Reason::ConnectFailed, message).dispatched()
    })
}
