//! Serves what `report/` tells: the Kubernetes read API of our kinds, health and metrics.
//!
//! Promises that an answer is made from one snapshot, in the shapes that Kubernetes clients expect, and
//! that a question never starts, probes or delays a server. Never changes anything: declarations are
//! changed where they are written. Host names are checked, so that a web page cannot ask through a browser.

mod answer;
mod api;
mod health;
mod host;
mod metrics;
#[cfg(test)]
mod tests;

use std::io;
use std::sync::Arc;

use axum::Router;
use axum::serve::ListenerExt;
use prometheus_client::registry::Registry;
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::gateway::Allowed;
use crate::report::Snapshot;

pub use metrics::register;

/// What the handlers answer from.
#[derive(Clone)]
struct App {
    store: watch::Receiver<Snapshot>,
    metrics: Arc<Registry>,
}

/// Everything: the status API, health and metrics, for the address of `--admin`.
pub fn status_api(store: watch::Receiver<Snapshot>, metrics: Arc<Registry>, allowed: Allowed) -> Router {
    everything()
        .layer(axum::middleware::from_fn_with_state(Arc::new(allowed), host::check))
        .with_state(App { store, metrics })
}

/// The same for the socket in the state directory: whoever can open that is the owner.
pub fn local_api(store: watch::Receiver<Snapshot>, metrics: Arc<Registry>) -> Router {
    everything().with_state(App { store, metrics })
}

fn everything() -> Router<App> {
    api::routes().merge(health::routes()).merge(metrics::routes())
}

/// Health and metrics alone, for the address of `--probes`: no host check, since a kubelet asks by address.
pub fn probes(store: watch::Receiver<Snapshot>, metrics: Arc<Registry>) -> Router {
    health::routes().merge(metrics::routes()).with_state(App { store, metrics })
}

/// Serves until it is stopped; then answers what was asked and ends.
pub async fn serve(listener: TcpListener, router: Router, stop: CancellationToken) -> io::Result<()> {
    let listener = listener.tap_io(|stream| {
        if let Err(error) = stream.set_nodelay(true) {
            tracing::trace!(%error, "TCP_NODELAY");
        }
    });
    axum::serve(listener, router).with_graceful_shutdown(stop.cancelled_owned()).await
}

/// The same on a Unix socket.
pub async fn serve_local(listener: UnixListener, router: Router, stop: CancellationToken) -> io::Result<()> {
    axum::serve(listener, router).with_graceful_shutdown(stop.cancelled_owned()).await
}
