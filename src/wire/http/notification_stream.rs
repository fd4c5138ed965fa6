use std::fmt;
use std::pin::Pin;
use std::time::Duration;

use bytes::Bytes;
use http::header::{ACCEPT, CONTENT_TYPE};
use http::{HeaderValue, Method, StatusCode};
use tokio::time::{Instant, sleep, sleep_until};

use super::super::error::{ConnectionError, FailureSource};
use super::super::server_message::{self, LISTEN_METHOD, ServerMessage};

use super::super::{HandshakeResult, JsonEdit, MESSAGE_LIMIT, rewrite, sse};
use super::client::{ERROR_BODY, HttpClient, RequestError, within};
use super::response::{is_event_stream, next_event};
use super::session::{SessionState, rpc_error, session_forgotten, session_state};
use super::streaming_body::StreamingBody;
use crate::net::{Backoff, Delays, jitter};
use crate::resource::Reason;
use crate::wire::Era;

/// Shortest and longest wait before a stream that ended, or was refused, is opened again.
const REOPEN: Delays = Delays { initial: Duration::from_millis(500), max: Duration::from_mins(5) };
/// A stream that was open for so long is opened again without delay: proxies and serverless platforms end streams after
/// a fixed time, and that is no fault.
const STABLE: Duration = Duration::from_secs(10);
/// How often idle connections are looked through.
const HOUSEKEEPING: Duration = Duration::from_secs(30);

/// The stream on which a server tells that its lists changed: GET in the legacy era, `subscriptions/listen` in the
/// modern one.
///
/// Opens it again whenever it ends or is refused, with a backoff that only a stream that stayed open resets; only a
/// server that says that there is none (405, or 404 without a session) is not asked again. After each gap the lists
/// count as changed. All its methods are cancel safe: a pause or a request under way goes on where it was.
#[derive(Debug)]
pub(in crate::wire) struct NotificationStream {
    client: HttpClient,
    state: State,
    backoff: Backoff,
    /// True if the server has opened it before.
    offered: bool,
    /// True if lists were read while the stream was closed, so that a change may have been missed.
    missed: bool,
}

enum State {
    /// To be opened at this time.
    Closed(Instant),
    /// The request is under way.
    Opening(Pin<Box<dyn Future<Output = Result<Option<StreamingBody>, ConnectionError>> + Send>>),
    Open(Box<Open>),
    /// The server offers none.
    None,
}

#[derive(Debug)]
struct Open {
    body: StreamingBody,
    events: sse::SseDecoder,
    since: Instant,
}

impl NotificationStream {
    /// Makes a stream that is not opened yet.
    pub(in crate::wire) fn new(client: HttpClient, peer: &HandshakeResult) -> Self {
        let wanted = peer.era == Era::Legacy || peer.changes_told().is_some();
        let state = if wanted { State::Closed(Instant::now()) } else { State::None };
        Self { client, state, backoff: Backoff::default(), offered: false, missed: false }
    }

    /// Tries once to open the stream, so that lists read afterwards miss no change. A refusal is no error: [`Self::read`]
    /// tries again.
    pub(in crate::wire) async fn open(
        &mut self,
        peer: &HandshakeResult,
        mut next_id: impl FnMut() -> u64,
    ) -> Result<(), ConnectionError> {
        while matches!(self.state, State::Opening(_))
            || (matches!(self.state, State::Closed(_)) && self.backoff.failures() == 0)
        {
            self.advance(peer, &mut next_id).await?;
        }
        Ok(())
    }

    /// Notes that the lists were read now: if the stream is closed, they are to be read again once it opens.
    pub(in crate::wire) fn lists_were_read(&mut self) {
        self.missed = !matches!(self.state, State::Open(_));
    }

    /// Reads notices for as long as the connection is there. Gives the reason of its end.
    pub(in crate::wire) async fn read(
        &mut self,
        peer: &HandshakeResult,
        mut next_id: impl FnMut() -> u64,
    ) -> ConnectionError {
        loop {
            if let Err(error) = self.advance(peer, &mut next_id).await {
                return error;
            }
        }
    }

    /// Waits for the next thing to happen and takes it up. An error is the end of the connection.
    async fn advance(
        &mut self,
        peer: &HandshakeResult,
        next_id: &mut impl FnMut() -> u64,
    ) -> Result<(), ConnectionError> {
        match &mut self.state {
            State::Closed(at) => {
                // A timer takes a millisecond at least, which the first opening has no reason to wait for.
                if *at > Instant::now() {
                    sleep_until(*at).await;
                }
                self.client.pause().over().await;
                let request = peer.changes_told().map(|filter| listen_request(peer, &filter, next_id()));
                self.state = State::Opening(Box::pin(self.client.listen(request, self.offered)));
            }
            State::Opening(opening) => {
                let opened = opening.await;
                self.opened(opened, peer)?;
            }
            State::Open(open) => {
                let Open { body, events, since } = &mut **open;
                let chunk = tokio::select! {
                    chunk = body.chunk() => chunk,
                    () = sleep(HOUSEKEEPING) => {
                        self.client.rest(Duration::ZERO);
                        return Ok(());
                    }
                };
                if let Ok(Some(chunk)) = chunk {
                    events.push(&chunk);
                    match take(events, &self.client) {
                        Ok(()) => return Ok(()),
                        Err(error) => tracing::debug!(%error, "the notice stream is not usable"),
                    }
                }
                self.backoff.ended(since.elapsed(), STABLE);
                // Notices sent while it is closed are lost: the lists are read again then.
                self.missed = true;
                self.close();
            }
            State::None => {
                sleep(HOUSEKEEPING).await;
                self.client.rest(Duration::ZERO);
            }
        }
        Ok(())
    }

    /// Takes up the response to the request that opens the stream.
    fn opened(
        &mut self,
        opened: Result<Option<StreamingBody>, ConnectionError>,
        peer: &HandshakeResult,
    ) -> Result<(), ConnectionError> {
        match opened {
            Ok(Some(body)) => {
                self.offered = true;
                let (events, since) = (sse::SseDecoder::new(MESSAGE_LIMIT), Instant::now());
                self.state = State::Open(Box::new(Open { body, events, since }));
            }
            Ok(None) => self.state = State::None,
            Err(error) if error.ends_the_link() => return Err(error),
            Err(error) => {
                tracing::debug!(%error, "the notice stream could not be opened");
                self.close();
                return Ok(());
            }
        }
        // A server that never had a stream missed nothing by it.
        if std::mem::take(&mut self.missed) && self.offered {
            peer.capabilities.lists().for_each(|list| self.client.ears().changed(list));
        }
        Ok(())
    }

    /// Leaves the stream closed until the backoff has passed.
    fn close(&mut self) {
        let wait = self.backoff.fail(REOPEN, jitter(), None);
        self.state = State::Closed(Instant::now() + wait);
    }
}

impl HttpClient {
    /// Opens the stream of notices: by GET in the legacy era, in the modern one with this request. Gives `None` if the
    /// server says that it has none: by 405, by 404 outside a session, or in the modern era as an unknown method.
    ///
    /// `again` says that the server had one: then 404 in a session says that the session is gone. Servers without a
    /// route for GET answer 404 too.
    pub(super) fn listen(
        &self,
        request: Option<Bytes>,
        again: bool,
    ) -> impl Future<Output = Result<Option<StreamingBody>, ConnectionError>> + Send + 'static {
        let client = self.clone();
        async move { client.open_stream(request, again).await }
    }

    async fn open_stream(
        &self,
        request: Option<Bytes>,
        again: bool,
    ) -> Result<Option<StreamingBody>, ConnectionError> {
        let (method, headers) = if request.is_some() {
            (Method::POST, self.headers(LISTEN_METHOD, None))
        } else {
            let mut headers = self.headers("", None);
            headers.insert(ACCEPT, HeaderValue::from_static("text/event-stream"));
            headers.remove(CONTENT_TYPE);
            (Method::GET, headers)
        };
        if let Some(error) = self.0.pause.refusal() {
            return Err(error);
        }
        let target = self.0.manner.load().target.clone();
        let socket = self.0.pool.connect().await?;
        let body = request.as_deref().unwrap_or_default();
        let (head, body) = StreamingBody::ask(socket, (&method, &target, &headers), body).await?.into_parts();
        if head.status.is_success() && is_event_stream(&head.headers) {
            return Ok(Some(body));
        }
        let body = within(body.start(ERROR_BODY)).await.unwrap_or_default();
        let unknown_method =
            || server_message::is_unknown_method(rpc_error(&body).as_deref().unwrap_or_default());
        match head.status {
            StatusCode::METHOD_NOT_ALLOWED => return Ok(None),
            StatusCode::NOT_FOUND if !self.has_session() => return Ok(None),
            StatusCode::NOT_FOUND if again => return Err(session_forgotten(head.status)),
            _ if request.is_some() && unknown_method() => return Ok(None),
            _ => {}
        }
        let refused = if head.status.is_success() {
            RequestError::Error(ConnectionError::new(
                Reason::ConnectFailed,
                "the response is no event stream",
            ))
        } else {
            self.refused(&head, &body)
        };
        if session_state(head.status, self.has_session(), rpc_error(&body).as_deref()) != SessionState::Known
        {
            self.0.ears.doubt();
        }
        let sign = FailureSource::Status(head.status);
        Err(match refused {
            RequestError::Error(error) => ConnectionError { sign, ..error },
            RequestError::Answer(_) => {
                let message = "the server answered with an error, and not with an event stream";
                ConnectionError { sign, ..ConnectionError::new(Reason::ConnectFailed, message) }
            }
        })
    }
}

impl fmt::Debug for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Closed(_) => "Closed",
            Self::Opening(_) => "Opening",
            Self::Open(_) => "Open",
            Self::None => "None",
        })
    }
}

fn listen_request(peer: &HandshakeResult, filter: &str, id: u64) -> Bytes {
    let (meta, _) = peer.meta(None, id, None);
    let meta = meta.unwrap_or_else(|| "{}".into());
    let params = [JsonEdit::Set("notifications", filter), JsonEdit::Set("_meta", &meta)];
    let params = rewrite("{}", &params).unwrap_or_default();
    server_message::message(Some(id), LISTEN_METHOD, Some(&params))
}

/// Takes up the events that have come whole.
fn take(events: &mut sse::SseDecoder, client: &HttpClient) -> Result<(), ConnectionError> {
    while let Some(message) = next_event(events)? {
        client.ears().heard();
        match server_message::classify(&message) {
            Ok(ServerMessage::Question(id, method)) => {
                client.post_soon("", server_message::answer(&id, &method), None)
            }
            Ok(unasked) => client.ears().take(&unasked, &message),
            Err(error) => client.ears().skipped(&error),
        }
    }
    Ok(())
}
