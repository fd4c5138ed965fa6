use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::{Request, Response};
use http_body::Body as _;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use tokio::time::Instant;

use super::super::ConnectionError;
use super::super::response::unusable_response;
use super::connect::{Connector, ServerSocket};
use super::content_coding::ContentDecoder;
use crate::resource::Reason;

/// The time for which an idle connection may be reused. A shorter `Keep-Alive` of the server takes precedence.
const IDLE_TIMEOUT: Duration = Duration::from_secs(30);
/// The maximum number of idle connections kept per server.
const MAX_IDLE_CONNECTIONS: usize = 64;

type Driver = http1::Connection<TokioIo<ServerSocket>, Full<Bytes>>;

/// One HTTP/1.1 connection. It has no task: its user drives it, so a call needs no switch to another task, and an idle
/// connection costs only its buffers.
#[derive(Debug)]
struct PooledConnection {
    sender: SendRequest<Full<Bytes>>,
    driver: Pin<Box<Driver>>,
    usable_until: Instant,
    /// The unread part of the last response, usually the end of an event stream.
    unread_body: Option<Incoming>,
}

/// The state of an idle connection.
#[derive(PartialEq, Eq)]
enum IdleState {
    Usable,
    /// The last response has not ended yet.
    Busy,
    Closed,
}

/// The idle connections of one server, and the connector for new ones.
#[derive(Debug)]
pub(super) struct ConnectionPool {
    connector: Connector,
    idle: Mutex<Vec<PooledConnection>>,
}

impl ConnectionPool {
    pub(super) fn new(connector: Connector) -> Arc<Self> {
        Arc::new(Self { connector, idle: Mutex::new(Vec::new()) })
    }

    /// Sends a request and waits for the head of the response. If an idle connection turns out to be closed before the
    /// request was sent, another connection is used. If the server closes it while the request is sent, only a
    /// repeatable request is sent again (RFC 9110 §9.2.2), on a new connection.
    pub(super) async fn send(
        self: &Arc<Self>,
        mut request: Request<Full<Bytes>>,
        is_repeatable: bool,
    ) -> Result<Response<PooledBody>, ConnectionError> {
        while let Some(connection) = self.take_idle() {
            let copy = is_repeatable.then(|| request.clone());
            match connection.send(request, self).await {
                Ok(response) => return Ok(response),
                Err(SendError::NotSent(unsent)) => request = *unsent,
                Err(SendError::Failed(error)) => {
                    request = copy.ok_or(error)?;
                    break;
                }
            }
        }
        match self.open().await?.send(request, self).await {
            Ok(response) => Ok(response),
            Err(SendError::Failed(error)) => Err(error),
            Err(SendError::NotSent(_)) => Err(ConnectionError::new(
                Reason::ConnectFailed,
                "the server closed the connection before the request was sent",
            )),
        }
    }

    /// Opens a socket that does not belong to the pool.
    pub(super) async fn connect(&self) -> Result<ServerSocket, ConnectionError> {
        self.connector.connect().await
    }

    async fn open(&self) -> Result<PooledConnection, ConnectionError> {
        let socket = self.connector.connect().await?;
        // What RFC 9112 §5 lets a client accept.
        let (sender, driver) = http1::Builder::new()
            .allow_spaces_after_header_name_in_responses(true)
            .allow_obsolete_multiline_headers_in_responses(true)
            .ignore_invalid_headers_in_responses(true)
            .handshake(TokioIo::new(socket))
            .await
            .map_err(|error| ConnectionError::new(Reason::ConnectFailed, format!("HTTP: {error}")))?;
        Ok(PooledConnection {
            sender,
            driver: Box::pin(driver),
            usable_until: Instant::now() + IDLE_TIMEOUT,
            unread_body: None,
        })
    }

    /// Takes the most recently used one of the usable connections.
    fn take_idle(&self) -> Option<PooledConnection> {
        let now = Instant::now();
        let mut idle = self.idle.lock();
        for index in (0..idle.len()).rev() {
            match idle.get_mut(index).map(|connection| connection.idle_state(now)) {
                Some(IdleState::Usable) => return Some(idle.swap_remove(index)),
                Some(IdleState::Busy) | None => {}
                Some(IdleState::Closed) => drop(idle.swap_remove(index)),
            }
        }
        None
    }

    /// Returns a connection to the pool. Closes it if the pool is full.
    fn put_idle(&self, connection: PooledConnection) {
        let mut idle = self.idle.lock();
        if idle.len() < MAX_IDLE_CONNECTIONS {
            idle.push(connection);
        }
    }

    /// Closes the idle connections that would have expired once `pause` has passed.
    pub(super) fn close_idle(&self, pause: Duration) {
        let now = Instant::now();
        let mut idle = self.idle.lock();
        idle.retain_mut(|connection| {
            connection.usable_until.saturating_duration_since(now) > pause
                && connection.idle_state(now) != IdleState::Closed
        });
        idle.shrink_to_fit();
    }
}

enum SendError {
    /// Nothing of the request was written; the request is returned.
    NotSent(Box<Request<Full<Bytes>>>),
    Failed(ConnectionError),
}

impl PooledConnection {
    /// Determines the state of the connection without waiting.
    fn idle_state(&mut self, now: Instant) -> IdleState {
        let mut context = Context::from_waker(std::task::Waker::noop());
        if self.usable_until <= now || self.driver.as_mut().poll(&mut context).is_ready() {
            return IdleState::Closed;
        }
        while let Some(body) = &mut self.unread_body {
            match Pin::new(body).poll_frame(&mut context) {
                Poll::Pending => return IdleState::Busy,
                Poll::Ready(None) => {
                    self.unread_body = None;
                    // Polled once more, so that the driver processes the end of the response.
                    if self.driver.as_mut().poll(&mut context).is_ready() {
                        return IdleState::Closed;
                    }
                }
                Poll::Ready(Some(Ok(_))) => {}
                Poll::Ready(Some(Err(_))) => return IdleState::Closed,
            }
        }
        if self.sender.is_ready() { IdleState::Usable } else { IdleState::Closed }
    }

    async fn send(
        mut self,
        request: Request<Full<Bytes>>,
        pool: &Arc<ConnectionPool>,
    ) -> Result<Response<PooledBody>, SendError> {
        let mut sent = pin!(self.sender.try_send_request(request));
        let driver = &mut self.driver;
        let result = poll_fn(|context| {
            // The driver comes first: it writes the request and reads the response. Once it has ended, the response is
            // either available or will never arrive; polling `sent` shows which.
            let ended = driver.as_mut().poll(context);
            match (sent.as_mut().poll(context), ended) {
                (Poll::Ready(result), _) => Poll::Ready(Some(result)),
                (Poll::Pending, Poll::Ready(_)) => Poll::Ready(None),
                (Poll::Pending, Poll::Pending) => Poll::Pending,
            }
        })
        .await;
        let failed = |reason: String| {
            let message = format!("the connection broke before the response: {reason}");
            SendError::Failed(ConnectionError::new(Reason::ConnectFailed, message).into_dispatched())
        };
        match result {
            Some(Ok(response)) => {
                let (head, incoming) = response.into_parts();
                if let Some(keep_alive) = keep_alive_timeout(&head.headers) {
                    self.usable_until = Instant::now() + keep_alive.min(IDLE_TIMEOUT);
                } else {
                    self.usable_until = Instant::now() + IDLE_TIMEOUT;
                }
                let decoder = ContentDecoder::from_headers(&head.headers);
                let body = PooledBody { incoming, decoder, connection: Some(self), pool: pool.clone() };
                Ok(Response::from_parts(head, body))
            }
            Some(Err(mut error)) => match error.take_message() {
                Some(request) => Err(SendError::NotSent(Box::new(request))),
                None => Err(failed(error.into_error().to_string())),
            },
            None => Err(failed("closed".into())),
        }
    }
}

/// Returns the timeout of a header such as `Keep-Alive: timeout=5`, minus one second for network latency.
fn keep_alive_timeout(headers: &http::HeaderMap) -> Option<Duration> {
    let value = headers.get("keep-alive")?.to_str().ok()?;
    let seconds = value.split(',').find_map(|part| part.trim().strip_prefix("timeout="))?;
    Some(Duration::from_secs(seconds.parse::<u64>().ok()?.saturating_sub(1)))
}

/// The body of a response; reading it drives the connection. Dropping it closes the connection.
#[derive(Debug)]
pub(super) struct PooledBody {
    incoming: Incoming,
    /// `None` for a body that is not encoded.
    decoder: Option<Box<ContentDecoder>>,
    connection: Option<PooledConnection>,
    pool: Arc<ConnectionPool>,
}

impl PooledBody {
    /// Returns the next chunk; `None` at the end. Cancel safe.
    pub(super) async fn chunk(&mut self) -> Result<Option<Bytes>, ConnectionError> {
        loop {
            let chunk = poll_fn(|context| self.poll_chunk(context)).await?;
            let (Some(encoded), Some(decoder)) = (&chunk, &mut self.decoder) else { return Ok(chunk) };
            let decoded = decoder.decode(encoded).map_err(|why| unusable_response(&why))?;
            if !decoded.is_empty() {
                return Ok(Some(decoded));
            }
        }
    }

    fn poll_chunk(&mut self, context: &mut Context<'_>) -> Poll<Result<Option<Bytes>, ConnectionError>> {
        let broken = |error: hyper::Error| {
            let message = format!("the connection broke during the response: {error}");
            Err(ConnectionError::new(Reason::ConnectFailed, message).into_dispatched())
        };
        let mut driven = false;
        loop {
            match Pin::new(&mut self.incoming).poll_frame(context) {
                Poll::Ready(Some(Ok(frame))) => {
                    if let Ok(data) = frame.into_data() {
                        return Poll::Ready(Ok(Some(data)));
                    }
                }
                Poll::Ready(Some(Err(error))) => return Poll::Ready(broken(error)),
                Poll::Ready(None) => return Poll::Ready(Ok(None)),
                Poll::Pending if driven => return Poll::Pending,
                Poll::Pending => {
                    // Driving the connection makes data available in the body: drive it, then poll the body again.
                    driven = true;
                    if let Some(connection) = &mut self.connection
                        && connection.driver.as_mut().poll(context).is_ready()
                    {
                        self.connection = None;
                    }
                }
            }
        }
    }

    /// Reads the body to its end and returns the connection to the pool. A body longer than `limit` is an error.
    pub(super) async fn collect(self, limit: usize) -> Result<Bytes, ConnectionError> {
        CollectedBody::new(self).read_to_end(limit).await
    }

    /// Returns the connection to the pool. The rest of the response is skipped before it is reused.
    pub(super) fn recycle(self) {
        let Self { incoming, connection, pool, .. } = self;
        if let Some(mut connection) = connection {
            connection.unread_body = Some(incoming).filter(|incoming| !incoming.is_end_stream());
            pool.put_idle(connection);
        }
    }
}

/// A body that is being read to its end.
#[derive(Debug)]
pub(super) struct CollectedBody {
    body: Option<PooledBody>,
    /// The first chunk, without a copy. Usually the only one.
    first_chunk: Bytes,
    /// All chunks, once there is more than one.
    joined: BytesMut,
}

impl CollectedBody {
    pub(super) fn new(body: PooledBody) -> Self {
        Self { body: Some(body), first_chunk: Bytes::new(), joined: BytesMut::new() }
    }

    /// Waits for the first bytes of the body and returns them; empty if there are none.
    pub(super) async fn start(&mut self) -> Result<&[u8], ConnectionError> {
        if self.first_chunk.is_empty()
            && let Some(body) = &mut self.body
        {
            self.first_chunk = body.chunk().await?.unwrap_or_default();
        }
        Ok(&self.first_chunk)
    }

    /// Returns the rest of the body and the bytes that were read already; `None` if it was read to its end.
    pub(super) fn into_parts(self) -> Option<(PooledBody, Bytes)> {
        Some((self.body?, self.first_chunk))
    }

    /// Reads and returns the whole body; empty on a second call. Cancel safe: bytes read so far are kept.
    pub(super) async fn read_to_end(&mut self, limit: usize) -> Result<Bytes, ConnectionError> {
        while let Some(body) = &mut self.body {
            let Some(chunk) = body.chunk().await? else {
                break;
            };
            if self.first_chunk.len().max(self.joined.len()) + chunk.len() > limit {
                let message = format!("the response is longer than {} MiB", limit >> 20);
                return Err(ConnectionError::new(Reason::ConnectFailed, message).into_dispatched());
            }
            if self.first_chunk.is_empty() && self.joined.is_empty() {
                self.first_chunk = chunk;
            } else {
                if self.joined.is_empty() {
                    self.joined.extend_from_slice(&std::mem::take(&mut self.first_chunk));
                }
                self.joined.extend_from_slice(&chunk);
            }
        }
        if let Some(body) = self.body.take() {
            body.recycle();
        }
        let all = std::mem::take(&mut self.joined);
        Ok(if all.is_empty() { std::mem::take(&mut self.first_chunk) } else { all.freeze() })
    }
}
