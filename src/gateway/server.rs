//! The listener: connections are taken, bounded, watched, and brought to an end.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};
use tokio_util::task::TaskTracker;

use super::Gateway;
use super::body;
use super::handler::handle;
use crate::net::StallGuard;

/// How often what is idle is looked for.
const CLEANUP_INTERVAL: Duration = Duration::from_mins(10);
/// Bytes buffered for one connection: a request's head must fit, its body need not.
const CONNECTION_BUFFER_BYTES: usize = 64 << 10;
/// How long agents wait at most in the listener until all that is declared was taken up at the start.
const DECLARATIONS_TIMEOUT: Duration = Duration::from_secs(3);
/// How long the answer to an agent may take that comes while evenkeel ends.
const UNAVAILABLE_RESPONSE_TIMEOUT: Duration = Duration::from_millis(200);

impl Gateway {
    /// Serves agents until it is told to stop; then takes no more, ends the notice streams, and lets calls
    /// finish within the bound that was configured.
    pub async fn serve(self: Arc<Self>, listener: Arc<TcpListener>) {
        tokio::select! {
            () = self.accept_connections(&listener) => {}
            () = self.coarse_timer.run() => {}
        }
    }

    async fn accept_connections(self: &Arc<Self>, listener: &TcpListener) {
        let connections = TaskTracker::new();
        let free = Arc::new(Semaphore::new(self.limits.max_connections));
        // Agents that come back after a restart see what was there before it.
        let mut declared = self.catalog.declarations_applied();
        let declared = async { drop(declared.wait_for(|declared| *declared).await) };
        self.stop.run_until_cancelled(timeout(DECLARATIONS_TIMEOUT, declared)).await;
        let mut changes = self.catalog.changes();
        let mut housekeeping = interval(CLEANUP_INTERVAL);
        housekeeping.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let accepted = tokio::select! {
                () = self.stop.cancelled() => break,
                _ = housekeeping.tick() => {
                    self.remove_idle();
                    continue;
                }
                Ok(()) = changes.changed() => {
                    self.metrics.generation.set(i64::try_from(*changes.borrow()).unwrap_or(i64::MAX));
                    continue;
                }
                accepted = accept(listener, &free) => accepted,
            };
            let Some((stream, permit)) = accepted else {
                continue;
            };
            let gateway = self.clone();
            connections.spawn(async move {
                gateway.metrics.connections.inc();
                gateway.serve_connection(stream).await;
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
        // Small answers must not wait for the acknowledgement of what was sent before.
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(%error, "a connection closed at once");
            return;
        }
        let io = StallGuard::new(stream, self.limits.write_stall_timeout, self.metrics.evictions.clone());
        let service = service_fn(|request| {
            let answer = handle(self.clone(), request);
            // In a box, so that an idle connection does not hold the room that a request needs.
            let answer: std::pin::Pin<Box<dyn Future<Output = _> + Send>> =
                Box::pin(async move { Ok::<_, Infallible>(answer.await) });
            answer
        });
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(self.limits.idle_timeout)
            .max_buf_size(CONNECTION_BUFFER_BYTES)
            .serve_connection(TokioIo::new(io), service);
        let mut connection = std::pin::pin!(connection);
        // A token of its own: each look at one takes its lock, and this one is looked at with every request.
        let stop = self.stop.child_token();
        let ended = tokio::select! {
            ended = connection.as_mut() => ended,
            () = stop.cancelled() => {
                connection.as_mut().graceful_shutdown();
                timeout(self.limits.drain_timeout, connection).await.unwrap_or(Ok(()))
            }
        };
        if let Err(error) = ended {
            tracing::debug!(%error, "connection of an agent ended");
        }
    }

    fn remove_idle(&self) {
        self.sessions.remove_idle();
        self.update_session_gauge();
        let generation = self.catalog.load();
        self.metrics.retain_servers(|server| generation.section(server).is_some());
    }
}

/// Answers agents while evenkeel ends: whoever connects is told by 503 to come back in a moment. Never ends.
///
/// Takes one connection after another, each for a short time at most: there is nothing to do but to say so.
pub async fn serve_unavailable(listener: &TcpListener) -> Infallible {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                let _ = timeout(UNAVAILABLE_RESPONSE_TIMEOUT, async {
                    let service = service_fn(|_| async { Ok::<_, Infallible>(body::service_unavailable()) });
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

/// The next connection, once there is room for one. Cancel safe.
async fn accept(listener: &TcpListener, free: &Arc<Semaphore>) -> Option<AcceptedConnection> {
    let permit = free.clone().acquire_owned().await.ok()?;
    match listener.accept().await {
        Ok((stream, _)) => Some((stream, permit)),
        Err(error) => {
            // Out of descriptors, most likely: others must end first. No backoff, since agents wait in the listener.
            tracing::warn!(%error, "an agent's connection could not be taken");
            sleep(Duration::from_millis(50)).await;
            None
        }
    }
}
