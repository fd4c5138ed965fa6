//! Serves what `report/` tells: the Kubernetes read API of our kinds, health and metrics.
//!
//! Promises that an answer is made from one snapshot, in the shapes that Kubernetes clients expect, and
//! that a question never starts, probes or delays a server. Never changes what is declared, which is done where
//! it is written. Host names are checked, so that a web page cannot ask through a browser.

mod access;
mod answer;
mod api;
mod declared;
mod health;
mod host;
mod local;
mod metrics;
#[cfg(test)]
mod tests;
mod tls;

use std::io;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::serve::{Listener, ListenerExt};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::registry::Registry;
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use self::access::Access;
use self::api::History;
use crate::gateway::{Allowed, StallGuard};
use crate::report::Snapshot;
use crate::source::Requests;

pub use access::Token;
pub use declared::{DECLARED, InForce, Object as Declaration, declared};
pub use local::{LOOK, Local, PRUNE_EMPTY, RELOAD_SKILLS, Reloaded, local_routes};
pub use metrics::register;
pub use tls::{Certificate, CertificateError};

/// What the status API is made from.
#[derive(Clone, Debug)]
pub struct Sources {
    /// What is told.
    pub store: watch::Receiver<Snapshot>,
    /// Why agents cannot be served yet; `None` from when they can.
    pub agents_wait: watch::Receiver<Option<String>>,
    /// What is counted.
    pub metrics: Arc<Registry>,
    /// Where requests for work go; none where the objects themselves are asked, in a cluster.
    pub requests: Option<Requests>,
    /// What somebody does who wants to change what is declared: `edit the files in …`.
    pub to_change: Arc<str>,
    /// Ends the watches.
    pub stop: CancellationToken,
}

/// What the handlers answer from.
#[derive(Clone)]
struct App {
    store: watch::Receiver<Snapshot>,
    agents_wait: watch::Receiver<Option<String>>,
    metrics: Arc<Registry>,
    requests: Option<Requests>,
    to_change: Arc<str>,
    stop: CancellationToken,
    history: Arc<History>,
    access: Access,
}

impl App {
    fn new(sources: Sources, access: Access) -> Self {
        let Sources { store, agents_wait, metrics, requests, to_change, stop } = sources;
        Self { store, agents_wait, metrics, requests, to_change, stop, history: Arc::default(), access }
    }

    /// A copy, so that the reporter never waits for an answer to be written.
    fn snapshot(&self) -> Snapshot {
        self.store.borrow().clone()
    }
}

/// Everything: the status API, health and metrics, for the address of `--admin`. Everyone who reaches it may
/// read; only who has the token may ask for work.
pub fn status_api(sources: Sources, token: Token, allowed: Allowed) -> Router {
    everything()
        .layer(axum::middleware::from_fn_with_state(Arc::new(allowed), host::check))
        .with_state(App::new(sources, Access::Token(token)))
}

/// The same for the socket in the state directory: whoever can open that is the owner.
pub fn local_api(sources: Sources) -> Router {
    everything().with_state(App::new(sources, Access::Granted))
}

fn everything() -> Router<App> {
    api::routes().merge(health::routes()).merge(metrics::routes())
}

/// Health and metrics alone, for the address of `--probes`: no host check, since a kubelet asks by address.
pub fn probes(sources: Sources) -> Router {
    health::routes().merge(metrics::routes()).with_state(App::new(sources, Access::Granted))
}

/// Serves HTTP and HTTPS until it is stopped; then answers what was asked and ends. A client that stops reading
/// is cut off.
pub async fn serve_secured(
    listener: TcpListener,
    certificate: Certificate,
    router: Router,
    stop: CancellationToken,
) -> io::Result<()> {
    let listener = Patient(tls::Both { listener, certificate });
    end(axum::serve(listener, router).with_graceful_shutdown(stop.clone().cancelled_owned()), stop).await
}

/// Serves HTTP alone, in the same way.
pub async fn serve(listener: TcpListener, router: Router, stop: CancellationToken) -> io::Result<()> {
    let listener = listener.tap_io(|stream| {
        if let Err(error) = stream.set_nodelay(true) {
            tracing::trace!(%error, "TCP_NODELAY");
        }
    });
    end(axum::serve(Patient(listener), router).with_graceful_shutdown(stop.clone().cancelled_owned()), stop)
        .await
}

/// The same on a Unix socket.
pub async fn serve_local(listener: UnixListener, router: Router, stop: CancellationToken) -> io::Result<()> {
    end(axum::serve(Patient(listener), router).with_graceful_shutdown(stop.clone().cancelled_owned()), stop)
        .await
}

/// How long answers may take after the end was asked for: a client that does not read must not hold it up.
const LAST_ANSWERS: Duration = Duration::from_secs(2);

async fn end(served: impl IntoFuture<Output = io::Result<()>>, stop: CancellationToken) -> io::Result<()> {
    let over = async {
        stop.cancelled().await;
        tokio::time::sleep(LAST_ANSWERS).await;
    };
    tokio::select! {
        ended = served.into_future() => ended,
        () = over => Ok(()),
    }
}

/// How long a client may take nothing of what there is to take.
const STALL: Duration = Duration::from_secs(30);

/// A listener whose connections break when their other side stops reading.
struct Patient<L>(L);

impl<L: Listener> Listener for Patient<L> {
    type Io = StallGuard<L::Io>;
    type Addr = L::Addr;

    async fn accept(&mut self) -> (Self::Io, Self::Addr) {
        let (io, address) = self.0.accept().await;
        (StallGuard::new(io, STALL, Counter::default()), address)
    }

    fn local_addr(&self) -> io::Result<Self::Addr> {
        self.0.local_addr()
    }
}
