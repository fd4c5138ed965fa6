//! The listener: accepts connections, limits their number, and drains them at shutdown.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use http::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};
use tokio_util::task::TaskTracker;

use super::Gateway;
use super::body;
use super::cors::CorsHeaders;
use super::handler::handle;
use crate::net::{Authorization, StallGuard, catch_panic};

/// The interval between removals of idle sessions and of metrics of removed servers.
const CLEANUP_INTERVAL: Duration = Duration::from_mins(10);
/// The buffer size of one connection. The head of a request must fit, its body need not.
const CONNECTION_BUFFER_BYTES: usize = 64 << 10;
/// The maximum time at startup for which connections wait in the listener until all declarations are in the catalog.
const DECLARATIONS_TIMEOUT: Duration = Duration::from_secs(3);
/// The maximum time for one 503 response during shutdown.
const UNAVAILABLE_RESPONSE_TIMEOUT: Duration = Duration::from_millis(200);

impl Gateway {
    /// Serves agents until the gateway is stopped. Then it accepts no more connections, ends the notification streams,
    /// and lets calls finish within [`Limits::drain_timeout`](super::Limits::drain_timeout).
    pub async fn serve(self: Arc<Self>, listener: Arc<TcpListener>) {
        tokio::select! {
            () = self.accept_connections(&listener) => {}
            () = self.coarse_timer.run() => {}
        }
    }

    async fn accept_connections(self: &Arc<Self>, listener: &TcpListener) {
        let connections = TaskTracker::new();
        let permits = Arc::new(Semaphore::new(self.limits.max_connections));
        // Agents that reconnect after a restart must see the items from before it.
        let mut applied = self.catalog.declarations_applied();
        let wait = async { drop(applied.wait_for(|applied| *applied).await) };
        self.stop.run_until_cancelled(timeout(DECLARATIONS_TIMEOUT, wait)).await;
        let mut changes = self.catalog.changes();
        let mut cleanup = interval(CLEANUP_INTERVAL);
        cleanup.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let accepted = tokio::select! {
                () = self.stop.cancelled() => break,
                _ = cleanup.tick() => {
                    self.remove_idle();
                    continue;
                }
                Ok(()) = changes.changed() => {
                    self.metrics.generation.set(i64::try_from(*changes.borrow()).unwrap_or(i64::MAX));
                    continue;
                }
                accepted = accept(listener, &permits) => accepted,
            };
            let Some((stream, permit)) = accepted else {
                continue;
            };
            let gateway = self.clone();
            connections.spawn(async move {
                gateway.metrics.connections.inc();
                if let Err(panic) = catch_panic(gateway.serve_connection(stream)).await {
                    tracing::error!(
                        "a request panicked: {panic}; its connection was closed; please report this"
                    );
                }
                gateway.metrics.connections.dec();
                drop(permit);
            });
        }
        connections.close();
        connections.wait().await;
        self.detached_calls.close();
        self.detached_calls.wait().await;
    }

    async fn serve_connection(self: &Arc<Self>, stream: TcpStream) {
        // A small response must not wait for the acknowledgement of earlier data (Nagle's algorithm).
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(%error, "cannot set TCP_NODELAY; closing the connection");
            return;
        }
        let io = StallGuard::new(stream, self.limits.write_stall_timeout, self.metrics.evictions.clone());
        let service = service_fn(|request| {
            let response = handle(self.clone(), request);
            // Boxed, so that an idle connection does not hold the memory that a request needs.
            let response: std::pin::Pin<Box<dyn Future<Output = _> + Send>> =
                Box::pin(async move { Ok::<_, Infallible>(response.await) });
            response
        });
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(self.limits.idle_timeout)
            .max_buf_size(CONNECTION_BUFFER_BYTES)
            .serve_connection(TokioIo::new(io), service);
        let mut connection = std::pin::pin!(connection);
        // A child token: each poll takes the lock of the token, and every request polls this one.
        let stop = self.stop.child_token();
        let result = tokio::select! {
            result = connection.as_mut() => result,
            () = stop.cancelled() => {
                connection.as_mut().graceful_shutdown();
                timeout(self.limits.drain_timeout, connection).await.unwrap_or(Ok(()))
            }
        };
        if let Err(error) = result {
            tracing::debug!(%error, "an agent connection ended with an error");
        }
    }

    fn remove_idle(&self) {
        self.sessions.remove_idle();
        self.update_session_gauge();
        let generation = self.catalog.load();
        self.metrics.retain_servers(|server| generation.section(server).is_some());
    }
}

/// Responds with 503 and `Retry-After` to agents that connect during shutdown. Never returns.
///
/// Serves one connection after another, each for at most 200 ms.
pub async fn serve_unavailable(listener: &TcpListener, authorization: &Authorization) -> Infallible {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                let _ = timeout(UNAVAILABLE_RESPONSE_TIMEOUT, async {
                    let service = service_fn(async |request: Request<Incoming>| {
                        let cors = CorsHeaders::for_request(authorization, request.headers());
                        let mut response = body::service_unavailable();
                        cors.add_to(response.headers_mut());
                        Ok::<_, Infallible>(response)
                    });
                    let mut connection = http1::Builder::new();
                    connection.keep_alive(false).max_buf_size(CONNECTION_BUFFER_BYTES);
                    connection.serve_connection(TokioIo::new(stream), service).await
                })
                .await;
            }
            Err(_) => sleep(Duration::from_millis(50)).await,
        }
    }
}

type AcceptedConnection = (TcpStream, tokio::sync::OwnedSemaphorePermit);

/// Accepts the next connection once fewer than the maximum are open. Cancel safe.
async fn accept(listener: &TcpListener, permits: &Arc<Semaphore>) -> Option<AcceptedConnection> {
    let permit = permits.clone().acquire_owned().await.ok()?;
    match listener.accept().await {
        Ok((stream, _)) => Some((stream, permit)),
        Err(error) => {
            // Most likely out of file descriptors: other connections must end first. No backoff, because agents wait in
            // the listener.
            tracing::warn!(%error, "cannot accept an agent connection; retrying");
            sleep(Duration::from_millis(50)).await;
            None
        }
    }
}
