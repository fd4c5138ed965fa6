use std::io;
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
use super::{Failure, remembered, socket};
use crate::admin;
use crate::catalog::catalog;
use crate::fleet::{Context, Fleet, Memory};
use crate::gateway::{Allowed, Gateway, GatewayConfig, GatewayMetrics, Limits, SessionKey};
use crate::report::{Inputs, Reporter};
use crate::resource::{API_VERSION, DigestKey};
use crate::source::{Environment, directory};
use crate::state::{StateDir, StateLock};
use crate::wire::Guard;

/// How long everything together may take to end after the first signal.
const SHUTDOWN: Duration = Duration::from_secs(15);

/// Where objects are that name no namespace, and whose names carry none.
const HOME_NAMESPACE: &str = "default";

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
    /// What references to variables find.
    pub environment: Environment,
    /// Take away everything when the last file is gone.
    pub prune_empty: bool,
    /// Look at intervals and expect no file events.
    pub poll: Option<Duration>,
    /// Hosts and origins that are answered beside the loopback ones.
    pub allowed: Allowed,
}

impl Daemon {
    /// Runs until a signal, or until something breaks that must not.
    pub async fn run(self) -> Result<(), Failure> {
        // From here on a signal is heard, whatever the start is doing.
        let mut signals = Signals::new().map_err(Failure::failed)?;
        let mut tasks = Tasks::default();
        let _lock = self.start(&mut tasks).await?;
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

    /// Starts every part, in the order in which data flows. The lock is to be held to the end.
    async fn start(&self, tasks: &mut Tasks) -> Result<StateLock, Failure> {
        let state = StateDir::open(&self.state_home, &self.directory).map_err(Failure::failed)?;
        let lock = state.lock().map_err(Failure::failed)?;
        let state = Arc::new(state);
        // All addresses before anything is started: a taken port is the most common mistake.
        let agents = bind(self.listen, "MCP", "--listen").await?;
        let status = bind(self.admin, "the status API", "--admin").await?;
        let probes = match self.probes {
            Some(address) => Some(bind(address, "probes", "--probes").await?),
            None => None,
        };
        let commands = socket::bind(state.path())
            .map_err(|error| Failure::Failed(format!("the socket for the commands: {error}")))?;
        let key = |name| state.key(name).map_err(Failure::failed);
        let session_key = SessionKey::new(&key("sessions")?).map_err(Failure::failed)?;
        self.announce(&agents, &status, &state);
        let stop = tasks.stop();

        let looks = TaskTracker::new();
        let options = directory::Options {
            root: self.directory.clone(),
            secrets: self.secrets.clone(),
            environment: self.environment.clone(),
            key: DigestKey::new(&key("digests")?),
            prune_empty: self.prune_empty,
            poll: self.poll,
        };
        let desired = directory::start(options, state.clone(), &looks, stop.clone());
        tasks.spawn("the watch of the directory", async move {
            looks.close();
            looks.wait().await;
            Ok(())
        });

        let (catalog, publisher, generations) = catalog(Some(HOME_NAMESPACE.into()));
        tasks.spawn("the catalog", done(generations.run(stop.clone())));

        let (learn, learned) = mpsc::unbounded_channel();
        let memory = Memory::new(remembered::load(&state), learn);
        tasks.spawn("the memory", done(remembered::keep(state.clone(), learned, stop.clone())));

        let (guard, keep_guard) = std::env::current_exe()
            .and_then(|program| Guard::start(program, vec!["guard".into()]))
            .map_err(|error| Failure::Failed(format!("the guard process cannot be started: {error}")))?;
        let until = stop.clone();
        tasks.spawn("the keeper of the guard process", async move {
            until.run_until_cancelled(keep_guard).await;
            Ok(())
        });

        let (observe, observations) = mpsc::unbounded_channel();
        let fleet = Fleet::new(Arc::new(Context::new(publisher, observe, memory, Some(guard))));
        tasks.spawn("the fleet", done(fleet.run(desired.clone(), stop.clone())));

        let (reporter, store) = Reporter::new(&self.directory, Timestamp::now());
        let inputs = Inputs { desired, observations, catalog: catalog.clone() };
        tasks.spawn("the reporter", done(reporter.run(inputs, stop.clone())));

        let counted = GatewayMetrics::default();
        let mut metrics = Registry::with_prefix("evenkeel");
        admin::register(&mut metrics, store.clone());
        counted.register(&mut metrics);
        let metrics = Arc::new(metrics);

        let config = GatewayConfig { allowed: self.allowed.clone(), session_key, limits: Limits::default() };
        let gateway = Gateway::new(config, catalog, counted);
        tasks.spawn("the MCP endpoint", done(gateway.serve(agents, stop.clone())));

        let (router, until) = (admin::local_api(store.clone(), metrics.clone()), stop.clone());
        tasks.spawn("the socket for the commands", async move {
            let served = admin::serve_local(commands, router, until).await;
            // Before the lock goes: the next daemon makes a socket of its own.
            socket::remove(state.path())?;
            served
        });
        let router = admin::status_api(store.clone(), metrics.clone(), self.allowed.clone());
        tasks.spawn("the status API", admin::serve(status, router, stop.clone()));
        if let Some(probes) = probes {
            tasks.spawn("the probes", admin::serve(probes, admin::probes(store, metrics), stop));
        }
        Ok(lock)
    }

    fn announce(&self, agents: &TcpListener, status: &TcpListener, state: &StateDir) {
        let url = |listener: &TcpListener, path: &str| {
            let address = listener.local_addr().map(|address| address.to_string()).unwrap_or_default();
            format!("http://{address}{path}")
        };
        tracing::info!(
            directory = %self.directory.display(),
            mcp = url(agents, "/mcp"),
            status = url(status, &format!("/apis/{API_VERSION}")),
            state = %state.path().display(),
            "evenkeel {} is running",
            env!("CARGO_PKG_VERSION"),
        );
    }
}

async fn done(task: impl Future<Output = ()>) -> io::Result<()> {
    task.await;
    Ok(())
}
