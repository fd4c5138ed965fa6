use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::builder::BoolishValueParser;
use clap::parser::ValueSource;
use tokio::runtime;

use super::dirs;
use super::error::CommandError;
use super::logging::{self, LogFormat};
use super::namespace::parse_namespace;
use crate::daemon::{Daemon, Telemetry, raise_open_file_limit};
use crate::net::AllowedHosts;
use crate::resource::{BoundedDuration, is_object_name, is_secret_key};
use crate::source::{DEFAULT_ALLOWED_VARIABLES, SourceArgs, StdioPolicy, directory, kubernetes};

/// `--poll`: 500ms to 1h.
type PollInterval = BoundedDuration<500, 3_600_000>;

/// The arguments of `evenkeel run`.
#[derive(Debug, clap::Args)]
#[expect(clippy::doc_markdown, reason = "printed as it is by --help")]
pub(super) struct Args {
    /// The directory of declarations [default: $XDG_CONFIG_HOME/evenkeel]
    #[arg(env = "EVENKEEL_DIR")]
    dir: Option<PathBuf>,
    /// Reconcile the objects of the API server that KUBECONFIG names, or that this runs in, and no directory
    #[arg(long, env = "EVENKEEL_KUBERNETES", value_parser = BoolishValueParser::new())]
    kubernetes: bool,
    /// Only of this namespace, and not of all; may be given more than once
    #[arg(short, long, env = "EVENKEEL_NAMESPACE", value_name = "NAMESPACE", value_delimiter = ',', value_parser = parse_namespace)]
    namespace: Vec<String>,
    /// The Secret with the key of session ids (32 bytes or more), so that every replica takes up every session
    #[arg(long, env = "EVENKEEL_SESSION_KEY_SECRET", value_name = "NAME[/KEY]", value_parser = parse_secret_key)]
    session_key_secret: Option<(String, String)>,
    /// The Lease of the replica that writes statuses and events
    #[arg(long, env = "EVENKEEL_LEASE", value_name = "NAME", default_value = "evenkeel", value_parser = parse_object_name)]
    lease: String,
    /// Where the Lease and the session key are [default: $POD_NAMESPACE, else where this runs]
    #[arg(long, env = "EVENKEEL_LEASE_NAMESPACE", value_name = "NAMESPACE", value_parser = parse_namespace)]
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
        default_values_t = DEFAULT_ALLOWED_VARIABLES.map(String::from),
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
    /// Write the skills to this directory, where agents look, such as ~/.claude/skills; may be given more than once
    #[arg(long, env = "EVENKEEL_SYNC_SKILLS", value_name = "DIR", value_delimiter = ',')]
    sync_skills: Vec<PathBuf>,
    /// How log lines are written
    #[arg(long, env = "EVENKEEL_LOG_FORMAT", value_name = "FORMAT", value_enum, default_value = "text")]
    log_format: LogFormat,
    /// What is logged: error, warn, info, debug or trace, or a filter such as info,evenkeel::fleet=debug
    #[arg(long, env = "EVENKEEL_LOG", value_name = "FILTER", default_value = "info,rmcp=warn,kube=off")]
    log: String,
}

/// The arguments that say something of a directory, and those of a cluster, with the names of their flags.
const DIRECTORY_ONLY_ARGS: [(&str, &str); 4] =
    [("dir", "DIR"), ("secrets_dir", "--secrets-dir"), ("prune_empty", "--prune-empty"), ("poll", "--poll")];
const CLUSTER_ONLY_ARGS: [(&str, &str); 4] = [
    ("namespace", "--namespace"),
    ("session_key_secret", "--session-key-secret"),
    ("lease", "--lease"),
    ("lease_namespace", "--lease-namespace"),
];

/// Whether a cluster is meant. What stands on the command line wins over what the environment says; there, as of
/// two things in the environment that say different things, it must be clear what is meant.
fn selects_cluster(
    kubernetes: bool,
    source: impl Fn(&str) -> Option<ValueSource>,
) -> Result<bool, CommandError> {
    let given = |argument: &str| source(argument) == Some(ValueSource::CommandLine);
    let set = |argument: &str| source(argument) == Some(ValueSource::EnvVariable);
    let cluster = kubernetes && (given("kubernetes") || !given("dir"));
    if cluster && set("kubernetes") && set("dir") {
        return Err(CommandError::Usage(
            "EVENKEEL_DIR and EVENKEEL_KUBERNETES are both set, and only one can be meant; unset the other"
                .into(),
        ));
    }
    let (strange, of) =
        if cluster { (DIRECTORY_ONLY_ARGS, "a directory") } else { (CLUSTER_ONLY_ARGS, "--kubernetes") };
    match strange.iter().find(|(argument, _)| given(argument)) {
        Some((_, flag)) if cluster => {
            Err(CommandError::Usage(format!("{flag} is for {of}, and cannot be combined with --kubernetes")))
        }
        Some((_, flag)) => Err(CommandError::Usage(format!("{flag} is of use only with {of}"))),
        None => Ok(cluster),
    }
}

fn parse_object_name(text: &str) -> Result<String, String> {
    if is_object_name(text) {
        return Ok(text.to_owned());
    }
    Err(format!("{text:?} is no name of an object: at most 253 lower-case letters, digits, - and ."))
}

/// The name of a Secret and a key in it, which is `key` unless it is said.
fn parse_secret_key(text: &str) -> Result<(String, String), String> {
    let (name, key) = text.split_once('/').unwrap_or((text, "key"));
    if !is_secret_key(key) {
        return Err(format!("{key:?} is no key of a Secret: letters, digits, -, _ and ."));
    }
    Ok((parse_object_name(name)?, key.to_owned()))
}

impl Args {
    /// Everyone who reaches an address may use it, so it must be this machine's alone unless that is meant.
    fn check_addresses(&self) -> Result<(), CommandError> {
        for (flag, address) in [("--listen", self.listen), ("--admin", self.admin)] {
            if !address.ip().is_loopback() && !self.insecure {
                return Err(CommandError::Usage(format!(
                    "{flag} {address} can be reached from other machines, and nobody would have to say who \
                     they are; listen on 127.0.0.1, or say --insecure if that is meant"
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
            sync_skills: self.sync_skills_dirs()?,
            allowed: AllowedHosts { hosts: self.allowed_host.clone(), origins: self.allowed_origin.clone() },
        })
    }

    /// The directories for skills, absolute. One among the declarations would declare what is written there.
    fn sync_skills_dirs(&self) -> Result<Vec<PathBuf>, CommandError> {
        let root = if self.kubernetes { None } else { Some(dirs::declarations_dir(self.dir.clone())?) };
        let mut all: Vec<PathBuf> = Vec::new();
        for given in &self.sync_skills {
            let path = dirs::normalize(given)?;
            let below = root.as_ref().and_then(|root| path.strip_prefix(root).ok());
            let hidden = |path: &Path| path.iter().any(|part| part.as_encoded_bytes().first() == Some(&b'.'));
            if below.is_some_and(|below| !hidden(below)) {
                return Err(CommandError::Usage(format!(
                    "--sync-skills {} is in the directory of declarations, where what is written would be declared; \
                     name another directory",
                    path.display()
                )));
            }
            if !all.contains(&path) {
                all.push(path);
            }
        }
        Ok(all)
    }

    /// Where the Lease and the session key are, if that was said.
    fn resolve_lease_namespace(&self) -> Result<Option<String>, CommandError> {
        let pod = || std::env::var("POD_NAMESPACE").ok();
        let Some(given) = self.lease_namespace.clone().or_else(pod) else { return Ok(None) };
        parse_namespace(&given).map(Some).map_err(|why| CommandError::Usage(format!("POD_NAMESPACE: {why}")))
    }

    fn source_args(&self) -> Result<SourceArgs, CommandError> {
        let policy = if self.allow_stdio.is_empty() && !self.kubernetes {
            StdioPolicy::allow_all()
        } else {
            StdioPolicy::allow_only(&self.allow_stdio, &self.allow_stdio_env)
                .map_err(|error| CommandError::Usage(format!("--allow-stdio: {error}")))?
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

/// How long parts that did not end may take to notice that the process does.
const RUNTIME_SHUTDOWN_TIMEOUT: Duration = Duration::from_millis(500);

/// Runs until a signal ends it. `source` says where an argument comes from.
pub(super) fn run(mut args: Args, source: impl Fn(&str) -> Option<ValueSource>) -> Result<(), CommandError> {
    args.kubernetes = selects_cluster(args.kubernetes, source)?;
    args.check_addresses()?;
    logging::init(args.log_format, &args.log)?;
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
        for (given, set, expected) in [
            ("kubernetes", "dir poll", Ok(true)),
            ("dir", "kubernetes", Ok(false)),
            ("dir poll", "kubernetes namespace", Ok(false)),
            ("", "kubernetes poll", Ok(true)),
            ("namespace", "kubernetes", Ok(true)),
            ("", "namespace lease", Ok(false)),
            ("kubernetes dir", "", Err("DIR is for a directory, and cannot be combined with --kubernetes")),
            (
                "kubernetes poll",
                "",
                Err("--poll is for a directory, and cannot be combined with --kubernetes"),
            ),
            ("lease", "dir", Err("--lease is of use only with --kubernetes")),
            ("namespace dir", "kubernetes", Err("--namespace is of use only with --kubernetes")),
            (
                "",
                "dir kubernetes",
                Err(
                    "EVENKEEL_DIR and EVENKEEL_KUBERNETES are both set, and only one can be meant; unset the other",
                ),
            ),
        ] {
            let has = |words: &str, word: &str| words.split(' ').any(|found| found == word);
            let source = |argument: &str| {
                let line = has(given, argument).then_some(ValueSource::CommandLine);
                line.or(has(set, argument).then_some(ValueSource::EnvVariable))
            };
            let kubernetes = source("kubernetes").is_some();
            let found = selects_cluster(kubernetes, source).map_err(|failure| failure.to_string());
            assert_eq!(found, expected.map_err(ToOwned::to_owned), "given {given:?}, set {set:?}");
        }
    }
}
