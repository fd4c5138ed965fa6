use std::io;
use std::net::{Ipv4Addr, SocketAddr};
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
use crate::gateway::{Gateway, GatewayConfig, GatewayMetrics, KnownNamespaces, Limits, serve_unavailable};
use crate::net::{AllowedHosts, Authorization, SupervisedTasks};
use crate::oauth::{Authorizer, AuthorizerContext, AuthorizerHandle, CALLBACK_PATH, GrantStore, LoginClient};
use crate::report::{AuditMetrics, Reporter, ReporterInputs, write_audit_log};
use crate::resource::{API_VERSION, Desired, Digest, DigestKey};
use crate::skills::{SkillStates, SyncOptions, SyncResults, serve, sync, track_skill_states};
use crate::source::{SourceArgs, SourceContext, SourceHandle, SourceInfo, SourceMetrics};
use crate::state_dir::{StateDir, StateLock};
use crate::wire::{ChildEnvironment, ProcessGuard};

/// The longest time for a shutdown after the first signal.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(15);

/// The configuration of an instance: the arguments of `run`, resolved.
#[derive(Debug)]
pub struct Daemon {
    /// The source of declarations.
    pub source: SourceArgs,
    /// The parent of the state directories.
    pub state_home: PathBuf,
    /// The address of the MCP endpoint for agents.
    pub listen: SocketAddr,
    /// The address of the status API, health and metrics.
    pub admin: SocketAddr,
    /// The address that serves only health and metrics, if any.
    pub probes: Option<SocketAddr>,
    /// The export of spans and metrics.
    pub telemetry: Telemetry,
    /// The variables that the processes of servers inherit.
    pub child_environment: ChildEnvironment,
    /// The directories to which skills are written.
    pub sync_skills: Vec<PathBuf>,
    /// Hosts and origins that are allowed in addition to the loopback ones.
    pub allowed: AllowedHosts,
    /// The address (`HOST:PORT`) at which other replicas reach this process, if there are any.
    pub replica_address: Option<SocketAddr>,
    /// The limits on agents.
    pub limits: Limits,
    /// The HTTPS URL of the client ID metadata document for logins to servers, if there is one.
    pub oauth_client_metadata: Option<String>,
}

impl Daemon {
    /// Runs until a signal or a fatal error.
    pub async fn run(self) -> Result<(), DaemonError> {
        // Handle signals from here on, during startup too.
        let mut signals = Signals::new().map_err(DaemonError::new)?;
        let mut tasks = Tasks::default();
        // Bind first: agents that reconnect after a restart wait in the listener's queue.
        let agents = bind(self.listen, "MCP", "--listen").await.map(Arc::new);
        let (_lock, agents) = self.start(&mut tasks, agents).await?;
        let outcome = tokio::select! {
            name = signals.next() => {
                tracing::info!(signal = name, "shutting down; a second signal exits immediately");
                Ok(())
            }
            failure = tasks.first_failure() => Err(failure),
        };
        // Keep the port open and refuse agents until the end, so that it is closed only while the next instance
        // starts.
        let authorization = Authorization::new(self.allowed.clone());
        let reason = tokio::select! {
            () = tasks.shutdown() => return outcome,
            never = serve_unavailable(&agents, &authorization) => match never {},
            name = signals.next() => format!("exited immediately on a second signal, {name}"),
            () = sleep(SHUTDOWN_TIMEOUT) => {
                format!("shutdown did not complete within {} s", SHUTDOWN_TIMEOUT.as_secs())
            }
        };
        Err(DaemonError(format!("{reason}; still running: {}", tasks.running_names())))
    }

    /// Starts all parts, in the order in which data flows. The caller must hold the returned lock and listener to the
    /// end.
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
        // Bind all addresses before anything is started: a port in use is the most common mistake. The lock comes
        // before, as an instance on the same directory is the more helpful error.
        let agents = agents?;
        let status = bind(self.admin, "the status API", "--admin").await?;
        let probes = match self.probes {
            Some(address) => Some(bind(address, "probes", "--probes").await?),
            None => None,
        };
        let command_socket = socket::bind(state.path())
            .map_err(|error| DaemonError(format!("cannot create the socket for the commands: {error}")))?;
        let (session_key, agents_not_ready) = session_key(info.api_server.as_ref(), &state)?;
        let token = kubeconfig::token_from_key(&state.key("status-token").map_err(DaemonError::new)?);
        let address = status.local_addr().map_err(DaemonError::new)?;
        let certificate = admin::Certificate::new(address.ip()).map_err(DaemonError::new)?;
        kubeconfig::write(&state, address, &certificate, &token).map_err(DaemonError::new)?;
        log_started(&info, &agents, &status, &state);
        let stop = tasks.stop_token();
        let (spans, export) = self.telemetry.open()?;

        // Taken before the first scan, so that the objects that it finds are newer.
        let started = Timestamp::now();
        let digests = DigestKey::new(&state.key("digests").map_err(DaemonError::new)?);
        let source_metrics = SourceMetrics::default();
        let source_tasks = SupervisedTasks::default();
        let SourceHandle { desired, requests, control, stored_statuses } = source.start(SourceContext {
            state_dir: state.clone(),
            digest_key: digests.clone(),
            metrics: source_metrics.clone(),
            tasks: source_tasks.clone(),
            stop: stop.clone(),
        });
        tasks.spawn("the source", async move { source_tasks.wait().await.map_err(io::Error::other) });
        let declared_routes =
            admin::declared_routes(desired.clone(), digests, info.policy.clone(), info.root.clone());
        let desired_objects = desired.clone();
        let namespaces = KnownNamespaces::new(info.namespaces.clone(), desired.clone());
        let (names, reserved_names) = NamesFile::open(&state, started);
        let (name_sender, name_updates) = mpsc::unbounded_channel();
        let (catalog, publisher, generations) =
            catalog(info.default_namespace.clone(), reserved_names, name_sender);
        tasks.spawn("the reserved names", always_ok(names.run(name_updates, stop.clone())));
        let skill_publisher = publisher.clone();
        tasks.spawn("the catalog", always_ok(generations.run(stop.clone())));

        let (cache_sender, cache_updates) = mpsc::unbounded_channel();
        let cache = ServerCache::new(server_cache_file::load(&state), cache_sender);
        tasks.spawn(
            "the server cache",
            always_ok(server_cache_file::write_updates(
                state.clone(),
                cache_updates,
                catalog.settled(),
                stop.clone(),
            )),
        );
        let cleanup =
            server_cache_file::run_cleanup(state.clone(), cache.clone(), desired.clone(), stop.clone());
        tasks.spawn("the cleanup of the server cache", always_ok(cleanup));

        let (guard, supervise_guard) = std::env::current_exe()
            .and_then(|program| ProcessGuard::start(program, vec!["guard".into()]))
            .map_err(|error| DaemonError(format!("cannot start the process guard: {error}")))?;
        let task_stop = stop.clone();
        tasks.spawn("the process guard", async move {
            task_stop.run_until_cancelled(supervise_guard).await;
            Ok(())
        });

        let (observation_sender, observations) = mpsc::unbounded_channel();
        let mut context = FleetContext::new(publisher, observation_sender, cache, Some(guard));
        context.metrics = context.metrics.with_spans(spans.clone());
        context.child_environment = self.child_environment.clone();
        let (authorizer, authorizer_handle) = self.authorizer(&info, &state, address, desired.clone());
        context.access_tokens = authorizer_handle.tokens();
        let auth_states = authorizer_handle.states();
        tasks.spawn("the authorizer", always_ok(authorizer.run(desired.clone(), stop.clone())));
        let (logs, subscriptions, fleet_metrics) =
            (context.logs.clone(), context.subscriptions.clone(), context.metrics.clone());
        let caller_connections = context.caller_connections.clone();
        let session_counts = caller_connections.counts();
        let identity = context.instance_id.clone();
        let fleet = Fleet::new(Arc::new(context));
        tasks.spawn("the fleet", always_ok(fleet.run(desired.clone(), stop.clone())));

        let (skills, skill_task) = track_skill_states(desired.clone(), catalog.clone(), stop.clone());
        tasks.spawn("the skills", always_ok(skill_task));
        let serving =
            serve(skills.clone(), skill_publisher, catalog.clone(), subscriptions.clone(), stop.clone());
        tasks.spawn("the skills over MCP", always_ok(serving));
        let sync_results = self.start_skill_sync(&info, &skills, tasks);

        let (mut reporter, store) = Reporter::new(info.id.clone(), started);
        reporter.resume_from(stored_statuses.clone());
        let (occurrences, audit_metrics) = (reporter.subscribe_occurrences(), AuditMetrics::default());
        let inputs = ReporterInputs {
            desired,
            observations,
            catalog: catalog.clone(),
            session_counts,
            auth_states,
            skill_states: skills,
            sync_results,
        };
        tasks.spawn("the reporter", always_ok(reporter.run(inputs, stop.clone())));
        if let Some(server) = &info.api_server {
            spawn_status_writer(server, store.clone(), stored_statuses, tasks);
        }

        let (audit_state, kind, counts) = (state.clone(), info.id.kind, audit_metrics.clone());
        // Ends after the reporter, when no more occurrences follow.
        tasks.spawn("the audit log", async move {
            write_audit_log(audit_state.path(), kind, occurrences, counts).await;
            Ok(())
        });

        let gateway_metrics = GatewayMetrics::default().with_spans(spans);
        let mut metrics = Registry::with_prefix("evenkeel");
        admin::register_status_metrics(&mut metrics, store.clone());
        gateway_metrics.register(&mut metrics);
        fleet_metrics.register(&mut metrics);
        source_metrics.register(&mut metrics);
        audit_metrics.register(&mut metrics);
        export.register(&mut metrics);
        let metrics = Arc::new(metrics);
        // Ends after the fleet and the endpoint, when no more spans follow.
        export.start(&metrics, tasks);

        let (gateway_catalog, listener) = (catalog.clone(), agents.clone());
        let replica_address = self.replica_address.map(|address| address.to_string());
        let authorization = Authorization::new(self.allowed.clone());
        let (agent_authorization, limits, task_stop) =
            (authorization.clone(), self.limits.clone(), stop.clone());
        tasks.spawn("the MCP endpoint", async move {
            // Agents that connect before the key is available wait in the listener's queue.
            if let Some(session_key) = task_stop.run_until_cancelled(session_key).await {
                let config = GatewayConfig {
                    authorization: agent_authorization,
                    session_key,
                    subscriptions,
                    caller_connections,
                    instance_id: identity,
                    replica_address,
                    namespaces,
                    limits,
                };
                Gateway::new(config, gateway_catalog, gateway_metrics, task_stop).serve(listener).await;
            }
            Ok(())
        });

        let local = LocalApi {
            store: store.clone(),
            desired: desired_objects,
            logs,
            catalog,
            authorizer: authorizer_handle.clone(),
            source_control: control,
            stop: stop.clone(),
        };
        let api_state = admin::ApiState {
            store,
            agents_not_ready,
            metrics,
            requests,
            logins: authorizer_handle.logins().clone(),
            edit_hint: info.edit_instruction,
            stop: stop.clone(),
        };
        let router = admin::local_api(api_state.clone())
            .merge(admin::local_routes(local.clone()))
            .merge(admin::login_routes(local))
            .merge(declared_routes);
        let task_stop = stop.clone();
        tasks.spawn("the socket for the commands", async move {
            let served = admin::serve_local(command_socket, router, task_stop).await;
            // Remove the socket before the lock is released: the next instance creates its own.
            socket::remove(state.path())?;
            served
        });
        let router = admin::status_api(api_state.clone(), authorization.with_token(token));
        tasks.spawn("the status API", admin::serve_tls_or_plain(status, certificate, router, stop.clone()));
        if let Some(probes) = probes {
            tasks.spawn("the probes", admin::serve(probes, admin::probe_api(api_state), stop));
        }
        Ok((lock, agents))
    }
}

impl Daemon {
    /// Creates the authorizer of servers. `admin` is the address to which authorization servers redirect browsers.
    fn authorizer(
        &self,
        info: &SourceInfo,
        state: &Arc<StateDir>,
        admin: SocketAddr,
        desired: watch::Receiver<Arc<Desired>>,
    ) -> (Authorizer, AuthorizerHandle) {
        let store = info.api_server.is_none().then(|| GrantStore::new(state.clone()));
        let mut redirect = admin;
        if admin.ip().is_unspecified() {
            redirect.set_ip(Ipv4Addr::LOCALHOST.into());
        }
        let client = LoginClient {
            redirect_uri: format!("http://{redirect}{CALLBACK_PATH}"),
            metadata_url: self.oauth_client_metadata.clone(),
        };
        let home_namespace = info.default_namespace.clone();
        Authorizer::new(AuthorizerContext { store, home_namespace, client }, desired)
    }

    /// Starts the tasks that write skills to the directories of agents.
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
        let sync_results = sync(options, skills, &tracker, &stop);
        tasks.spawn("the sync of skills", async move {
            stop.cancelled().await;
            tracker.close();
            tracker.wait().await;
            Ok(())
        });
        sync_results
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
