use std::io::{self, IsTerminal};

use clap::ValueEnum;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::fmt::layer;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

use super::error::CommandError;

/// The format of log lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum LogFormat {
    /// Human-readable text
    Text,
    /// One JSON object per line
    Json,
}

/// Installs the logger, which writes to stderr.
pub(super) fn init(format: LogFormat, filter: &str) -> Result<(), CommandError> {
    // `notify` warns of every directory that is deleted while it is watched, which is normal. `rmcp` would log the
    // messages of servers unredacted.
    let directives = format!("notify=error,{filter},rmcp=warn");
    let filter = directives
        .parse::<Targets>()
        .map_err(|error| CommandError::Usage(format!("invalid --log filter {filter:?}: {error}")))?;
    let filtered = tracing_subscriber::registry().with(filter);
    let layer = layer().with_writer(io::stderr);
    let installed = match format {
        LogFormat::Text => {
            filtered.with(layer.with_target(false).with_ansi(io::stderr().is_terminal())).try_init()
        }
        LogFormat::Json => filtered.with(layer.json().flatten_event(true).with_span_list(false)).try_init(),
    };
    installed.map_err(CommandError::failed)
}
