use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use prometheus_client::registry::Registry;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio::time::sleep;
use tokio_util::task::TaskTracker;

use super::error::DaemonError;
use super::listen::bind;
use super::names_file::NamesFile;
use super::session_key::session_key;
use super::signals::Signals;
use super::status_writer::spawn_status_writer;
use super::tasks::Tasks;
use super::telemetry::Telemetry;
use super::{kubeconfig, server_cache_file, socket};
use crate::admin::{self, LocalApi};
use crate::catalog::catalog;
use crate::fleet::{Fleet, FleetContext, ServerCache};
use crate::gateway::{Gateway, GatewayConfig, GatewayMetrics, Limits, serve_unavailable};
use crate::net::{AllowedHosts, Authorization};
use crate::report::{AuditMetrics, Reporter, ReporterInputs, write_audit_log};
use crate::resource::{API_VERSION, Digest, DigestKey};
use crate::skills::{SkillStates, SyncOptions, SyncResults, serve, sync, track_skill_states};
use crate::source::{SourceArgs, SourceContext, SourceHandle, SourceInfo, SourceMetrics};
use crate::state_dir::{StateDir, StateLock};
use crate::wire::ProcessGuard;

/// How long everything together may take to end after the first signal.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(15);

/// What a running evenkeel is made from: the arguments of `run`, with nothing left open.
#[derive(Debug)]
pub struct Daemon {
    /// What is reconciled.
    pub source: SourceArgs,
    /// Where state directories live.
    pub state_home: PathBuf,
    /// Where agents connect.
    pub listen: SocketAddr,
    /// Where the status API is.
    pub admin: SocketAddr,
    /// Where health and metrics are alone.
    pub probes: Option<SocketAddr>,
    /// Where spans and metrics are sent.
    pub telemetry: Telemetry,
    /// Where skills are written.
    pub sync_skills: Vec<PathBuf>,
    /// Hosts and origins that are answered beside the loopback ones.
    pub allowed: AllowedHosts,
}

impl Daemon {
    /// Runs until a signal, or until something breaks that must not.
    pub async fn run(self) -> Result<(), DaemonError> {
        // From here on a signal is heard, whatever the start is doing.
        let mut signals = Signals::new().map_err(DaemonError::new)?;
        let mut tasks = Tasks::default();
        // First of all: agents that come back after a restart wait in the listener.
        let agents = bind(self.listen, "MCP", "--listen").await.map(Arc::new);
        let (_lock, agents) = self.start(&mut tasks, agents).await?;
        let outcome = tokio::select! {
            name = signals.next() => {
                tracing::info!(signal = name, "shutting down; a second signal ends it at once");
                Ok(())
            }
            broken = tasks.first_failure() => Err(broken),
        };
        // Agents are answered until the very end, so that the port is closed no longer than the next start takes.
        let left = tokio::select! {
            () = tasks.shutdown() => return outcome,
            never = serve_unavailable(&agents) => match never {},
            name = signals.next() => format!("ended at once by a second signal, {name}"),
            () = sleep(SHUTDOWN_TIMEOUT) => format!("did not end within {} s", SHUTDOWN_TIMEOUT.as_secs()),
        };
        Err(DaemonError(format!("{left}; still running: {}", tasks.running_names())))
    }

    /// Starts every part, in the order in which data flows. The lock and the listener are to be held to the end.
    async fn start(
        &self,
        tasks: &mut Tasks,
        agents: Result<Arc<TcpListener>, DaemonError>,
    ) -> Result<(StateLock, Arc<TcpListener>), DaemonError> {
        let source = self.source.clone().open().await.map_err(DaemonError::new)?;
        let info = source.info().clone();
        let state = StateDir::open(&self.state_home, &info.identity).map_err(DaemonError::new)?;
        let lock = state.lock().map_err(DaemonError::new)?;
        let state = Arc::new(state);
        // All addresses before anything is started: a taken port is the most common mistake. That another daemon has
        // the same directory says more.
        let agents = agents?;
        let status = bind(self.admin, "the status API", "--admin").await?;
        let probes = match self.probes {
            Some(address) => Some(bind(address, "probes", "--probes").await?),
            None => None,
        };
        let commands = socket::bind(state.path())
            .map_err(|error| DaemonError(format!("the socket for the commands: {error}")))?;
        let (session_key, agents_wait) = session_key(info.api_server.as_ref(), &state)?;
        let token = kubeconfig::token_from_key(&state.key("status-token").map_err(DaemonError::new)?);
        let address = status.local_addr().map_err(DaemonError::new)?;
        let certificate = admin::Certificate::new(address.ip()).map_err(DaemonError::new)?;
        kubeconfig::write(&state, address, &certificate, &token).map_err(DaemonError::new)?;
        log_started(&info, &agents, &status, &state);
        let stop = tasks.stop_token();
        let (spans, export) = self.telemetry.open()?;

        // Before the source looks for the first time: what it finds then is new.
        let started = Timestamp::now();
        let digests = DigestKey::new(&state.key("digests").map_err(DaemonError::new)?);
        let watching = SourceMetrics::default();
        let tracker = TaskTracker::new();
        let SourceHandle { desired, requests, control: wishes, stored_statuses: shown } =
            source.start(SourceContext {
                state_dir: state.clone(),
                digest_key: digests.clone(),
                metrics: watching.clone(),
                tracker: tracker.clone(),
                stop: stop.clone(),
            });
        tasks.spawn("the watch of the source", async move {
            tracker.close();
            tracker.wait().await;
            Ok(())
        });
        let in_force =
            admin::declared_routes(desired.clone(), digests, info.policy.clone(), info.root.clone());
        let declared = desired.clone();
        let (names, kept) = NamesFile::open(&state, started);
        let (tell, told) = mpsc::unbounded_channel();
        let (catalog, publisher, generations) = catalog(info.default_namespace.clone(), kept, tell);
        tasks.spawn("the names of tools", always_ok(names.run(told, stop.clone())));
        let to_agents = publisher.clone();
        tasks.spawn("the catalog", always_ok(generations.run(stop.clone())));

        let (learn, learned) = mpsc::unbounded_channel();
        let memory = ServerCache::new(server_cache_file::load(&state), learn);
        tasks.spawn(
            "the memory",
            always_ok(server_cache_file::write_updates(
                state.clone(),
                learned,
                catalog.settled(),
                stop.clone(),
            )),
        );
        let forget =
            server_cache_file::run_cleanup(state.clone(), memory.clone(), desired.clone(), stop.clone());
        tasks.spawn("the memory of what is gone", always_ok(forget));

        let (guard, keep_guard) = std::env::current_exe()
            .and_then(|program| ProcessGuard::start(program, vec!["guard".into()]))
            .map_err(|error| DaemonError(format!("the guard process cannot be started: {error}")))?;
        let until = stop.clone();
        tasks.spawn("the keeper of the guard process", async move {
            until.run_until_cancelled(keep_guard).await;
            Ok(())
        });

        let (observe, observations) = mpsc::unbounded_channel();
        let mut context = FleetContext::new(publisher, observe, memory, Some(guard));
        context.metrics = context.metrics.with_spans(spans.clone());
        let (logs, listeners, attaching) =
            (context.logs.clone(), context.subscriptions.clone(), context.metrics.clone());
        let identity = context.instance_id.clone();
        let fleet = Fleet::new(Arc::new(context));
        tasks.spawn("the fleet", always_ok(fleet.run(desired.clone(), stop.clone())));

        let (skills, standing) = track_skill_states(desired.clone(), catalog.clone(), stop.clone());
        tasks.spawn("the skills", always_ok(standing));
        tasks.spawn("the skills over MCP", always_ok(serve(skills.clone(), to_agents, stop.clone())));
        let written = self.start_skill_sync(&info, &skills, tasks);

        let (mut reporter, store) = Reporter::new(info.id.clone(), started);
        reporter.resume_from(shown.clone());
        let (happened, audited) = (reporter.subscribe_occurrences(), AuditMetrics::default());
        let inputs = ReporterInputs {
            desired,
            observations,
            catalog: catalog.clone(),
            skill_states: skills,
            sync_results: written,
        };
        tasks.spawn("the reporter", always_ok(reporter.run(inputs, stop.clone())));
        if let Some(server) = &info.api_server {
            spawn_status_writer(server, store.clone(), shown, tasks);
        }

        let (kept, kind, counts) = (state.clone(), info.id.kind, audited.clone());
        // Ends after the reporter, when there is nothing more to tell.
        tasks.spawn("the audit log", async move {
            write_audit_log(kept.path(), kind, happened, counts).await;
            Ok(())
        });

        let counted = GatewayMetrics::default().with_spans(spans);
        let mut metrics = Registry::with_prefix("evenkeel");
        admin::register_status_metrics(&mut metrics, store.clone());
        counted.register(&mut metrics);
        attaching.register(&mut metrics);
        watching.register(&mut metrics);
        audited.register(&mut metrics);
        export.register(&mut metrics);
        let metrics = Arc::new(metrics);
        // Ends after the fleet and the endpoint, when there is nothing more to tell.
        export.start(&metrics, tasks);

        let (offered, listener) = (catalog.clone(), agents.clone());
        let authorization = Authorization::new(self.allowed.clone());
        let (of_agents, until) = (authorization.clone(), stop.clone());
        tasks.spawn("the MCP endpoint", async move {
            // Agents that come before the key is there wait in the listener.
            if let Some(session_key) = until.run_until_cancelled(session_key).await {
                let limits = Limits::default();
                let config = GatewayConfig {
                    authorization: of_agents,
                    session_key,
                    subscriptions: listeners,
                    instance_id: identity,
                    limits,
                };
                Gateway::new(config, offered, counted, until).serve(listener).await;
            }
            Ok(())
        });

        let local = LocalApi {
            store: store.clone(),
            desired: declared,
            logs,
            catalog,
            source_control: wishes,
            stop: stop.clone(),
        };
        let sources = admin::ApiState {
            store,
            agents_not_ready: agents_wait,
            metrics,
            requests,
            edit_hint: info.edit_instruction,
            stop: stop.clone(),
        };
        let router = admin::local_api(sources.clone()).merge(admin::local_routes(local)).merge(in_force);
        let until = stop.clone();
        tasks.spawn("the socket for the commands", async move {
            let served = admin::serve_local(commands, router, until).await;
            // Before the lock goes: the next daemon makes a socket of its own.
            socket::remove(state.path())?;
            served
        });
        let router = admin::status_api(sources.clone(), authorization.with_token(token));
        tasks.spawn("the status API", admin::serve_tls_or_plain(status, certificate, router, stop.clone()));
        if let Some(probes) = probes {
            tasks.spawn("the probes", admin::serve(probes, admin::probe_api(sources), stop));
        }
        Ok((lock, agents))
    }
}

impl Daemon {
    /// Starts to write skills to the directories of agents.
    fn start_skill_sync(
        &self,
        info: &SourceInfo,
        skills: &watch::Receiver<SkillStates>,
        tasks: &mut Tasks,
    ) -> watch::Receiver<SyncResults> {
        let options = SyncOptions {
            directories: self.sync_skills.clone(),
            owner: Digest::of(info.identity.as_os_str().as_encoded_bytes()).hex_prefix(16),
            home: info.default_namespace.clone(),
        };
        let (tracker, stop) = (TaskTracker::new(), tasks.stop_token());
        let written = sync(options, skills, &tracker, &stop);
        tasks.spawn("the directories of skills", async move {
            stop.cancelled().await;
            tracker.close();
            tracker.wait().await;
            Ok(())
        });
        written
    }
}

fn log_started(info: &SourceInfo, agents: &TcpListener, status: &TcpListener, state: &StateDir) {
    let url = |listener: &TcpListener, path: &str| {
        let address = listener.local_addr().map(|address| address.to_string()).unwrap_or_default();
        format!("http://{address}{path}")
    };
    tracing::info!(
        source = info.id.location,
        mcp = url(agents, "/mcp"),
        status = url(status, &format!("/apis/{API_VERSION}")),
        kubeconfig = %kubeconfig::path(state).display(),
        state = %state.path().display(),
        "evenkeel {} is running",
        env!("CARGO_PKG_VERSION"),
    );
}

async fn always_ok(task: impl Future<Output = ()>) -> io::Result<()> {
    task.await;
    Ok(())
}
