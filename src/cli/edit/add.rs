use std::io;
use std::path::Path;
use std::time::Duration;

use serde_json::Value as Json;
use tokio::time::{Instant, timeout_at};

use super::super::client::StatusClient;
use super::super::error::CommandError;
use super::super::instance::NamespacedInstanceArgs;
use super::super::output::{self, ProgressLine};
use super::super::query::{ListQuery, WatchCache, condition, is_current, items, text_at, value_at};
use super::super::runtime::block_on;
use super::file;
use super::manifest::{ManifestReference, ManifestTransport, ManifestValue, NamedValue, ServerManifest};
use super::removal_held::holds_removal;
use super::wait_timeout::WaitTimeout;
use crate::report::ObjectKind;
use crate::resource::Reason;
use crate::source::directory::{self, ObjectLocation};

/// The arguments of `evenkeel mcp add`.
#[derive(Debug, clap::Args)]
pub(in crate::cli) struct Args {
    #[command(flatten)]
    target: NamespacedInstanceArgs,
    /// Name of the server; the declaration is written to NAME.yaml
    #[arg(value_name = "NAME")]
    name: String,
    /// URL of the server, if it is reached over HTTP
    #[arg(value_name = "URL", conflicts_with = "command", required_unless_present = "command")]
    url: Option<String>,
    /// Command that starts the server, if it is a stdio server
    #[arg(value_name = "COMMAND", last = true)]
    command: Vec<String>,
    /// Environment variable for the command: NAME=VALUE, or NAME to take the value from evenkeel's environment
    #[arg(short, long, value_name = "NAME[=VALUE]")]
    env: Vec<String>,
    /// Header to send with every request, such as 'Accept-Language: en'
    #[arg(long, value_name = "NAME: VALUE")]
    header: Vec<String>,
    /// Variable or header whose value comes from a secret: NAME=SECRET/KEY
    #[arg(long, value_name = "NAME=SECRET/KEY")]
    secret: Vec<String>,
    /// Write the file and do not wait until the server is attached
    #[arg(long)]
    no_wait: bool,
    #[command(flatten)]
    wait: WaitTimeout,
}

/// Declares a server in a file of its own.
pub(super) fn add(args: &Args) -> Result<(), CommandError> {
    let directory = args.target.instance.declarations_dir()?;
    let namespace = Some(&*args.target.namespace).filter(|namespace| *namespace != "default");
    let path = directory.join(format!("{}.yaml", args.name));
    let text = ServerManifest::new(&args.name, namespace, args.transport()?)
        .to_yaml(Path::new(path.file_name().unwrap_or_default()))?;
    let locations = match directory::find_objects(&directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
        found => found.map_err(|error| path_error(&directory, &error))?,
    };
    if locations.is_empty() {
        block_on(args.ensure_removal_not_held(&directory))?;
    }
    args.ensure_not_declared(&directory, &locations)?;
    std::fs::create_dir_all(&directory).map_err(|error| path_error(&directory, &error))?;
    file::create(&path, &text).map_err(|error| match error.kind() {
        io::ErrorKind::AlreadyExists => CommandError::Failed(format!(
            "{} already exists; choose another name, or edit the file",
            path.display()
        )),
        _ => path_error(&path, &error),
    })?;
    output::print(&format!("wrote {}\n", path.display())).map_err(CommandError::failed)?;
    if args.no_wait {
        return Ok(());
    }
    block_on(args.wait_until_attached(&path))
}

impl Args {
    fn transport(&self) -> Result<ManifestTransport, CommandError> {
        let secrets = self.secret.iter().map(|text| parse_secret(text));
        match (&self.url, &*self.command) {
            (Some(url), _) => {
                if !self.env.is_empty() {
                    return Err(CommandError::Usage(
                        "--env applies to a COMMAND; use --header with a URL".into(),
                    ));
                }
                let headers = self
                    .header
                    .iter()
                    .map(|text| parse_header(text))
                    .chain(secrets)
                    .collect::<Result<_, _>>()?;
                Ok(ManifestTransport::Http { url: url.clone(), headers })
            }
            (None, [command, args @ ..]) => {
                if !self.header.is_empty() {
                    return Err(CommandError::Usage(
                        "--header applies to a URL; use --env with a COMMAND".into(),
                    ));
                }
                let env = self
                    .env
                    .iter()
                    .map(|text| Ok(parse_env(text)))
                    .chain(secrets)
                    .collect::<Result<_, _>>()?;
                Ok(ManifestTransport::Stdio { command: command.clone(), args: args.to_vec(), env })
            }
            (None, []) => Err(CommandError::Usage("give a URL, or a COMMAND after --".into())),
        }
    }

    /// Fails if evenkeel holds the objects of a directory that is missing, or empty by mistake.
    ///
    /// A new file in it would confirm the removal of all the others.
    async fn ensure_removal_not_held(&self, directory: &Path) -> Result<(), CommandError> {
        let Some(mut client) = StatusClient::connect_if_running(&self.target.instance.resolve()?).await?
        else {
            return Ok(());
        };
        let sources: Json = client.get(&ListQuery::new(ObjectKind::Source, None).path()).await?;
        let (state, remedy) = if !directory.exists() {
            ("missing", "restore it, or create it again and run")
        } else if items(&sources).iter().any(holds_removal) {
            ("empty", "restore its files, or run")
        } else {
            return Ok(());
        };
        let mut count = 0;
        for kind in [ObjectKind::McpServer, ObjectKind::Skill] {
            let list: Json = client.get(&ListQuery::new(kind, None).path()).await?;
            count += items(&list).len();
        }
        if count == 0 {
            return Ok(());
        }
        let objects = if count == 1 { "1 object".to_owned() } else { format!("{count} objects") };
        Err(CommandError::Failed(format!(
            "{} is {state}, but evenkeel still holds {objects} of it; {remedy}: evenkeel mcp reload --prune-empty",
            directory.display()
        )))
    }

    /// Fails if the server is declared already: its second declaration would be written and then refused.
    fn ensure_not_declared(
        &self,
        directory: &Path,
        locations: &[ObjectLocation],
    ) -> Result<(), CommandError> {
        let existing = locations.iter().find(|location| {
            location.kind == ObjectKind::McpServer.name()
                && *location.key.name == *self.name
                && *location.key.namespace == *self.target.namespace
        });
        match existing {
            Some(location) => Err(CommandError::Failed(format!(
                "McpServer {} is already declared in {}:{}",
                location.key,
                directory.join(&location.path).display(),
                location.line
            ))),
            None => Ok(()),
        }
    }

    /// Waits until the server is attached; otherwise returns the reason as an error.
    async fn wait_until_attached(&self, path: &Path) -> Result<(), CommandError> {
        let instance = self.target.instance.resolve()?;
        let Some(mut client) = StatusClient::connect_if_running(&instance).await? else {
            output::print_note(&format!(
                "no evenkeel instance is running for {instance}; to attach the server, run: {}",
                instance.start_command
            ));
            return Ok(());
        };
        let mut progress = ProgressLine::default();
        let (start, end) = (Instant::now(), Instant::now() + self.wait.timeout.get());
        // The status may still be that of an earlier server of this name, until the file has been scanned.
        let mut status = "evenkeel has not read the file yet".to_owned();
        match timeout_at(end, client.scan()).await {
            Ok(scanned) => scanned?,
            Err(_) => {
                return Err(self
                    .not_attached_error(path, &format!("timed out after {}; {status}", self.wait.timeout)));
            }
        }
        let mut cache =
            WatchCache::open(&instance, ObjectKind::McpServer, Some(&self.target.namespace)).await?;
        loop {
            if let Some(server) = cache.get(&self.target.namespace, &self.name)
                && let Some(ready) = condition(server, "Ready").filter(|ready| is_current(server, ready))
            {
                let reason = text_at(ready, "/reason");
                if text_at(ready, "/status") == "True" {
                    drop(progress);
                    let tools = value_at(server, "/status/tools").as_u64().unwrap_or_default();
                    let tools = if tools == 1 { "1 tool".to_owned() } else { format!("{tools} tools") };
                    let message = format!("{} is attached with {tools}\n", self.name);
                    return output::print(&message).map_err(CommandError::failed);
                }
                status = format!("{reason}: {}", text_at(ready, "/message"));
                if reason != Reason::Connecting.to_string() {
                    drop(progress);
                    return Err(self.not_attached_error(path, &status));
                }
            }
            progress.show(&format!("{:>3} s  {status}", start.elapsed().as_secs()));
            let tick = Instant::now() + Duration::from_secs(1);
            if Instant::now() >= end {
                drop(progress);
                return Err(self
                    .not_attached_error(path, &format!("timed out after {}; {status}", self.wait.timeout)));
            }
            if let Ok(changed) = timeout_at(tick.min(end), cache.changed()).await {
                changed?;
            }
        }
    }

    fn not_attached_error(&self, path: &Path, reason: &str) -> CommandError {
        CommandError::Failed(format!(
            "{} is declared in {} but not attached: {reason}",
            self.name,
            path.display()
        ))
    }
}

fn parse_env(text: &str) -> NamedValue {
    match text.split_once('=') {
        Some((name, value)) => {
            NamedValue { name: name.to_owned(), value: ManifestValue::Value(value.to_owned()) }
        }
        None => NamedValue {
            name: text.to_owned(),
            value: ManifestValue::ValueFrom(ManifestReference::Env(text.to_owned())),
        },
    }
}

fn parse_header(text: &str) -> Result<NamedValue, CommandError> {
    let (name, value) = text
        .split_once(':')
        .ok_or_else(|| CommandError::Usage(format!("invalid --header {text:?}: expected 'NAME: VALUE'")))?;
    Ok(NamedValue { name: name.trim().to_owned(), value: ManifestValue::Value(value.trim().to_owned()) })
}

fn parse_secret(text: &str) -> Result<NamedValue, CommandError> {
    let parts = text.split_once('=').and_then(|(name, reference)| Some((name, reference.split_once('/')?)));
    let (name, (secret, key)) = parts
        .ok_or_else(|| CommandError::Usage(format!("invalid --secret {text:?}: expected NAME=SECRET/KEY")))?;
    let value = ManifestValue::ValueFrom(ManifestReference::SecretKeyRef {
        name: secret.to_owned(),
        key: key.to_owned(),
    });
    Ok(NamedValue { name: name.to_owned(), value })
}

fn path_error(path: &Path, error: &io::Error) -> CommandError {
    CommandError::Failed(format!("{}: {error}", path.display()))
}
