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
const IDLE: Duration = Duration::from_secs(30);
/// Idle connections kept per server.
const KEPT: usize = 64;

type Driver = http1::Connection<TokioIo<ServerSocket>, Full<Bytes>>;

/// One HTTP/1.1 connection. No task stands behind it: whoever uses it drives it, so that a call needs no
/// hop to another task, and an idle connection costs its buffers alone.
#[derive(Debug)]
struct PooledConnection {
    sender: SendRequest<Full<Bytes>>,
    driver: Pin<Box<Driver>>,
    usable_until: Instant,
    /// What is left of the last response after its answer: commonly the end of an event stream.
    rest: Option<Incoming>,
}

/// What an idle connection is good for.
#[derive(PartialEq, Eq)]
enum Idle {
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
        while let Some(connection) = self.take() {
            match connection.send(request, self).await {
                Ok(response) => return Ok(response),
                Err(Unsent::Back(unsent)) => request = *unsent,
                Err(Unsent::Failed(error)) => return Err(error),
            }
        }
        match self.open().await?.send(request, self).await {
            Ok(response) => Ok(response),
            Err(Unsent::Failed(error)) => Err(error),
            Err(Unsent::Back(_)) => Err(ConnectionError::new(
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
            usable_until: Instant::now() + IDLE,
            rest: None,
        })
    }

    /// The connection that was used last among those that can be used now.
    fn take(&self) -> Option<PooledConnection> {
        let now = Instant::now();
        let mut idle = self.idle.lock();
        for index in (0..idle.len()).rev() {
            match idle.get_mut(index).map(|connection| connection.look(now)) {
                Some(Idle::Usable) => return Some(idle.swap_remove(index)),
                Some(Idle::Busy) | None => {}
                Some(Idle::Closed) => drop(idle.swap_remove(index)),
            }
        }
        None
    }

    fn put(&self, connection: PooledConnection) {
        let mut idle = self.idle.lock();
        if idle.len() < KEPT {
            idle.push(connection);
        }
    }

    /// Closes the idle connections that cannot be used again after a pause.
    pub(super) fn prune(&self, pause: Duration) {
        let now = Instant::now();
        let mut idle = self.idle.lock();
        idle.retain_mut(|connection| {
            connection.usable_until.saturating_duration_since(now) > pause
                && connection.look(now) != Idle::Closed
        });
        idle.shrink_to_fit();
    }
}

enum Unsent {
    /// Nothing of it was written.
    Back(Box<Request<Full<Bytes>>>),
    Failed(ConnectionError),
}

impl PooledConnection {
    /// Looks, without waiting, what the connection is good for.
    fn look(&mut self, now: Instant) -> Idle {
        let mut context = Context::from_waker(std::task::Waker::noop());
        if self.usable_until <= now || self.driver.as_mut().poll(&mut context).is_ready() {
            return Idle::Closed;
        }
        while let Some(rest) = &mut self.rest {
            match Pin::new(rest).poll_frame(&mut context) {
                Poll::Pending => return Idle::Busy,
                Poll::Ready(None) => {
                    self.rest = None;
                    // The driver learns that the response is over.
                    if self.driver.as_mut().poll(&mut context).is_ready() {
                        return Idle::Closed;
                    }
                }
                Poll::Ready(Some(Ok(_))) => {}
                Poll::Ready(Some(Err(_))) => return Idle::Closed,
            }
        }
        if self.sender.is_ready() { Idle::Usable } else { Idle::Closed }
    }

    async fn send(
        mut self,
        request: Request<Full<Bytes>>,
        pool: &Arc<ConnectionPool>,
    ) -> Result<Response<PooledBody>, Unsent> {
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
            Unsent::Failed(ConnectionError::new(Reason::ConnectFailed, message).dispatched())
        };
        match result {
            Some(Ok(response)) => {
                let (head, incoming) = response.into_parts();
                if let Some(idle) = keep_alive(&head.headers) {
                    self.usable_until = Instant::now() + idle.min(IDLE);
                } else {
                    self.usable_until = Instant::now() + IDLE;
                }
                let body = PooledBody { incoming, connection: Some(self), pool: pool.clone() };
                Ok(Response::from_parts(head, body))
            }
            Some(Err(mut error)) => match error.take_message() {
                Some(request) => Err(Unsent::Back(Box::new(request))),
                None => Err(failed(error.into_error().to_string())),
            },
            None => Err(failed("closed".into())),
        }
    }
}

/// The time that `Keep-Alive: timeout=5` allows, less a second for the way.
fn keep_alive(headers: &http::HeaderMap) -> Option<Duration> {
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
            Err(ConnectionError::new(Reason::ConnectFailed, message).dispatched())
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
        CollectedBody::new(self).whole(limit).await
    }

    /// Gives the connection back. What is left of the response is read over before it is used again.
    pub(super) fn recycle(self) {
        let Self { incoming, connection, pool } = self;
        if let Some(mut connection) = connection {
            connection.rest = Some(incoming).filter(|incoming| !incoming.is_end_stream());
            pool.put(connection);
        }
    }
}

/// A body that is being read to its end.
#[derive(Debug)]
pub(super) struct CollectedBody {
    body: Option<PooledBody>,
    /// The first piece as it came; commonly the only one.
    first: Bytes,
    /// All pieces, once there are several.
    all: BytesMut,
}

impl CollectedBody {
    pub(super) fn new(body: PooledBody) -> Self {
        Self { body: Some(body), first: Bytes::new(), all: BytesMut::new() }
    }

    /// The whole body, once. Cancel safe: what was read stays.
    pub(super) async fn whole(&mut self, limit: usize) -> Result<Bytes, ConnectionError> {
        while let Some(body) = &mut self.body {
            let Some(chunk) = body.chunk().await? else {
                break;
            };
            if self.first.len().max(self.all.len()) + chunk.len() > limit {
                let message = format!("the answer is longer than {} MiB", limit >> 20);
                return Err(ConnectionError::new(Reason::ConnectFailed, message).dispatched());
            }
            if self.first.is_empty() && self.all.is_empty() {
                self.first = chunk;
            } else {
                if self.all.is_empty() {
                    self.all.extend_from_slice(&std::mem::take(&mut self.first));
                }
                self.all.extend_from_slice(&chunk);
            }
        }
        if let Some(body) = self.body.take() {
            body.recycle();
        }
        let all = std::mem::take(&mut self.all);
        Ok(if all.is_empty() { std::mem::take(&mut self.first) } else { all.freeze() })
    }
}
