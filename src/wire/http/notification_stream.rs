use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, Method, StatusCode};
use tokio::time::{Instant, sleep, sleep_until};

use super::super::error::{ConnectionError, FailureSource};
use super::super::server_message::{self, LISTEN_METHOD};
use super::super::sse::StreamPosition;
use super::super::{ClientCapabilities, Era, HandshakeResult, JsonEdit, ListKind, rewrite};
use super::client::{HttpClient, MAX_ERROR_BODY_BYTES, RequestError, with_error_body_timeout};
use super::media_type::MediaType;
use super::response::MessageEvents;
use super::session::{SessionState, rpc_error, session_lost_error, session_state};
use super::streaming_body::StreamingBody;
use crate::net::{Backoff, Delays, jitter};
use crate::resource::Reason;

/// The shortest and longest delay before a stream that ended or was rejected is reopened.
const REOPEN_DELAYS: Delays = Delays { initial: Duration::from_millis(500), max: Duration::from_mins(5) };
/// The lifetime of a stream after which its end resets the backoff. Proxies and serverless platforms end streams after
/// a fixed time, which is not a failure.
const STABLE_AFTER: Duration = Duration::from_secs(5);
/// The interval at which expired idle connections are closed.
const IDLE_CHECK_INTERVAL: Duration = Duration::from_secs(30);
/// The silence after which a stream is opened again. It may have been lost without a sign, as by a proxy that lost its
/// own connection to the server.
const MAX_SILENCE: Duration = Duration::from_mins(10);
/// The minimum interval at which lists count as changed because of short gaps. A proxy that ends each stream after a
/// minute must not cause a read of all lists each minute.
const GAP_REPORT_INTERVAL: Duration = Duration::from_mins(5);
/// The failures in a row after which the list changes of the server count as not heard.
const UNHEARD_AFTER: u32 = 5;

/// The notification stream of a server: GET in the legacy era, `subscriptions/listen` in the modern one.
///
/// Reopens whenever it ends or is rejected, with a backoff that only a stream that stayed open resets, or after the delay
/// that the server names (`retry`). Does not reopen if the server has no such stream (405, 404 without a session, or an
/// unknown method). After a gap the lists count as changed, unless the server continues the stream after its last event
/// (`Last-Event-ID`). All methods are cancel safe: a delay or a request in flight continues where it was.
#[derive(Debug)]
pub(in crate::wire) struct NotificationStream {
    client: HttpClient,
    state: StreamState,
    backoff: Backoff,
    /// True if the stream was open before.
    was_open: bool,
    /// True if a change may have been missed because lists were read while the stream was closed.
    changes_missed: bool,
    /// When the lists last counted as changed because of a gap.
    gap_reported_at: Option<Instant>,
    /// The position at which the next stream continues.
    position: StreamPosition,
    /// True if the list changes of the server count as not heard.
    is_unheard: bool,
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
    /// When the last bytes arrived.
    received_at: Instant,
}

impl NotificationStream {
    /// Returns a stream that is not open yet.
    pub(in crate::wire) fn new(client: HttpClient, handshake: &HandshakeResult) -> Self {
        let is_offered = handshake.era == Era::Legacy || handshake.listen_filter().is_some();
        let state = if is_offered { StreamState::Closed(Instant::now()) } else { StreamState::NotOffered };
        Self {
            client,
            state,
            backoff: Backoff::default(),
            was_open: false,
            changes_missed: false,
            gap_reported_at: None,
            position: StreamPosition::default(),
            is_unheard: false,
        }
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
                let last_event_id = self.position.last_event_id.clone();
                self.state = StreamState::Opening(Box::pin(self.client.open_notification_stream(
                    request,
                    last_event_id,
                    self.was_open,
                )));
            }
            StreamState::Opening(opening) => {
                let result = opening.await;
                self.handle_open_result(result, handshake)?;
            }
            StreamState::Open(open) => {
                let OpenStream { body, events, received_at, .. } = &mut **open;
                let chunk = tokio::select! {
                    chunk = body.chunk() => chunk,
                    () = sleep(IDLE_CHECK_INTERVAL) => {
                        self.check_open_stream(handshake);
                        return Ok(());
                    }
                };
                if let Ok(Some(chunk)) = chunk {
                    *received_at = Instant::now();
                    events.push(&chunk);
                    match dispatch_events(events, &self.client) {
                        Ok(()) => {
                            self.check_open_stream(handshake);
                            return Ok(());
                        }
                        Err(error) => tracing::debug!(%error, "the notification stream cannot be used"),
                    }
                }
                self.handle_end(handshake);
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
        let failed_before = self.backoff.failures() > 1;
        match result {
            Ok(Some(body)) => {
                self.was_open = true;
                let now = Instant::now();
                let events = MessageEvents::continued_at(self.position.clone());
                let open = OpenStream { body, events, opened_at: now, received_at: now };
                self.state = StreamState::Open(Box::new(open));
            }
            Ok(None) => {
                self.state = StreamState::NotOffered;
                if announces_changes(handshake) && (self.client.has_session() || handshake.era == Era::Modern)
                {
                    self.report_unheard(Some(
                        "the server declares listChanged, but offers no event stream".into(),
                    ));
                }
            }
            Err(error) if error.ends_connection() => return Err(error),
            Err(error) => {
                tracing::debug!(%error, "the notification stream could not be opened");
                // A server that does not know the event rejects the request.
                if let FailureSource::Status(status) = error.failure_source
                    && status.is_client_error()
                {
                    self.position.last_event_id = None;
                }
                self.schedule_reopen();
                self.check_unheard(handshake, &error.problem.message);
                return Ok(());
            }
        }
        // If the server never had a stream, no notification was lost.
        self.changes_missed &= self.was_open;
        self.report_gap(handshake, failed_before);
        Ok(())
    }

    /// Handles the end of an open stream.
    fn handle_end(&mut self, handshake: &HandshakeResult) {
        if let StreamState::Open(open) = &self.state {
            self.position = open.events.position();
            self.backoff.record_end(open.opened_at.elapsed(), STABLE_AFTER);
        }
        // Notifications are lost while the stream is closed, unless the server sends them again.
        self.changes_missed |= self.position.last_event_id.is_none();
        if let Some(delay) = self.position.retry_delay() {
            // The server ends each stream on purpose: the client polls.
            self.backoff.reset();
            self.state = StreamState::Closed(Instant::now() + delay.max(REOPEN_DELAYS.initial));
        } else {
            self.schedule_reopen();
            self.check_unheard(handshake, "the server ends it at once");
        }
    }

    /// Checks a stream that is open: after each message or comment, and at intervals while there are none.
    fn check_open_stream(&mut self, handshake: &HandshakeResult) {
        self.client.close_idle_connections(Duration::ZERO);
        let StreamState::Open(open) = &self.state else { return };
        if open.opened_at.elapsed() < STABLE_AFTER {
            return;
        }
        let stalled_at = (open.received_at.elapsed() >= MAX_SILENCE).then(|| open.events.position());
        self.backoff.reset();
        self.report_unheard(None);
        if let Some(position) = stalled_at {
            self.position = position;
            self.changes_missed = true;
            self.state = StreamState::Closed(Instant::now());
        }
        self.report_gap(handshake, false);
    }

    /// Reports that all lists may have changed, if notifications were missed in a gap. After a short gap they count as
    /// changed once in [`GAP_REPORT_INTERVAL`], possibly later.
    fn report_gap(&mut self, handshake: &HandshakeResult, failed_before: bool) {
        let is_due = self.gap_reported_at.is_none_or(|at| at.elapsed() >= GAP_REPORT_INTERVAL);
        if !self.changes_missed || !(is_due || failed_before) {
            return;
        }
        self.changes_missed = false;
        self.gap_reported_at = Some(Instant::now());
        for list in handshake.capabilities.offered_lists() {
            self.client.notifications().mark_list_changed(list);
        }
    }

    /// Reports that list changes are not heard, if the stream has failed repeatedly and the server declares them.
    fn check_unheard(&mut self, handshake: &HandshakeResult, why: &str) {
        if self.backoff.failures() >= UNHEARD_AFTER && announces_changes(handshake) {
            self.report_unheard(Some(format!("the event stream cannot be kept open: {why}").into()));
        }
    }

    /// Reports once why list changes are not heard, and `None` when they are again.
    fn report_unheard(&mut self, why: Option<Arc<str>>) {
        if self.is_unheard != why.is_some() {
            self.is_unheard = why.is_some();
            self.client.notifications().report_unheard(why);
        }
    }

    /// Closes the stream until the backoff delay has passed.
    fn schedule_reopen(&mut self) {
        let delay = self.backoff.record_failure(REOPEN_DELAYS, jitter(), None);
        self.state = StreamState::Closed(Instant::now() + delay);
    }
}

/// True if the server declares that it sends list changes.
fn announces_changes(handshake: &HandshakeResult) -> bool {
    ListKind::ALL.into_iter().any(|list| handshake.capabilities.list_changed(list) == Some(true))
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
        last_event_id: Option<HeaderValue>,
        was_open: bool,
    ) -> impl Future<Output = Result<Option<StreamingBody>, ConnectionError>> + Send + 'static {
        let client = self.clone();
        async move { client.request_notification_stream(request, last_event_id, was_open).await }
    }

    async fn request_notification_stream(
        &self,
        request: Option<Bytes>,
        last_event_id: Option<HeaderValue>,
        was_open: bool,
    ) -> Result<Option<StreamingBody>, ConnectionError> {
        let (method, headers) = if request.is_some() {
            (Method::POST, self.request_headers(LISTEN_METHOD, None))
        } else {
            (Method::GET, self.event_stream_headers(last_event_id.as_ref()))
        };
        let body = request.as_deref().unwrap_or_default();
        let (head, mut body) = self.send_on_new_socket(&method, headers, body).await?.into_parts();
        if head.status.is_success() && MediaType::from_headers(&head.headers) == MediaType::EventStream {
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
    let (meta, _) = handshake.request_meta(None, id, None, ClientCapabilities::NONE);
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
