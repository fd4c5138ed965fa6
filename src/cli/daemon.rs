use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use prometheus_client::registry::Registry;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::time::sleep;
use tokio_util::task::TaskTracker;

use super::listen::bind;
use super::signals::Signals;
use super::tasks::Tasks;
use super::{Failure, remembered};
use crate::admin;
use crate::catalog::catalog;
use crate::fleet::{Context, Fleet, Memory};
use crate::gateway::{Allowed, Gateway, GatewayConfig, GatewayMetrics, Limits, SessionKey};
use crate::report::{Inputs, Reporter};
use crate::resource::{API_VERSION, DigestKey};
use crate::source::directory;
use crate::state::StateDir;
use crate::wire::{Guard, Host};

/// How long everything together may take to end after the first signal.
const SHUTDOWN: Duration = Duration::from_secs(15);

/// What a running evenkeel is made from: the arguments of `run`, with nothing left open.
#[derive(Debug)]
pub(super) struct Daemon {
    /// The directory of declarations, absolute; links are not resolved.
    pub directory: PathBuf,
    /// Where references to secrets are looked up.
    pub secrets: PathBuf,
    /// Where state directories live.
    pub state_home: PathBuf,
    /// Where agents connect.
    pub listen: SocketAddr,
    /// Where the status API is.
    pub admin: SocketAddr,
    /// Where health and metrics are alone.
    pub probes: Option<SocketAddr>,
    /// Hosts and origins that are answered beside the loopback ones.
    pub allowed: Allowed,
}

impl Daemon {
    /// Runs until a signal, or until something breaks that must not.
    pub async fn run(self) -> Result<(), Failure> {
        // From here on a signal is heard, whatever the start is doing.
        let mut signals = Signals::new().map_err(Failure::failed)?;
        let mut tasks = Tasks::default();
        let _lock = tokio::select! {
            lock = self.start(&mut tasks) => lock?,
            name = signals.next() => {
                tracing::info!(signal = name, "ended while starting");
                return Ok(());
            }
        };
        let outcome = tokio::select! {
            name = signals.next() => {
                tracing::info!(signal = name, "shutting down; a second signal ends it at once");
                Ok(())
            }
            broken = tasks.broken() => Err(broken),
        };
        let left = tokio::select! {
            () = tasks.end() => return outcome,
            name = signals.next() => format!("ended at once by a second signal, {name}"),
            () = sleep(SHUTDOWN) => format!("did not end within {} s", SHUTDOWN.as_secs()),
        };
        Err(Failure::Failed(format!("{left}; still running: {}", tasks.running())))
    }
}
