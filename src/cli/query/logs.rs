use hyper::Method;
use serde::Deserialize;
use serde_json::Value;

use super::super::client::{ResponseLines, StatusClient, disconnected_error};
use super::super::error::CommandError;
use super::super::instance::NamespacedInstanceArgs;
use super::super::output::{self, Colour, Terminal, sanitize};
use super::super::runtime::block_on;
use super::object_arg::{ListQuery, ObjectArg, items, object_name, report_unknown_name};
use crate::report::ObjectKind;
use crate::wire::LogLine;

/// The arguments of `evenkeel logs`.
#[derive(Debug, clap::Args)]
pub(in crate::cli) struct Args {
    #[command(flatten)]
    target: NamespacedInstanceArgs,
    /// Name of the server
    #[arg(value_name = "NAME", value_parser = ObjectArg::parse)]
    server: ObjectArg,
    /// Follow the log
    #[arg(short, long)]
    follow: bool,
    /// Print only the last LINES lines
    #[arg(long, value_name = "LINES")]
    tail: Option<u64>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum LogStreamLine {
    Line(LogLine),
    Lost { lost: u64 },
    Gone { gone: bool },
}

/// Prints what a server wrote to stderr and the log messages that it sent.
pub(in crate::cli) fn logs(args: &Args) -> Result<(), CommandError> {
    let ObjectArg { kind: ObjectKind::McpServer, name } = &args.server else {
        return Err(CommandError::Usage("only servers have logs".into()));
    };
    block_on(async {
        let mut client = StatusClient::connect(&args.target.instance.resolve()?).await?;
        let query = ListQuery::new(ObjectKind::McpServer, Some(&args.target.namespace));
        let list: Value = client.get(&query.path()).await?;
        if !items(&list).iter().any(|item| object_name(item) == name) {
            let namespace = Some(&*args.target.namespace);
            return Err(report_unknown_name(&mut client, ObjectKind::McpServer, name, namespace).await);
        }
        let tail = args.tail.map(|lines| format!("&tailLines={lines}")).unwrap_or_default();
        let path = format!("{}?follow={}{tail}", query.subpath(&[name.as_str(), "log"]), args.follow);

        let terminal = Terminal::stdout();
        let mut lines = ResponseLines::new(client.send(Method::GET, &path, "application/jsonl", None).await?);
        while let Some(line) = lines.next().await? {
            let text = match serde_json::from_str(&line).map_err(CommandError::failed)? {
                LogStreamLine::Gone { gone: false } => continue,
                LogStreamLine::Gone { gone: true } => {
                    output::print_note(&format!("{name} is no longer declared; its log has ended"));
                    return Ok(());
                }
                LogStreamLine::Line(line) => render_line(&line, &terminal),
                LogStreamLine::Lost { lost } => format!("({lost} lines were lost)\n"),
            };
            if !output::print_chunk(&text).map_err(CommandError::failed)? {
                return Ok(());
            }
        }
        if args.follow { Err(disconnected_error()) } else { Ok(()) }
    })
}

fn render_line(line: &LogLine, terminal: &Terminal) -> String {
    let LogLine { time, level, logger, text } = line;
    let level_text = match &**level {
        "warning" => terminal.paint(Colour::Yellow, level),
        "error" | "critical" | "alert" | "emergency" => terminal.paint(Colour::Red, level),
        _ => sanitize(level),
    };
    let logger = logger.as_ref().map(|logger| format!("{}: ", sanitize(logger))).unwrap_or_default();
    format!("{time:.3} {level_text} {logger}{}\n", sanitize(text))
}
