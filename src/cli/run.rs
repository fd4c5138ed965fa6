use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::builder::BoolishValueParser;
use tokio::runtime;

use super::cluster::ClusterArgs;
use super::daemon::Daemon;
use super::logging::{self, LogFormat};
use super::source::{DirectoryArgs, SourceArgs};
use super::telemetry::Telemetry;
use super::{Failure, dirs};
use crate::gateway::Allowed;
use crate::resource::Bounded;
use crate::source::{DEFAULT_VARIABLES, Policy};

/// `--poll`: 500ms to 1h.
type PollInterval = Bounded<500, 3_600_000>;

/// The arguments of `evenkeel run`.
#[derive(Debug, clap::Args)]
#[expect(clippy::doc_markdown, reason = "printed as it is by --help")]
pub(super) struct Args {
    /// The directory of declarations [default: $XDG_CONFIG_HOME/evenkeel]
    #[arg(env = "EVENKEEL_DIR")]
    dir: Option<PathBuf>,
    /// Reconcile the objects of the API server that KUBECONFIG names, or that this runs in, and no directory
    #[arg(
        long,
        env = "EVENKEEL_KUBERNETES",
        value_parser = BoolishValueParser::new(),
        conflicts_with_all = ["dir", "secrets_dir", "prune_empty", "poll"],
    )]
    kubernetes: bool,
    /// Only of this namespace, and not of all; may be given more than once
    #[arg(short, long, env = "EVENKEEL_NAMESPACE", value_name = "NAMESPACE", value_delimiter = ',')]
    namespace: Vec<String>,
    /// The Secret with the key of session ids (32 bytes or more), so that every replica takes up every session
    #[arg(long, env = "EVENKEEL_SESSION_KEY_SECRET", value_name = "NAME[/KEY]", requires = "kubernetes")]
    session_key_secret: Option<String>,
    /// The Lease of the replica that writes statuses and events
    #[arg(long, env = "EVENKEEL_LEASE", value_name = "NAME", default_value = "evenkeel")]
    lease: String,
    /// Where the Lease and the session key are [default: $POD_NAMESPACE, else where this runs]
    #[arg(long, env = "EVENKEEL_LEASE_NAMESPACE", value_name = "NAMESPACE", requires = "kubernetes")]
    lease_namespace: Option<String>,
    /// Let stdio servers with this command run, such as 'npx -y @modelcontextprotocol/*': argument by argument,
    /// where * stops at a slash; may be given more than once [default: none with --kubernetes, else all]
    #[arg(long, env = "EVENKEEL_ALLOW_STDIO", value_name = "COMMAND", value_delimiter = '\n')]
    allow_stdio: Vec<String>,
    /// The variables that such a command may be given; may be given more than once
    #[arg(
        long,
        env = "EVENKEEL_ALLOW_STDIO_ENV",
        value_name = "NAME",
        value_delimiter = ',',
        default_values_t = DEFAULT_VARIABLES.map(String::from),
    )]
    allow_stdio_env: Vec<String>,
    /// Where agents connect, at /mcp
    #[arg(long, env = "EVENKEEL_LISTEN", value_name = "ADDRESS", default_value = "127.0.0.1:7717")]
    listen: SocketAddr,
    /// Where the status API, health and metrics are
    #[arg(long, env = "EVENKEEL_ADMIN", value_name = "ADDRESS", default_value = "127.0.0.1:7718")]
    admin: SocketAddr,
    /// Serve health and metrics, and nothing else, on this address too
    #[arg(long, env = "EVENKEEL_PROBES", value_name = "ADDRESS")]
    probes: Option<SocketAddr>,
    /// Where secretKeyRef is looked up: DIR/<name>/<key> [default: $XDG_CONFIG_HOME/evenkeel-secrets]
    #[arg(long, env = "EVENKEEL_SECRETS_DIR", value_name = "DIR")]
    secrets_dir: Option<PathBuf>,
    /// Answer to this host name too; may be given more than once
    #[arg(long, env = "EVENKEEL_ALLOWED_HOST", value_name = "HOST", value_delimiter = ',')]
    allowed_host: Vec<String>,
    /// Answer web pages of this origin; may be given more than once
    #[arg(long, env = "EVENKEEL_ALLOWED_ORIGIN", value_name = "ORIGIN", value_delimiter = ',')]
    allowed_origin: Vec<String>,
    /// Listen on addresses that other machines reach, though nobody has to say who they are
    #[arg(long, env = "EVENKEEL_INSECURE", value_parser = BoolishValueParser::new())]
    insecure: bool,
    /// Take the servers away when the last declaration is gone, and not for a mistake
    #[arg(long, env = "EVENKEEL_PRUNE_EMPTY", value_parser = BoolishValueParser::new())]
    prune_empty: bool,
    /// Look at intervals instead of waiting for file events, such as 5s: for file systems without them
    #[arg(long, env = "EVENKEEL_POLL", value_name = "INTERVAL", value_parser = PollInterval::parse)]
    poll: Option<PollInterval>,
    /// Send spans and metrics to the OpenTelemetry collector at this URL, as OTLP over HTTP, such as
    /// http://localhost:4318
    #[arg(long, env = "EVENKEEL_OTLP_ENDPOINT", value_name = "URL", hide = cfg!(not(feature = "otlp")))]
    otlp_endpoint: Option<String>,
    /// How log lines are written
    #[arg(long, env = "EVENKEEL_LOG_FORMAT", value_name = "FORMAT", value_enum, default_value = "text")]
    log_format: LogFormat,
    /// What is logged: error, warn, info, debug or trace, or a filter such as info,evenkeel::fleet=debug
    #[arg(long, env = "EVENKEEL_LOG", value_name = "FILTER", default_value = "info,rmcp=warn,kube=off")]
    log: String,
}

impl Args {
    /// Everyone who reaches an address may use it, so it must be this machine's alone unless that is meant.
    fn check(&self) -> Result<(), Failure> {
        for (flag, address) in [("--listen", self.listen), ("--admin", self.admin)] {
            if !address.ip().is_loopback() && !self.insecure {
                return Err(Failure::Usage(format!(
                    "{flag} {address} can be reached from other machines, and nobody would have to say who \
                     they are; listen on 127.0.0.1, or say --insecure if that is meant"
                )));
            }
        }
        Ok(())
    }

    fn daemon(&self) -> Result<Daemon, Failure> {
        Ok(Daemon {
            source: self.source()?,
            state_home: if self.kubernetes { dirs::state_home_of_a_pod() } else { dirs::state_home() }?,
            listen: self.listen,
            admin: self.admin,
            probes: self.probes,
            telemetry: Telemetry::new(self.otlp_endpoint.as_deref())?,
            allowed: Allowed { hosts: self.allowed_host.clone(), origins: self.allowed_origin.clone() },
        })
    }

    fn source(&self) -> Result<SourceArgs, Failure> {
        let policy = if self.allow_stdio.is_empty() && !self.kubernetes {
            Policy::everything()
        } else {
            Policy::only(&self.allow_stdio, &self.allow_stdio_env)
                .map_err(|error| Failure::Usage(format!("--allow-stdio: {error}")))?
        };
        if self.kubernetes {
            let session_key = self.session_key_secret.as_ref().map(|given| {
                let (name, key) = given.split_once('/').unwrap_or((given, "key"));
                (name.to_owned(), key.to_owned())
            });
            return Ok(SourceArgs::Cluster(ClusterArgs {
                namespaces: self.namespace.clone(),
                session_key,
                lease: self.lease.clone(),
                own_namespace: self.lease_namespace.clone().or_else(|| std::env::var("POD_NAMESPACE").ok()),
                policy,
            }));
        }
        if !self.namespace.is_empty() {
            return Err(Failure::Usage("--namespace is of use only with --kubernetes".into()));
        }
        Ok(SourceArgs::Directory(DirectoryArgs {
            root: dirs::declarations(self.dir.clone())?,
            secrets: dirs::secrets(self.secrets_dir.clone())?,
            environment: dirs::environment(),
            prune_empty: self.prune_empty,
            poll: self.poll.map(PollInterval::get),
            policy,
        }))
    }
}

/// How long parts that did not end may take to notice that the process does.
const LAST_MOMENT: Duration = Duration::from_millis(500);

/// Runs until a signal ends it.
pub(super) fn run(args: &Args) -> Result<(), Failure> {
    args.check()?;
    logging::init(args.log_format, &args.log)?;
    super::limits::raise_open_files();
    let daemon = args.daemon()?;
    let runtime = runtime::Builder::new_multi_thread().enable_all().build().map_err(Failure::failed)?;
    let outcome = runtime.block_on(daemon.run());
    runtime.shutdown_timeout(LAST_MOMENT);
    outcome
}
