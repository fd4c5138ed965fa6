use std::fmt;
use std::pin::Pin;
use std::time::Duration;

use bytes::Bytes;
use http::header::{ACCEPT, CONTENT_TYPE};
use http::{HeaderValue, Method, StatusCode};
use tokio::time::{Instant, sleep, sleep_until};

use super::super::error::{ConnectionError, FailureSource};
use super::super::server_message::{self, LISTEN_METHOD};

use super::super::{HandshakeResult, JsonEdit, rewrite};
use super::client::{HttpClient, MAX_ERROR_BODY_BYTES, RequestError, with_error_body_timeout};
use super::response::{MessageEvents, is_event_stream};
use super::session::{SessionState, rpc_error, session_lost_error, session_state};
use super::streaming_body::StreamingBody;
use crate::net::{Backoff, Delays, jitter};
use crate::resource::Reason;
use crate::wire::Era;

/// The shortest and longest delay before a stream that ended or was rejected is reopened.
const REOPEN_DELAYS: Delays = Delays { initial: Duration::from_millis(500), max: Duration::from_mins(5) };
/// The lifetime of a stream after which its end resets the backoff. Proxies and serverless platforms end streams after
/// a fixed time, which is not a failure.
const STABLE_AFTER: Duration = Duration::from_secs(10);
/// The interval at which expired idle connections are closed.
const IDLE_CHECK_INTERVAL: Duration = Duration::from_secs(30);

/// The notification stream of a server: GET in the legacy era, `subscriptions/listen` in the modern one.
///
/// Reopens whenever it ends or is rejected, with a backoff that only a stream that stayed open resets. Does not reopen
/// if the server has no such stream (405, 404 without a session, or an unknown method). After each gap the
/// lists count as changed. All methods are cancel safe: a delay or a request in flight continues where it was.
#[derive(Debug)]
pub(in crate::wire) struct NotificationStream {
    client: HttpClient,
    state: StreamState,
    backoff: Backoff,
    /// True if the stream was open before.
    was_open: bool,
    /// True if a change may have been missed because lists were read while the stream was closed.
    changes_missed: bool,
}

enum StreamState {
    /// Closed, to be opened at this time.
    Closed(Instant),
    /// The request is in flight.
    Opening(Pin<Box<dyn Future<Output = Result<Option<StreamingBody>, ConnectionError>> + Send>>),
    Open(Box<OpenStream>),
    /// The server has no notification stream.
    NotOffered,
}

#[derive(Debug)]
struct OpenStream {
    body: StreamingBody,
    events: MessageEvents,
    opened_at: Instant,
}

impl NotificationStream {
    /// Returns a stream that is not open yet.
    pub(in crate::wire) fn new(client: HttpClient, handshake: &HandshakeResult) -> Self {
        let is_offered = handshake.era == Era::Legacy || handshake.listen_filter().is_some();
        let state = if is_offered { StreamState::Closed(Instant::now()) } else { StreamState::NotOffered };
        Self { client, state, backoff: Backoff::default(), was_open: false, changes_missed: false }
    }

    /// Tries once to open the stream, so that no change is missed for lists that are read afterwards. A rejection is
    /// not an error: [`Self::run`] tries again.
    pub(in crate::wire) async fn open(
        &mut self,
        handshake: &HandshakeResult,
        mut next_id: impl FnMut() -> u64,
    ) -> Result<(), ConnectionError> {
        while matches!(self.state, StreamState::Opening(_))
            || (matches!(self.state, StreamState::Closed(_)) && self.backoff.failures() == 0)
        {
            self.advance(handshake, &mut next_id).await?;
        }
        Ok(())
    }

    /// Records that the lists were read now. If the stream is closed, they count as changed once it opens.
    pub(in crate::wire) fn mark_lists_read(&mut self) {
        self.changes_missed = !matches!(self.state, StreamState::Open(_));
    }

    /// Reads notifications until the connection ends, and returns the reason.
    pub(in crate::wire) async fn run(
        &mut self,
        handshake: &HandshakeResult,
        mut next_id: impl FnMut() -> u64,
    ) -> ConnectionError {
        loop {
            if let Err(error) = self.advance(handshake, &mut next_id).await {
                return error;
            }
        }
    }

    /// Waits for the next step of the stream and handles it. An error is the end of the connection.
    async fn advance(
        &mut self,
        handshake: &HandshakeResult,
        next_id: &mut impl FnMut() -> u64,
    ) -> Result<(), ConnectionError> {
        match &mut self.state {
            StreamState::Closed(at) => {
                // A timer takes at least a millisecond; the first attempt need not wait for that.
                if *at > Instant::now() {
                    sleep_until(*at).await;
                }
                self.client.retry_after().wait_until_over().await;
                let request =
                    handshake.listen_filter().map(|filter| listen_request(handshake, &filter, next_id()));
                self.state = StreamState::Opening(Box::pin(
                    self.client.open_notification_stream(request, self.was_open),
                ));
            }
            StreamState::Opening(opening) => {
                let result = opening.await;
                self.handle_open_result(result, handshake)?;
            }
            StreamState::Open(open) => {
                let OpenStream { body, events, opened_at } = &mut **open;
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
                        Err(error) => tracing::debug!(%error, "the notification stream cannot be used"),
                    }
                }
                self.backoff.record_end(opened_at.elapsed(), STABLE_AFTER);
                // Notifications are lost while the stream is closed: the lists count as changed once it opens.
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

    /// Handles the result of opening the stream.
    fn handle_open_result(
        &mut self,
        result: Result<Option<StreamingBody>, ConnectionError>,
        handshake: &HandshakeResult,
    ) -> Result<(), ConnectionError> {
        match result {
            Ok(Some(body)) => {
                self.was_open = true;
                let (events, opened_at) = (MessageEvents::new(), Instant::now());
                self.state = StreamState::Open(Box::new(OpenStream { body, events, opened_at }));
            }
            Ok(None) => self.state = StreamState::NotOffered,
            Err(error) if error.ends_connection() => return Err(error),
            Err(error) => {
                tracing::debug!(%error, "the notification stream could not be opened");
                self.schedule_reopen();
                return Ok(());
            }
        }
        // If the server never had a stream, no notification was lost.
        if std::mem::take(&mut self.changes_missed) && self.was_open {
            handshake
                .capabilities
                .offered_lists()
                .for_each(|list| self.client.notifications().mark_list_changed(list));
        }
        Ok(())
    }

    /// Closes the stream until the backoff delay has passed.
    fn schedule_reopen(&mut self) {
        let delay = self.backoff.record_failure(REOPEN_DELAYS, jitter(), None);
        self.state = StreamState::Closed(Instant::now() + delay);
    }
}

impl HttpClient {
    /// Opens the notification stream: by GET in the legacy era, with `request` in the modern one. Returns `None` if the
    /// server has none: on 405, on 404 outside a session, or in the modern era on an unknown method.
    ///
    /// `was_open` is true if the server had a stream before. Only then does 404 within a session mean that the session
    /// is lost: servers without a route for GET return 404 too.
    pub(super) fn open_notification_stream(
        &self,
        request: Option<Bytes>,
        was_open: bool,
    ) -> impl Future<Output = Result<Option<StreamingBody>, ConnectionError>> + Send + 'static {
        let client = self.clone();
        async move { client.request_notification_stream(request, was_open).await }
    }

    async fn request_notification_stream(
        &self,
        request: Option<Bytes>,
        was_open: bool,
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
        let headers = self.authorized_headers(headers);
        let (head, mut body) =
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
            StatusCode::NOT_FOUND if was_open => return Err(session_lost_error(head.status)),
            _ if request.is_some() && unknown_method() => return Ok(None),
            _ => {}
        }
        let outcome = if head.status.is_success() {
            RequestError::Connection(ConnectionError::new(
                Reason::ConnectFailed,
                "the response is not an event stream",
            ))
        } else {
            self.error_response(&head, &body)
        };
        if session_state(head.status, self.has_session(), rpc_error(&body).as_deref()) != SessionState::Valid
        {
            self.0.notifications.request_health_check();
        }
        let failure_source = FailureSource::Status(head.status);
        Err(match outcome {
            RequestError::Connection(error) => ConnectionError { failure_source, ..error },
            RequestError::Response(_) => {
                let message = "the server returned an error instead of an event stream";
                ConnectionError { failure_source, ..ConnectionError::new(Reason::ConnectFailed, message) }
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
            Self::NotOffered => "NotOffered",
        })
    }
}

/// Builds the `subscriptions/listen` request.
fn listen_request(handshake: &HandshakeResult, filter: &str, id: u64) -> Bytes {
    let (meta, _) = handshake.request_meta(None, id, None);
    let meta = meta.unwrap_or_else(|| "{}".into());
    let params = [JsonEdit::Set("notifications", filter), JsonEdit::Set("_meta", &meta)];
    let params = rewrite("{}", &params).unwrap_or_default();
    server_message::message(Some(id), LISTEN_METHOD, Some(&params))
}

/// Handles all complete events.
fn dispatch_events(events: &mut MessageEvents, client: &HttpClient) -> Result<(), ConnectionError> {
    while let Some(message) = events.next()? {
        client.notifications().mark_received();
        let (message, kind) = client.notifications().read(message);
        client.dispatch(&kind, &message);
    }
    Ok(())
}
