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
use super::connect::{Connector, ServerSocket};
use crate::resource::Reason;

/// How long an idle connection may be used again; less if the server said so with Keep-Alive.
const IDLE_TIMEOUT: Duration = Duration::from_secs(30);
/// Idle connections kept per server.
const MAX_IDLE_CONNECTIONS: usize = 64;

type Driver = http1::Connection<TokioIo<ServerSocket>, Full<Bytes>>;

/// One HTTP/1.1 connection. No task stands behind it: whoever uses it drives it, so that a call needs no
/// hop to another task, and an idle connection costs its buffers alone.
#[derive(Debug)]
struct PooledConnection {
    sender: SendRequest<Full<Bytes>>,
    driver: Pin<Box<Driver>>,
    usable_until: Instant,
    /// What is left of the last response after its answer: commonly the end of an event stream.
    unread_body: Option<Incoming>,
}

/// What an idle connection is good for.
#[derive(PartialEq, Eq)]
enum IdleState {
    Usable,
    /// The last response has not ended yet.
    Busy,
    Closed,
}

/// The idle connections of one server, and the way to make more.
#[derive(Debug)]
pub(super) struct ConnectionPool {
    connector: Connector,
    idle: Mutex<Vec<PooledConnection>>,
}

impl ConnectionPool {
    pub(super) fn new(connector: Connector) -> Arc<Self> {
        Arc::new(Self { connector, idle: Mutex::new(Vec::new()) })
    }

    /// Sends a request and waits for the head of the response. A request that an idle connection could
    /// not take, because the server had closed it, goes to a new one; nothing is ever sent twice.
    pub(super) async fn send(
        self: &Arc<Self>,
        mut request: Request<Full<Bytes>>,
    ) -> Result<Response<PooledBody>, ConnectionError> {
        while let Some(connection) = self.take_idle() {
            match connection.send(request, self).await {
                Ok(response) => return Ok(response),
                Err(SendError::NotSent(unsent)) => request = *unsent,
                Err(SendError::Failed(error)) => return Err(error),
            }
        }
        match self.open().await?.send(request, self).await {
            Ok(response) => Ok(response),
            Err(SendError::Failed(error)) => Err(error),
            Err(SendError::NotSent(_)) => Err(ConnectionError::new(
                Reason::ConnectFailed,
                "the server closed the connection before the request",
            )),
        }
    }

    /// A connection that the pool has nothing to do with.
    pub(super) async fn connect(&self) -> Result<ServerSocket, ConnectionError> {
        self.connector.connect().await
    }

    async fn open(&self) -> Result<PooledConnection, ConnectionError> {
        let socket = self.connector.connect().await?;
        let (sender, driver) = http1::Builder::new()
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

    /// The connection that was used last among those that can be used now.
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

    fn put_idle(&self, connection: PooledConnection) {
        let mut idle = self.idle.lock();
        if idle.len() < MAX_IDLE_CONNECTIONS {
            idle.push(connection);
        }
    }

    /// Closes the idle connections that cannot be used again after a pause.
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
    /// Nothing of it was written.
    NotSent(Box<Request<Full<Bytes>>>),
    Failed(ConnectionError),
}

impl PooledConnection {
    /// Looks, without waiting, what the connection is good for.
    fn idle_state(&mut self, now: Instant) -> IdleState {
        let mut context = Context::from_waker(std::task::Waker::noop());
        if self.usable_until <= now || self.driver.as_mut().poll(&mut context).is_ready() {
            return IdleState::Closed;
        }
        while let Some(rest) = &mut self.unread_body {
            match Pin::new(rest).poll_frame(&mut context) {
                Poll::Pending => return IdleState::Busy,
                Poll::Ready(None) => {
                    self.unread_body = None;
                    // The driver learns that the response is over.
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
            // The driver first: it writes the request and reads the response. When it ends, the
            // response is there or never comes, and the second look tells.
            let ended = driver.as_mut().poll(context);
            match (sent.as_mut().poll(context), ended) {
                (Poll::Ready(result), _) => Poll::Ready(Some(result)),
                (Poll::Pending, Poll::Ready(_)) => Poll::Ready(None),
                (Poll::Pending, Poll::Pending) => Poll::Pending,
            }
        })
        .await;
        let failed = |why: String| {
            let message = format!("the connection broke before the answer: {why}");
            SendError::Failed(ConnectionError::new(Reason::ConnectFailed, message).into_dispatched())
        };
        match result {
            Some(Ok(response)) => {
                let (head, incoming) = response.into_parts();
                if let Some(idle) = keep_alive_timeout(&head.headers) {
                    self.usable_until = Instant::now() + idle.min(IDLE_TIMEOUT);
                } else {
                    self.usable_until = Instant::now() + IDLE_TIMEOUT;
                }
                let body = PooledBody { incoming, connection: Some(self), pool: pool.clone() };
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

/// The time that `Keep-Alive: timeout=5` allows, less a second for the way.
fn keep_alive_timeout(headers: &http::HeaderMap) -> Option<Duration> {
    let value = headers.get("keep-alive")?.to_str().ok()?;
    let seconds = value.split(',').find_map(|part| part.trim().strip_prefix("timeout="))?;
    Some(Duration::from_secs(seconds.parse::<u64>().ok()?.saturating_sub(1)))
}

/// The body of a response; reading it drives the connection. Dropping it closes the connection.
#[derive(Debug)]
pub(super) struct PooledBody {
    incoming: Incoming,
    connection: Option<PooledConnection>,
    pool: Arc<ConnectionPool>,
}

impl PooledBody {
    /// The next piece, `None` at the end. Cancel safe.
    pub(super) async fn chunk(&mut self) -> Result<Option<Bytes>, ConnectionError> {
        poll_fn(|context| self.poll_chunk(context)).await
    }

    fn poll_chunk(&mut self, context: &mut Context<'_>) -> Poll<Result<Option<Bytes>, ConnectionError>> {
        let broken = |error: hyper::Error| {
            let message = format!("the connection broke within the answer: {error}");
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
                    // What the driver reads shows in the body: drive, then look once more.
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

    /// Reads to the end and gives the connection back; a body longer than `limit` is an error.
    pub(super) async fn collect(self, limit: usize) -> Result<Bytes, ConnectionError> {
        CollectedBody::new(self).read_to_end(limit).await
    }

    /// Gives the connection back. What is left of the response is read over before it is used again.
    pub(super) fn recycle(self) {
        let Self { incoming, connection, pool } = self;
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
    /// The first piece as it came; commonly the only one.
    first_chunk: Bytes,
    /// All pieces, once there are several.
    joined: BytesMut,
}

impl CollectedBody {
    pub(super) fn new(body: PooledBody) -> Self {
        Self { body: Some(body), first_chunk: Bytes::new(), joined: BytesMut::new() }
    }

    /// The whole body, once. Cancel safe: what was read stays.
    pub(super) async fn read_to_end(&mut self, limit: usize) -> Result<Bytes, ConnectionError> {
        while let Some(body) = &mut self.body {
            let Some(chunk) = body.chunk().await? else {
                break;
            };
            if self.first_chunk.len().max(self.joined.len()) + chunk.len() > limit {
                let message = format!("the answer is longer than {} MiB", limit >> 20);
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
