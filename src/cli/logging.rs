use std::io::{self, IsTerminal};

use clap::ValueEnum;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::fmt::layer;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

use super::error::CommandError;

/// How log lines are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// Sends log lines to stderr from now on.
pub(super) fn init(format: LogFormat, filter: &str) -> Result<(), CommandError> {
    // The one warns of each folder that is gone before it is let go of, which is what folders do; the other would tell
    // what servers say as they say it.
    let quiet = format!("notify=error,{filter},rmcp=warn");
    let filter = quiet
        .parse::<Targets>()
        .map_err(|error| CommandError::Usage(format!("--log {filter:?} is not a filter: {error}")))?;
    let filtered = tracing_subscriber::registry().with(filter);
    let lines = layer().with_writer(io::stderr);
    let installed = match format {
        LogFormat::Text => {
            filtered.with(lines.with_target(false).with_ansi(io::stderr().is_terminal())).try_init()
        }
        LogFormat::Json => filtered.with(lines.json().flatten_event(true).with_span_list(false)).try_init(),
    };
    installed.map_err(CommandError::failed)
}
