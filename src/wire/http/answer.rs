use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::{Response, StatusCode};

use super::super::inbound::{self, Inbound};
use super::super::link::{Incoming, LinkError, Reply};
use super::super::{MESSAGE_LIMIT, sse};
use super::client::Client;
use super::connection::Body;
use crate::resource::Reason;

/// A response that is being read.
#[derive(Debug)]
pub(in crate::wire) struct Answering {
    client: Client,
    form: Form,
}

#[derive(Debug)]
enum Form {
    /// One JSON message.
    Json(Option<Body>),
    /// Messages one by one.
    Stream(Body, sse::Events),
    /// Read already.
    Done(Option<Reply>),
    /// Not something that holds an answer.
    Unusable(String),
}

impl Answering {
    pub(super) fn new(client: Client, response: Response<Body>) -> Self {
        let (head, body) = response.into_parts();
        let kind = head.headers.get(CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default();
        let form = if kind.starts_with("text/event-stream") {
            Form::Stream(body, sse::Events::new(MESSAGE_LIMIT))
        } else if kind.starts_with("application/json") {
            Form::Json(Some(body))
        } else if head.status == StatusCode::ACCEPTED {
            Form::Unusable("the server took the request without answering it (HTTP 202)".into())
        } else {
            Form::Unusable(format!(
                "the server answered with {kind:?}, which is neither JSON nor an event stream"
            ))
        };
        Self { client, form }
    }

    /// The answer in the body of a refusal, if it is a JSON-RPC error.
    pub(super) fn of_error(client: Client, body: &Bytes) -> Option<Self> {
        match inbound::classify(body) {
            Ok(Inbound::Answer(_, reply @ Reply::Error(_))) => {
                Some(Self { client, form: Form::Done(Some(reply)) })
            }
            _ => None,
        }
    }

    /// The next message that concerns the request with this id. Cancel safe, but for a JSON body, which
    /// is lost if it was read in part.
    pub(in crate::wire) async fn next(&mut self, id: u64) -> Result<Incoming, LinkError> {
        let unusable = |message: String| Err(LinkError::new(Reason::ConnectFailed, message).dispatched());
        match &mut self.form {
            Form::Done(reply) => match reply.take() {
                Some(reply) => Ok(Incoming::Answer(reply)),
                None => unusable("the answer was read already".into()),
            },
            Form::Unusable(why) => unusable(std::mem::take(why)),
            Form::Json(body) => {
                let Some(body) = body.take() else {
                    return unusable("the answer was read already".into());
                };
                let body = body.collect(MESSAGE_LIMIT).await?;
                match inbound::classify(&body) {
                    Ok(Inbound::Answer(_, reply)) => Ok(Incoming::Answer(reply)),
                    Ok(_) => unusable("the server answered with a message that is no answer".into()),
                    Err(error) => unusable(format!("the server answered with {error}")),
                }
            }
            Form::Stream(..) => self.streamed(id).await,
        }
    }

    async fn streamed(&mut self, id: u64) -> Result<Incoming, LinkError> {
        let Form::Stream(body, events) = &mut self.form else {
            return Err(LinkError::new(Reason::ConnectFailed, "not a stream"));
        };
        loop {
            while let Some(message) = next_event(events)? {
                match inbound::classify(&message) {
                    Ok(Inbound::Answer(number, reply))
                        if number == Some(id) || matches!(reply, Reply::Error(_)) =>
                    {
                        return Ok(Incoming::Answer(reply));
                    }
                    Ok(Inbound::Progress(_) | Inbound::Notice | Inbound::Changed(_)) => {
                        return Ok(Incoming::Notice(message));
                    }
                    Ok(Inbound::Question(question, method)) => {
                        self.client.notify_soon("", inbound::answer(&question, &method));
                    }
                    Ok(Inbound::Answer(..)) => tracing::debug!("an answer to another request was skipped"),
                    Err(error) => tracing::debug!(%error, "an event that is not MCP was skipped"),
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

    /// The open stream of a request that is never answered while it is wanted (`subscriptions/listen`).
    pub(super) fn into_stream(self) -> Option<(Body, sse::Events)> {
        match self.form {
            Form::Stream(body, events) => Some((body, events)),
            _ => None,
        }
    }

    /// After the answer: gives the connection back.
    pub(in crate::wire) fn recycle(self) {
        if let Form::Stream(body, _) = self.form {
            body.recycle();
        }
    }
}

pub(super) fn next_event(events: &mut sse::Events) -> Result<Option<Bytes>, LinkError> {
    events.next().map_err(|sse::TooLong| {
        let message = format!("the server sent an event longer than {} MiB", MESSAGE_LIMIT >> 20);
        LinkError::new(Reason::ConnectFailed, message).dispatched()
    })
}
