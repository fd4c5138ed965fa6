use std::io;
use std::time::Duration;

use axum::Router;
use axum::serve::{Listener, ListenerExt};
use prometheus_client::metrics::counter::Counter;
use tokio::net::{TcpListener, UnixListener};
use tokio_util::sync::CancellationToken;

use super::tls::{self, Certificate};
use crate::net::StallGuard;

/// Serves HTTP and HTTPS until `stop` is cancelled, then finishes the requests in flight and returns. A client that
/// stops reading is disconnected.
pub async fn serve_tls_or_plain(
    listener: TcpListener,
    certificate: Certificate,
    router: Router,
    stop: CancellationToken,
) -> io::Result<()> {
    let listener = StallGuardedListener(tls::TlsOrPlainListener { listener, certificate });
    run_until_stopped(
        axum::serve(listener, router).with_graceful_shutdown(stop.clone().cancelled_owned()),
        stop,
    )
    .await
}

/// Serves HTTP only, in the same way.
pub async fn serve(listener: TcpListener, router: Router, stop: CancellationToken) -> io::Result<()> {
    let listener = listener.tap_io(|stream| {
        if let Err(error) = stream.set_nodelay(true) {
            tracing::trace!(%error, "TCP_NODELAY");
        }
    });
    run_until_stopped(
        axum::serve(StallGuardedListener(listener), router)
            .with_graceful_shutdown(stop.clone().cancelled_owned()),
        stop,
    )
    .await
}

/// Serves HTTP on a Unix socket, in the same way.
pub async fn serve_local(listener: UnixListener, router: Router, stop: CancellationToken) -> io::Result<()> {
    run_until_stopped(
        axum::serve(StallGuardedListener(listener), router)
            .with_graceful_shutdown(stop.clone().cancelled_owned()),
        stop,
    )
    .await
}

/// The longest time to finish requests after `stop` is cancelled: a client that does not read must not delay shutdown.
const GRACEFUL_SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(2);

async fn run_until_stopped(
    server: impl IntoFuture<Output = io::Result<()>>,
    stop: CancellationToken,
) -> io::Result<()> {
    let timeout = async {
        stop.cancelled().await;
        tokio::time::sleep(GRACEFUL_SHUTDOWN_TIMEOUT).await;
    };
    tokio::select! {
        result = server.into_future() => result,
        () = timeout => Ok(()),
    }
}

/// The longest time for which a client may read nothing although data is pending.
const STALL_TIMEOUT: Duration = Duration::from_secs(30);

/// A listener whose connections fail when the peer stops reading.
struct StallGuardedListener<L>(L);

impl<L: Listener> Listener for StallGuardedListener<L> {
    type Io = StallGuard<L::Io>;
    type Addr = L::Addr;

    async fn accept(&mut self) -> (Self::Io, Self::Addr) {
        let (io, address) = self.0.accept().await;
        (StallGuard::new(io, STALL_TIMEOUT, Counter::default()), address)
    }

    fn local_addr(&self) -> io::Result<Self::Addr> {
        self.0.local_addr()
    }
}
