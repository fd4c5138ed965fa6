use std::fmt::Write;

use jiff::Timestamp;
use serde_json::Value;

use super::super::client::StatusClient;
use super::super::error::CommandError;
use super::super::instance::NamespacedInstanceArgs;
use super::super::output::{self, Terminal, sanitize};
use super::super::runtime::block_on;
use super::events::{EventFilter, event_table as events_table};
use super::get::cell_text;
use super::object_arg::{
    KindArg, ListQuery, ObjectArg, conditions, items, object_name, report_unknown_name, text_at, value_at,
};
use super::text_table::TextTable;

/// The arguments of `evenkeel describe`.
#[derive(Debug, clap::Args)]
pub(in crate::cli) struct Args {
    #[command(flatten)]
    target: NamespacedInstanceArgs,
    /// KIND NAME, or KIND/NAME
    #[arg(value_name = "KIND NAME", num_args = 1..=2, required = true)]
    object: Vec<String>,
}

/// Prints the spec, status, conditions and events of one object.
pub(in crate::cli) fn describe(args: &Args) -> Result<(), CommandError> {
    let target = match &*args.object {
        [kind, name] => KindArg::parse(kind).and_then(|_| ObjectArg::parse(&format!("{kind}/{name}"))),
        [one] if one.contains('/') => ObjectArg::parse(one),
        _ => Err("expected KIND NAME or KIND/NAME, such as: evenkeel describe mcps github".into()),
    };
    let ObjectArg { kind, name } = target.map_err(CommandError::Usage)?;
    block_on(async {
        let mut client = StatusClient::connect(&args.target.instance.resolve()?).await?;
        let list: Value = client.get(&ListQuery::new(kind, Some(&args.target.namespace)).path()).await?;
        let Some(object) = items(&list).iter().find(|item| object_name(item) == name) else {
            return Err(report_unknown_name(&mut client, kind, &name, Some(&args.target.namespace)).await);
        };
        let filter = EventFilter { kind: Some(kind), name: Some(&name) };
        let namespace = if kind.is_namespaced() { &args.target.namespace } else { "default" };
        let events = events_table(&mut client, Some(namespace), filter).await?;
        let terminal = Terminal::stdout();
        output::print(&render(object, events, &terminal)).map_err(CommandError::failed)
    })
}

fn render(object: &Value, mut events: TextTable, terminal: &Terminal) -> String {
    let (metadata, status) = (value_at(object, "/metadata"), value_at(object, "/status"));
    let mut text = String::new();
    let mut field = |name: &str, value: &Value| {
        let value = match value {
            Value::Null => return,
            Value::String(text) => sanitize(text),
            other => other.to_string(),
        };
        if !value.is_empty() {
            let _ = writeln!(text, "{:<13}{value}", format!("{name}:"));
        }
    };
    field("Name", value_at(metadata, "/name"));
    field("Namespace", value_at(metadata, "/namespace"));
    field("Kind", value_at(object, "/kind"));
    for (name, map) in
        [("Labels", value_at(metadata, "/labels")), ("Annotations", value_at(metadata, "/annotations"))]
    {
        for (key, value) in map.as_object().into_iter().flatten() {
            field(name, &format!("{key}={}", value.as_str().unwrap_or_default()).into());
        }
    }
    field("Created", value_at(metadata, "/creationTimestamp"));
    let live = match (value_at(metadata, "/generation"), value_at(status, "/attachedGeneration")) {
        (generation, live @ Value::Number(_)) if generation != live => {
            format!("{generation} ({live} is attached)")
        }
        (generation, _) => generation.to_string(),
    };
    field("Generation", &live.into());
    field("Revision", value_at(status, "/lastAppliedRevision"));
    field("Revision", value_at(status, "/revision"));
    field("Watching", value_at(status, "/watching"));
    if let Some(foreign) = value_at(status, "/foreignDocuments").as_u64().filter(|foreign| *foreign > 0) {
        field("Ignored", &format!("{foreign} documents of other API groups").into());
    }
    field("Servers", value_at(status, "/servers"));
    field("Attached", value_at(status, "/attached"));
    field("Source", value_at(status, "/source"));
    field("Description", value_at(status, "/description"));
    field("Files", value_at(status, "/files"));
    field("Content", value_at(status, "/contentDigest"));
    if let Some(name) = value_at(status, "/serverInfo/name").as_str() {
        let version = text_at(status, "/serverInfo/version");
        field("Server", &format!("{name} {version}").into());
    }
    field("Transport", value_at(status, "/transport"));
    field("Protocol", value_at(status, "/protocolVersion"));
    for (name, key) in [
        ("Tools", "/tools"),
        ("Prompts", "/prompts"),
        ("Resources", "/resources"),
        ("Restarts", "/restarts"),
        ("Sessions", "/sessions"),
    ] {
        field(name, value_at(status, key));
    }
    field("Next retry", value_at(status, "/nextRetryTime"));
    if let Some(spec) = object.get("spec") {
        text += "Spec:\n";
        for line in serde_yaml::to_string(spec).unwrap_or_default().lines() {
            let _ = writeln!(text, "  {}", sanitize(line));
        }
    }
    if !conditions(object).is_empty() {
        let mut table = TextTable::new(["Type", "Status", "Reason", "For", "Message"]);
        for condition in conditions(object) {
            let cell = |key: &str| text_at(condition, key).to_owned();
            let since = cell("/lastTransitionTime").parse().map_or_else(|_| String::new(), age);
            table.add_row([cell("/type"), cell("/status"), cell("/reason"), since, cell("/message")]);
        }
        text += "Conditions:\n";
        text += &indent(&table.render(&terminal.narrowed(2)));
    }
    for (heading, list) in [("Faults", "/faults"), ("Warnings", "/warnings")] {
        let list = value_at(status, list).as_array().map_or(&[][..], Vec::as_slice);
        if !list.is_empty() {
            let _ = writeln!(text, "{heading}:");
        }
        text.extend(list.iter().map(render_fault));
    }
    text += "Events:\n";
    if events.is_empty() {
        text += "  none in the last hour\n";
    } else {
        text += &indent(&events.render(&terminal.narrowed(2)));
    }
    text
}

/// Renders a fault of a source: its location, reason and message, with the lines around the location below.
fn render_fault(fault: &Value) -> String {
    let location: Vec<_> = ["/file", "/line", "/column"].map(|part| cell_text(value_at(fault, part))).into();
    let location = location.iter().filter(|part| !part.is_empty()).map(|part| sanitize(part));
    let location = location.collect::<Vec<_>>().join(":");
    let start = if location.is_empty() { location } else { format!("{location}: ") };
    let message = output::sanitize_lines(text_at(fault, "/message")).replace('\n', "\n    ");
    format!("  {start}{}: {message}\n", text_at(fault, "/reason"))
}

/// Formats the time since `since` in the largest unit that fits at least twice.
fn age(since: Timestamp) -> String {
    let seconds = Timestamp::now().duration_since(since).as_secs().max(0);
    let units = [(86_400, 'd'), (3_600, 'h'), (60, 'm')];
    let unit = units.into_iter().find(|(length, _)| seconds >= 2 * length);
    unit.map_or_else(|| format!("{seconds}s"), |(length, unit)| format!("{}{unit}", seconds / length))
}

fn indent(text: &str) -> String {
    let lines: Vec<_> = text.lines().map(|line| format!("  {line}")).collect();
    lines.join("\n") + "\n"
}
