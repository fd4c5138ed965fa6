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
use super::client::{HttpClient, MAX_ERROR_BODY_BYTES, RequestError, with_error_body_timeout};
use super::response::{is_event_stream, next_event};
use super::session::{SessionState, rpc_error, session_lost_error, session_state};
use super::streaming_body::StreamingBody;
use crate::net::{Backoff, Delays, jitter};
use crate::resource::Reason;
use crate::wire::Era;

/// Shortest and longest wait before a stream that ended, or was refused, is opened again.
const REOPEN_DELAYS: Delays = Delays { initial: Duration::from_millis(500), max: Duration::from_mins(5) };
/// A stream that was open for so long is opened again without delay: proxies and serverless platforms end streams after
/// a fixed time, and that is no fault.
const STABLE_AFTER: Duration = Duration::from_secs(10);
/// How often idle connections are looked through.
const IDLE_CHECK_INTERVAL: Duration = Duration::from_secs(30);

/// The stream on which a server tells that its lists changed: GET in the legacy era, `subscriptions/listen` in the
/// modern one.
///
/// Opens it again whenever it ends or is refused, with a backoff that only a stream that stayed open resets; only a
/// server that says that there is none (405, or 404 without a session) is not asked again. After each gap the lists
/// count as changed. All its methods are cancel safe: a pause or a request under way goes on where it was.
#[derive(Debug)]
pub(in crate::wire) struct NotificationStream {
    client: HttpClient,
    state: StreamState,
    backoff: Backoff,
    /// True if the server has opened it before.
    was_open: bool,
    /// True if lists were read while the stream was closed, so that a change may have been missed.
    changes_missed: bool,
}

enum StreamState {
    /// To be opened at this time.
    Closed(Instant),
    /// The request is under way.
    Opening(Pin<Box<dyn Future<Output = Result<Option<StreamingBody>, ConnectionError>> + Send>>),
    Open(Box<OpenStream>),
    /// The server offers none.
    NotOffered,
}

#[derive(Debug)]
struct OpenStream {
    body: StreamingBody,
    events: sse::SseDecoder,
    opened_at: Instant,
}

impl NotificationStream {
    /// Makes a stream that is not opened yet.
    pub(in crate::wire) fn new(client: HttpClient, peer: &HandshakeResult) -> Self {
        let wanted = peer.era == Era::Legacy || peer.listen_filter().is_some();
        let state = if wanted { StreamState::Closed(Instant::now()) } else { StreamState::NotOffered };
        Self { client, state, backoff: Backoff::default(), was_open: false, changes_missed: false }
    }

    /// Tries once to open the stream, so that lists read afterwards miss no change. A refusal is no error: [`Self::read`]
    /// tries again.
    pub(in crate::wire) async fn open(
        &mut self,
        peer: &HandshakeResult,
        mut next_id: impl FnMut() -> u64,
    ) -> Result<(), ConnectionError> {
        while matches!(self.state, StreamState::Opening(_))
            || (matches!(self.state, StreamState::Closed(_)) && self.backoff.failures() == 0)
        {
            self.advance(peer, &mut next_id).await?;
        }
        Ok(())
    }

    /// Notes that the lists were read now: if the stream is closed, they are to be read again once it opens.
    pub(in crate::wire) fn mark_lists_read(&mut self) {
        self.changes_missed = !matches!(self.state, StreamState::Open(_));
    }

    /// Reads notices for as long as the connection is there. Gives the reason of its end.
    pub(in crate::wire) async fn run(
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
            StreamState::Closed(at) => {
                // A timer takes a millisecond at least, which the first opening has no reason to wait for.
                if *at > Instant::now() {
                    sleep_until(*at).await;
                }
                self.client.retry_after().wait_until_over().await;
                let request = peer.listen_filter().map(|filter| listen_request(peer, &filter, next_id()));
                self.state = StreamState::Opening(Box::pin(
                    self.client.open_notification_stream(request, self.was_open),
                ));
            }
            StreamState::Opening(opening) => {
                let opened = opening.await;
                self.handle_open_result(opened, peer)?;
            }
            StreamState::Open(open) => {
                let OpenStream { body, events, opened_at: since } = &mut **open;
                let chunk = tokio::select! {
                    chunk = body.chunk() => chunk,
                    () = sleep(IDLE_CHECK_INTERVAL) => {
                        self.client.close_idle_connections(Duration::ZERO);
                        return Ok(());
                    }
                };
                if let Ok(Some(chunk)) = chunk {
                    events.push(&chunk);
                    match dispatch_events(events, &self.client) {
                        Ok(()) => return Ok(()),
                        Err(error) => tracing::debug!(%error, "the notice stream is not usable"),
                    }
                }
                self.backoff.record_end(since.elapsed(), STABLE_AFTER);
                // Notices sent while it is closed are lost: the lists are read again then.
                self.changes_missed = true;
                self.schedule_reopen();
            }
            StreamState::NotOffered => {
                sleep(IDLE_CHECK_INTERVAL).await;
                self.client.close_idle_connections(Duration::ZERO);
            }
        }
        Ok(())
    }

    /// Takes up the response to the request that opens the stream.
    fn handle_open_result(
        &mut self,
        opened: Result<Option<StreamingBody>, ConnectionError>,
        peer: &HandshakeResult,
    ) -> Result<(), ConnectionError> {
        match opened {
            Ok(Some(body)) => {
                self.was_open = true;
                let (events, since) = (sse::SseDecoder::new(MESSAGE_LIMIT), Instant::now());
                self.state = StreamState::Open(Box::new(OpenStream { body, events, opened_at: since }));
            }
            Ok(None) => self.state = StreamState::NotOffered,
            Err(error) if error.ends_connection() => return Err(error),
            Err(error) => {
                tracing::debug!(%error, "the notice stream could not be opened");
                self.schedule_reopen();
                return Ok(());
            }
        }
        // A server that never had a stream missed nothing by it.
        if std::mem::take(&mut self.changes_missed) && self.was_open {
            peer.capabilities
                .offered_lists()
                .for_each(|list| self.client.notifications().mark_list_changed(list));
        }
        Ok(())
    }

    /// Leaves the stream closed until the backoff has passed.
    fn schedule_reopen(&mut self) {
        let wait = self.backoff.record_failure(REOPEN_DELAYS, jitter(), None);
        self.state = StreamState::Closed(Instant::now() + wait);
    }
}

impl HttpClient {
    /// Opens the stream of notices: by GET in the legacy era, in the modern one with this request. Gives `None` if the
    /// server says that it has none: by 405, by 404 outside a session, or in the modern era as an unknown method.
    ///
    /// `again` says that the server had one: then 404 in a session says that the session is gone. Servers without a
    /// route for GET answer 404 too.
    pub(super) fn open_notification_stream(
        &self,
        request: Option<Bytes>,
        again: bool,
    ) -> impl Future<Output = Result<Option<StreamingBody>, ConnectionError>> + Send + 'static {
        let client = self.clone();
        async move { client.request_notification_stream(request, again).await }
    }

    async fn request_notification_stream(
        &self,
        request: Option<Bytes>,
        again: bool,
    ) -> Result<Option<StreamingBody>, ConnectionError> {
        let (method, headers) = if request.is_some() {
            (Method::POST, self.request_headers(LISTEN_METHOD, None))
        } else {
            let mut headers = self.request_headers("", None);
            headers.insert(ACCEPT, HeaderValue::from_static("text/event-stream"));
            headers.remove(CONTENT_TYPE);
            (Method::GET, headers)
        };
        if let Some(error) = self.0.retry_after.request_error() {
            return Err(error);
        }
        let target = self.0.template.load().target.clone();
        let socket = self.0.pool.connect().await?;
        let body = request.as_deref().unwrap_or_default();
        let (head, body) =
            StreamingBody::send_request(socket, (&method, &target, &headers), body).await?.into_parts();
        if head.status.is_success() && is_event_stream(&head.headers) {
            return Ok(Some(body));
        }
        let body = with_error_body_timeout(body.read_prefix(MAX_ERROR_BODY_BYTES)).await.unwrap_or_default();
        let unknown_method =
            || server_message::is_unknown_method(rpc_error(&body).as_deref().unwrap_or_default());
        match head.status {
            StatusCode::METHOD_NOT_ALLOWED => return Ok(None),
            StatusCode::NOT_FOUND if !self.has_session() => return Ok(None),
            StatusCode::NOT_FOUND if again => return Err(session_lost_error(head.status)),
            _ if request.is_some() && unknown_method() => return Ok(None),
            _ => {}
        }
        let refused = if head.status.is_success() {
            RequestError::Connection(ConnectionError::new(
                Reason::ConnectFailed,
                "the response is no event stream",
            ))
        } else {
            self.error_response(&head, &body)
        };
        if session_state(head.status, self.has_session(), rpc_error(&body).as_deref()) != SessionState::Valid
        {
            self.0.notifications.request_health_check();
        }
        let sign = FailureSource::Status(head.status);
        Err(match refused {
            RequestError::Connection(error) => ConnectionError { failure_source: sign, ..error },
            RequestError::Response(_) => {
                let message = "the server answered with an error, and not with an event stream";
                ConnectionError {
                    failure_source: sign,
                    ..ConnectionError::new(Reason::ConnectFailed, message)
                }
            }
        })
    }
}

impl fmt::Debug for StreamState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Closed(_) => "Closed",
            Self::Opening(_) => "Opening",
            Self::Open(_) => "Open",
            Self::NotOffered => "None",
        })
    }
}

fn listen_request(peer: &HandshakeResult, filter: &str, id: u64) -> Bytes {
    let (meta, _) = peer.request_meta(None, id, None);
    let meta = meta.unwrap_or_else(|| "{}".into());
    let params = [JsonEdit::Set("notifications", filter), JsonEdit::Set("_meta", &meta)];
    let params = rewrite("{}", &params).unwrap_or_default();
    server_message::message(Some(id), LISTEN_METHOD, Some(&params))
}

/// Takes up the events that have come whole.
fn dispatch_events(events: &mut sse::SseDecoder, client: &HttpClient) -> Result<(), ConnectionError> {
    while let Some(message) = next_event(events)? {
        client.notifications().mark_received();
        match server_message::classify(&message) {
            Ok(ServerMessage::Request(id, method)) => {
                client.post_in_background("", server_message::response_to(&id, &method), None)
            }
            Ok(unasked) => client.notifications().dispatch(&unasked, &message),
            Err(error) => client.notifications().log_malformed(&error),
        }
    }
    Ok(())
}
