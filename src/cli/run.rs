use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::builder::BoolishValueParser;
use clap::parser::ValueSource;
use tokio::runtime;

use super::dirs;
use super::error::CommandError;
use super::limits::LimitArgs;
use super::logging::{self, LogFormat};
use super::namespace::parse_namespace;
use crate::daemon::{Daemon, Telemetry, raise_open_file_limit};
use crate::net::AllowedHosts;
use crate::resource::{BoundedDuration, InheritedVariables, is_object_name, is_secret_key};
use crate::source::{DEFAULT_ALLOWED_VARIABLES, SourceArgs, StdioPolicy, directory, kubernetes};
use crate::wire::ChildEnvironment;

/// `--poll`: 500ms to 1h.
type PollInterval = BoundedDuration<500, 3_600_000>;

/// The arguments of `evenkeel run`.
#[derive(Debug, clap::Args)]
#[expect(clippy::doc_markdown, reason = "printed verbatim by --help")]
pub(super) struct Args {
    /// Directory of declarations [default: $XDG_CONFIG_HOME/evenkeel]
    #[arg(env = "EVENKEEL_DIR")]
    dir: Option<PathBuf>,
    /// Reconcile the objects of a cluster instead of a directory: the one of KUBECONFIG, or the one this runs in
    #[arg(long, env = "EVENKEEL_KUBERNETES", value_parser = BoolishValueParser::new())]
    kubernetes: bool,
    /// Reconcile only the objects of this namespace instead of all; may be given more than once
    #[arg(
        short,
        long,
        env = "EVENKEEL_NAMESPACE",
        value_name = "NAMESPACE",
        value_delimiter = ',',
        value_parser = parse_namespace,
    )]
    namespace: Vec<String>,
    /// Secret with the session key (32 bytes or more), so that every replica accepts every session
    #[arg(long, env = "EVENKEEL_SESSION_KEY_SECRET", value_name = "NAME[/KEY]", value_parser = parse_secret_key)]
    session_key_secret: Option<(String, String)>,
    /// Name of the Lease that elects the replica that writes statuses and events
    #[arg(
        long,
        env = "EVENKEEL_LEASE",
        value_name = "NAME",
        default_value = "evenkeel",
        value_parser = parse_object_name,
    )]
    lease: String,
    /// Namespace of the Lease and the session key [default: $POD_NAMESPACE, else the one this runs in]
    #[arg(long, env = "EVENKEEL_LEASE_NAMESPACE", value_name = "NAMESPACE", value_parser = parse_namespace)]
    lease_namespace: Option<String>,
    /// IP address of this Pod, at which the other replicas reach it: they pass on what agents send to the wrong replica
    #[arg(long, env = "EVENKEEL_POD_IP", value_name = "IP")]
    pod_ip: Option<IpAddr>,
    /// Allow stdio servers with this command, such as 'npx -y @modelcontextprotocol/*'; compared argument by
    /// argument, * matches anything but a slash; may be given more than once [default: none with --kubernetes, else
    /// all]
    #[arg(long, env = "EVENKEEL_ALLOW_STDIO", value_name = "COMMAND", value_delimiter = '\n')]
    allow_stdio: Vec<String>,
    /// Environment variable that such a command may receive; may be given more than once
    #[arg(
        long,
        env = "EVENKEEL_ALLOW_STDIO_ENV",
        value_name = "NAME",
        value_delimiter = ',',
        default_values_t = DEFAULT_ALLOWED_VARIABLES.map(String::from),
    )]
    allow_stdio_env: Vec<String>,
    /// Pass environment variables that match this glob, such as 'AWS_*', to the processes of all servers; may be given
    /// more than once
    #[arg(long, env = "EVENKEEL_PASS_ENV", value_name = "GLOB", value_delimiter = ',')]
    pass_env: Vec<String>,
    /// Address of the MCP endpoint for agents, at /mcp
    #[arg(long, env = "EVENKEEL_LISTEN", value_name = "ADDRESS", default_value = "127.0.0.1:7717")]
    listen: SocketAddr,
    /// Address of the status API, health and metrics
    #[arg(long, env = "EVENKEEL_ADMIN", value_name = "ADDRESS", default_value = "127.0.0.1:7718")]
    admin: SocketAddr,
    /// Additional address that serves health and metrics only
    #[arg(long, env = "EVENKEEL_PROBES", value_name = "ADDRESS")]
    probes: Option<SocketAddr>,
    /// Directory of the secrets for secretKeyRef, as DIR/NAME/KEY [default: $XDG_CONFIG_HOME/evenkeel-secrets]
    #[arg(long, env = "EVENKEEL_SECRETS_DIR", value_name = "DIR")]
    secrets_dir: Option<PathBuf>,
    /// Accept requests with this host name too; may be given more than once
    #[arg(long, env = "EVENKEEL_ALLOWED_HOST", value_name = "HOST", value_delimiter = ',')]
    allowed_host: Vec<String>,
    /// Accept requests from web pages of this origin, such as https://app.example.com, and let them read the responses
    /// (CORS); may be given more than once
    #[arg(long, env = "EVENKEEL_ALLOWED_ORIGIN", value_name = "ORIGIN", value_delimiter = ',')]
    allowed_origin: Vec<String>,
    #[command(flatten)]
    limits: LimitArgs,
    /// HTTPS URL of a client ID metadata document, by which authorization servers of MCP servers know evenkeel
    #[arg(long, env = "EVENKEEL_OAUTH_CLIENT_METADATA", value_name = "URL")]
    oauth_client_metadata: Option<String>,
    /// Allow listening on addresses that other machines can reach, although clients are not authenticated
    #[arg(long, env = "EVENKEEL_INSECURE", value_parser = BoolishValueParser::new())]
    insecure: bool,
    /// Remove all servers when the last declaration is removed, instead of treating that as a mistake
    #[arg(long, env = "EVENKEEL_PRUNE_EMPTY", value_parser = BoolishValueParser::new())]
    prune_empty: bool,
    /// Scan the directory at this interval, such as 5s, instead of on file events; for file systems without them
    #[arg(long, env = "EVENKEEL_POLL", value_name = "INTERVAL", value_parser = PollInterval::parse)]
    poll: Option<PollInterval>,
    /// Send spans and metrics to the OpenTelemetry collector at this URL with OTLP over HTTP, such as
    /// http://localhost:4318
    #[arg(long, env = "EVENKEEL_OTLP_ENDPOINT", value_name = "URL", hide = cfg!(not(feature = "otlp")))]
    otlp_endpoint: Option<String>,
    /// Write the skills to this skills directory of an agent, such as ~/.claude/skills; may be given more than once
    #[arg(long, env = "EVENKEEL_SYNC_SKILLS", value_name = "DIR", value_delimiter = ',')]
    sync_skills: Vec<PathBuf>,
    /// Format of log lines
    #[arg(long, env = "EVENKEEL_LOG_FORMAT", value_name = "FORMAT", value_enum, default_value = "text")]
    log_format: LogFormat,
    /// Log filter: error, warn, info, debug, trace, or a list such as info,evenkeel::fleet=debug
    #[arg(long, env = "EVENKEEL_LOG", value_name = "FILTER", default_value = "info,rmcp=warn,kube=off")]
    log: String,
}

/// The arguments that apply only to a directory, with the names of their flags.
const DIRECTORY_ONLY_ARGS: &[(&str, &str)] =
    &[("dir", "DIR"), ("secrets_dir", "--secrets-dir"), ("prune_empty", "--prune-empty"), ("poll", "--poll")];
/// The arguments that apply only to a cluster, with the names of their flags.
const CLUSTER_ONLY_ARGS: &[(&str, &str)] = &[
    ("namespace", "--namespace"),
    ("session_key_secret", "--session-key-secret"),
    ("lease", "--lease"),
    ("lease_namespace", "--lease-namespace"),
    ("pod_ip", "--pod-ip"),
];

/// True if a cluster is selected and not a directory. The command line overrides the environment.
///
/// # Errors
///
/// Returns a usage error if the environment selects both, or if an argument on the command line does not apply to the
/// selection.
fn selects_cluster(
    kubernetes: bool,
    source: impl Fn(&str) -> Option<ValueSource>,
) -> Result<bool, CommandError> {
    let on_command_line = |argument: &str| source(argument) == Some(ValueSource::CommandLine);
    let in_environment = |argument: &str| source(argument) == Some(ValueSource::EnvVariable);
    let cluster = kubernetes && (on_command_line("kubernetes") || !on_command_line("dir"));
    if cluster && in_environment("kubernetes") && in_environment("dir") {
        return Err(CommandError::Usage(
            "EVENKEEL_DIR and EVENKEEL_KUBERNETES are both set; unset one of them".into(),
        ));
    }
    let (inapplicable, scope) =
        if cluster { (DIRECTORY_ONLY_ARGS, "a directory") } else { (CLUSTER_ONLY_ARGS, "--kubernetes") };
    match inapplicable.iter().find(|(argument, _)| on_command_line(argument)) {
        Some((_, flag)) if cluster => Err(CommandError::Usage(format!(
            "{flag} applies to {scope} and cannot be combined with --kubernetes"
        ))),
        Some((_, flag)) => Err(CommandError::Usage(format!("{flag} requires {scope}"))),
        None => Ok(cluster),
    }
}

fn parse_object_name(text: &str) -> Result<String, String> {
    if is_object_name(text) {
        return Ok(text.to_owned());
    }
    Err(format!("invalid object name {text:?}: expected at most 253 lower-case letters, digits, - and ."))
}

/// Parses the name of a Secret and a key in it, which defaults to `key`.
fn parse_secret_key(text: &str) -> Result<(String, String), String> {
    let (name, key) = text.split_once('/').unwrap_or((text, "key"));
    if !is_secret_key(key) {
        return Err(format!("invalid Secret key {key:?}: expected letters, digits, -, _ and ."));
    }
    Ok((parse_object_name(name)?, key.to_owned()))
}

impl Args {
    /// Checks that addresses are loopback addresses unless `--insecure` is given: every client that reaches one may
    /// use it.
    fn check_addresses(&self) -> Result<(), CommandError> {
        for (flag, address) in [("--listen", self.listen), ("--admin", self.admin)] {
            if !address.ip().is_loopback() && !self.insecure {
                return Err(CommandError::Usage(format!(
                    "{flag} {address} can be reached from other machines, and clients are not authenticated; listen on \
                     127.0.0.1, or pass --insecure if that is intended"
                )));
            }
        }
        Ok(())
    }

    fn build_daemon(&self) -> Result<Daemon, CommandError> {
        Ok(Daemon {
            source: self.source_args()?,
            state_home: if self.kubernetes { dirs::clusters_state_home() } else { dirs::state_home() }?,
            listen: self.listen,
            admin: self.admin,
            probes: self.probes,
            telemetry: Telemetry::new(self.otlp_endpoint.as_deref()).map_err(CommandError::Usage)?,
            child_environment: self.child_environment()?,
            sync_skills: self.sync_skills_dirs()?,
            limits: self.limits.limits(),
            oauth_client_metadata: self.oauth_client_metadata.clone(),
            allowed: AllowedHosts { hosts: self.allowed_host.clone(), origins: self.allowed_origin.clone() },
            replica_address: self.pod_ip.map(|ip| SocketAddr::new(ip, self.listen.port())),
        })
    }

    /// Returns the directories for skills as absolute paths.
    ///
    /// # Errors
    ///
    /// Returns a usage error if one is inside the directory of declarations: the written skills would be declared.
    fn sync_skills_dirs(&self) -> Result<Vec<PathBuf>, CommandError> {
        let root = if self.kubernetes { None } else { Some(dirs::declarations_dir(self.dir.clone())?) };
        let mut all: Vec<PathBuf> = Vec::new();
        for given in &self.sync_skills {
            let path = dirs::normalize(given)?;
            let below = root.as_ref().and_then(|root| path.strip_prefix(root).ok());
            let hidden = |path: &Path| path.iter().any(|part| part.as_encoded_bytes().first() == Some(&b'.'));
            if below.is_some_and(|below| !hidden(below)) {
                return Err(CommandError::Usage(format!(
                    "--sync-skills {} is inside the directory of declarations, where the written skills would be \
                     declared; choose another directory",
                    path.display()
                )));
            }
            if !all.contains(&path) {
                all.push(path);
            }
        }
        Ok(all)
    }

    /// Returns the namespace of the Lease and the session key, if it is configured.
    fn resolve_lease_namespace(&self) -> Result<Option<String>, CommandError> {
        let pod = || std::env::var("POD_NAMESPACE").ok();
        let Some(given) = self.lease_namespace.clone().or_else(pod) else { return Ok(None) };
        parse_namespace(&given)
            .map(Some)
            .map_err(|error| CommandError::Usage(format!("POD_NAMESPACE: {error}")))
    }

    /// Returns the variables of evenkeel's environment that the processes of servers inherit.
    fn child_environment(&self) -> Result<ChildEnvironment, CommandError> {
        let rules = InheritedVariables::new(self.restricts_stdio(), &self.pass_env)
            .map_err(|error| CommandError::Usage(format!("--pass-env: {error}")))?;
        Ok(ChildEnvironment::select(std::env::vars_os(), &rules))
    }

    /// Returns true if only some commands may run.
    fn restricts_stdio(&self) -> bool {
        self.kubernetes || !self.allow_stdio.is_empty()
    }

    fn source_args(&self) -> Result<SourceArgs, CommandError> {
        let policy = if self.restricts_stdio() {
            StdioPolicy::allow_only(&self.allow_stdio, &self.allow_stdio_env)
                .map_err(|error| CommandError::Usage(format!("--allow-stdio: {error}")))?
        } else {
            StdioPolicy::allow_all()
        };
        if self.kubernetes {
            return Ok(SourceArgs::Kubernetes(kubernetes::Args {
                namespaces: self.namespace.clone(),
                session_key: self.session_key_secret.clone(),
                lease: self.lease.clone(),
                own_namespace: self.resolve_lease_namespace()?,
                policy,
            }));
        }
        Ok(SourceArgs::Directory(directory::Args {
            root: dirs::declarations_dir(self.dir.clone())?,
            secrets_dir: dirs::secrets_dir(self.secrets_dir.clone())?,
            environment: dirs::environment(),
            prune_empty: self.prune_empty,
            poll_interval: self.poll.map(PollInterval::get),
            policy,
        }))
    }
}

/// The time for tasks that are still running to stop when the process exits.
const RUNTIME_SHUTDOWN_TIMEOUT: Duration = Duration::from_millis(500);

/// Runs evenkeel until a signal stops it. `source` returns the origin of an argument's value.
pub(super) fn run(mut args: Args, source: impl Fn(&str) -> Option<ValueSource>) -> Result<(), CommandError> {
    args.kubernetes = selects_cluster(args.kubernetes, source)?;
    args.check_addresses()?;
    let _flush = logging::init(args.log_format, &args.log)?;
    raise_open_file_limit();
    let daemon = args.build_daemon()?;
    let runtime = runtime::Builder::new_multi_thread().enable_all().build().map_err(CommandError::failed)?;
    let outcome = runtime.block_on(daemon.run());
    runtime.shutdown_timeout(RUNTIME_SHUTDOWN_TIMEOUT);
    Ok(outcome?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn command_line_overrides_environment() {
        for (on_command_line, in_environment, expected) in [
            ("kubernetes", "dir poll", Ok(true)),
            ("dir", "kubernetes", Ok(false)),
            ("dir poll", "kubernetes namespace", Ok(false)),
            ("", "kubernetes poll", Ok(true)),
            ("namespace", "kubernetes", Ok(true)),
            ("", "namespace lease", Ok(false)),
            (
                "kubernetes dir",
                "",
                Err("DIR applies to a directory and cannot be combined with --kubernetes"),
            ),
            (
                "kubernetes poll",
                "",
                Err("--poll applies to a directory and cannot be combined with --kubernetes"),
            ),
            ("lease", "dir", Err("--lease requires --kubernetes")),
            ("namespace dir", "kubernetes", Err("--namespace requires --kubernetes")),
            (
                "",
                "dir kubernetes",
                Err("EVENKEEL_DIR and EVENKEEL_KUBERNETES are both set; unset one of them"),
            ),
        ] {
            let has = |arguments: &str, argument: &str| arguments.split(' ').any(|found| found == argument);
            let source = |argument: &str| {
                let line = has(on_command_line, argument).then_some(ValueSource::CommandLine);
                line.or(has(in_environment, argument).then_some(ValueSource::EnvVariable))
            };
            let kubernetes = source("kubernetes").is_some();
            let found = selects_cluster(kubernetes, source).map_err(|error| error.to_string());
            assert_eq!(
                found,
                expected.map_err(ToOwned::to_owned),
                "command line {on_command_line:?}, environment {in_environment:?}"
            );
        }
    }
}
