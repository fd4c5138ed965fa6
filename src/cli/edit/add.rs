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
    /// The name of the server; the file is NAME.yaml
    #[arg(value_name = "NAME")]
    name: String,
    /// Where it is, if it speaks HTTP
    #[arg(value_name = "URL", conflicts_with = "command", required_unless_present = "command")]
    url: Option<String>,
    /// What starts it, if it speaks over stdin and stdout
    #[arg(value_name = "COMMAND", last = true)]
    command: Vec<String>,
    /// A variable for the command: NAME=VALUE, or NAME alone to take it from the environment of evenkeel
    #[arg(short, long, value_name = "NAME[=VALUE]")]
    env: Vec<String>,
    /// A header for every request, such as 'Accept-Language: en'
    #[arg(long, value_name = "NAME: VALUE")]
    header: Vec<String>,
    /// A variable or header whose value is in a secret: NAME=SECRET/KEY
    #[arg(long, value_name = "NAME=SECRET/KEY")]
    secret: Vec<String>,
    /// Write the file and leave it at that
    #[arg(long)]
    no_wait: bool,
    #[command(flatten)]
    wait: WaitTimeout,
}

/// Declares a server.
pub(super) fn add(args: &Args) -> Result<(), CommandError> {
    let directory = args.target.instance.declarations_dir()?;
    let namespace = Some(&*args.target.namespace).filter(|namespace| *namespace != "default");
    let path = directory.join(format!("{}.yaml", args.name));
    let text = ServerManifest::new(&args.name, namespace, args.transport()?)
        .to_yaml(Path::new(path.file_name().unwrap_or_default()))?;
    let places = match directory::find_objects(&directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
        found => found.map_err(|error| path_error(&directory, &error))?,
    };
    if places.is_empty() {
        block_on(args.ensure_removal_not_held(&directory))?;
    }
    args.ensure_not_declared(&directory, &places)?;
    std::fs::create_dir_all(&directory).map_err(|error| path_error(&directory, &error))?;
    file::create(&path, &text).map_err(|error| match error.kind() {
        io::ErrorKind::AlreadyExists => CommandError::Failed(format!(
            "{} is there already, with something else in it; choose another name, or edit the file",
            path.display()
        )),
        _ => path_error(&path, &error),
    })?;
    output::print(&format!("{} is written\n", path.display())).map_err(CommandError::failed)?;
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
                    return Err(CommandError::Usage("--env is for a command; a URL has --header".into()));
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
                    return Err(CommandError::Usage("--header is for a URL; a command has --env".into()));
                }
                let env = self
                    .env
                    .iter()
                    .map(|text| Ok(parse_env(text)))
                    .chain(secrets)
                    .collect::<Result<_, _>>()?;
                Ok(ManifestTransport::Stdio { command: command.clone(), args: args.to_vec(), env })
            }
            (None, []) => Err(CommandError::Usage("name a URL, or a command after --".into())),
        }
    }

    /// Evenkeel holds on to what a directory declared that is missing now, or empty by a mistake: one file in it would
    /// say that all the others are meant to be gone.
    async fn ensure_removal_not_held(&self, directory: &Path) -> Result<(), CommandError> {
        let Some(mut client) = StatusClient::connect_if_running(&self.target.instance.resolve()?).await?
        else {
            return Ok(());
        };
        let sources: Json = client.get(&ListQuery::new(ObjectKind::Source, None).path()).await?;
        let (is, how) = if !directory.exists() {
            ("missing", "make it anew and ")
        } else if items(&sources).iter().any(holds_removal) {
            ("empty", "")
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
            "{} is {is} and evenkeel holds on to {objects}; bring it back, or {how}say: evenkeel mcp reload --prune-empty",
            directory.display()
        )))
    }

    /// A second declaration of a name would be refused, and in a file that looks well.
    fn ensure_not_declared(&self, directory: &Path, places: &[ObjectLocation]) -> Result<(), CommandError> {
        let twice = places.iter().find(|place| {
            place.kind == ObjectKind::McpServer.name()
                && *place.key.name == *self.name
                && *place.key.namespace == *self.target.namespace
        });
        match twice {
            Some(place) => Err(CommandError::Failed(format!(
                "McpServer {} is declared already, in {}:{}",
                place.key,
                directory.join(&place.path).display(),
                place.line
            ))),
            None => Ok(()),
        }
    }

    /// Waits until it is attached, or says why it is not.
    async fn wait_until_attached(&self, path: &Path) -> Result<(), CommandError> {
        let whose = self.target.instance.resolve()?;
        let Some(mut client) = StatusClient::connect_if_running(&whose).await? else {
            output::print_note(&format!(
                "no evenkeel is running for {whose}; it is attached by: {}",
                whose.start_command
            ));
            return Ok(());
        };
        let mut progress = ProgressLine::default();
        let (start, end) = (Instant::now(), Instant::now() + self.wait.timeout.get());
        // Another server of this name may have been there a moment ago: what is told of that says nothing of this one.
        let mut why = "evenkeel has not seen the file yet".to_owned();
        match timeout_at(end, client.scan()).await {
            Ok(looked) => looked?,
            Err(_) => {
                return Err(
                    self.not_attached_error(path, &format!("not within {}; {why}", self.wait.timeout))
                );
            }
        }
        let mut mirror =
            WatchCache::open(&whose, ObjectKind::McpServer, Some(&self.target.namespace)).await?;
        loop {
            if let Some(server) = mirror.get(&self.target.namespace, &self.name)
                && let Some(ready) = condition(server, "Ready").filter(|ready| is_current(server, ready))
            {
                let reason = text_at(ready, "/reason");
                if text_at(ready, "/status") == "True" {
                    drop(progress);
                    let tools = value_at(server, "/status/tools").as_u64().unwrap_or_default();
                    let tools = if tools == 1 { "1 tool".to_owned() } else { format!("{tools} tools") };
                    let told = format!("{} is attached with {tools}\n", self.name);
                    return output::print(&told).map_err(CommandError::failed);
                }
                why = format!("{reason}: {}", text_at(ready, "/message"));
                if reason != Reason::Connecting.to_string() {
                    drop(progress);
                    return Err(self.not_attached_error(path, &why));
                }
            }
            progress.show(&format!("{:>3} s  {why}", start.elapsed().as_secs()));
            let tick = Instant::now() + Duration::from_secs(1);
            if Instant::now() >= end {
                drop(progress);
                return Err(
                    self.not_attached_error(path, &format!("not within {}; {why}", self.wait.timeout))
                );
            }
            if let Ok(changed) = timeout_at(tick.min(end), mirror.changed()).await {
                changed?;
            }
        }
    }

    fn not_attached_error(&self, path: &Path, why: &str) -> CommandError {
        CommandError::Failed(format!(
            "{} is declared in {} and not attached: {why}",
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
        .ok_or_else(|| CommandError::Usage(format!("--header {text:?} is not of the form 'NAME: VALUE'")))?;
    Ok(NamedValue { name: name.trim().to_owned(), value: ManifestValue::Value(value.trim().to_owned()) })
}

fn parse_secret(text: &str) -> Result<NamedValue, CommandError> {
    let parts = text.split_once('=').and_then(|(name, place)| Some((name, place.split_once('/')?)));
    let (name, (secret, key)) = parts.ok_or_else(|| {
        CommandError::Usage(format!("--secret {text:?} is not of the form NAME=SECRET/KEY"))
    })?;
    let value = ManifestValue::ValueFrom(ManifestReference::SecretKeyRef {
        name: secret.to_owned(),
        key: key.to_owned(),
    });
    Ok(NamedValue { name: name.to_owned(), value })
}

fn path_error(path: &Path, error: &io::Error) -> CommandError {
    CommandError::Failed(format!("{}: {error}", path.display()))
}
