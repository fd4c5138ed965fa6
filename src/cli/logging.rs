use std::fs::File;
use std::io::{self, IsTerminal};
use std::os::fd::AsFd;

use clap::ValueEnum;
use tracing::Level;
use tracing_subscriber::filter::{Targets, filter_fn};
use tracing_subscriber::fmt::layer;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

use super::error::CommandError;
use super::log_writer::{LogFlush, LogWriter};

/// The format of log lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum LogFormat {
    /// Human-readable text
    Text,
    /// One JSON object per line
    Json,
}

/// Installs the logger, which writes to stderr and never blocks a task that logs. Drop the result when the process
/// exits.
pub(super) fn init(format: LogFormat, filter: &str) -> Result<LogFlush, CommandError> {
    // `notify` warns of every directory that is deleted while it is watched, which is normal. `rmcp` would log the
    // messages of servers, and the codes of logins, unredacted.
    let directives = format!("notify=error,{filter},rmcp=warn");
    let filter = directives
        .parse::<Targets>()
        .map_err(|error| CommandError::Usage(format!("invalid --log filter {filter:?}: {error}")))?;
    // A filter for a module of `rmcp` would be more specific than that directive.
    let is_allowed =
        filter_fn(|metadata| !metadata.target().starts_with("rmcp") || *metadata.level() <= Level::WARN);
    let filtered = tracing_subscriber::registry().with(filter).with(is_allowed);
    // Not `io::stderr`, whose lock would be held while nobody reads.
    let stderr = File::from(io::stderr().as_fd().try_clone_to_owned().map_err(CommandError::failed)?);
    let (writer, flush) = LogWriter::start(stderr, |lines| {
        tracing::warn!(lines, "log lines were dropped, because stderr was not read");
    })
    .map_err(CommandError::failed)?;
    let layer = layer().with_writer(writer);
    let installed = match format {
        LogFormat::Text => {
            filtered.with(layer.with_target(false).with_ansi(io::stderr().is_terminal())).try_init()
        }
        LogFormat::Json => filtered.with(layer.json().flatten_event(true).with_span_list(false)).try_init(),
    };
    installed.map_err(CommandError::failed)?;
    Ok(flush)
}
