use std::fmt::Write;

use jiff::Timestamp;
use serde_json::Value;

use super::super::client::StatusClient;
use super::super::error::CommandError;
use super::super::instance::NamespacedInstanceArgs;
use super::super::output::{self, Terminal, printable};
use super::super::runtime::block_on;
use super::events::{EventFilter, table as events_table};
use super::get::text_of;
use super::object_arg::{KindArg, ListQuery, ObjectArg, at, conditions, items, name_of, text_at, unknown_to};
use super::text_table::TextTable;

/// The arguments of `evenkeel describe`.
#[derive(Debug, clap::Args)]
pub(in crate::cli) struct Args {
    #[command(flatten)]
    within: NamespacedInstanceArgs,
    /// KIND NAME, or KIND/NAME
    #[arg(value_name = "KIND NAME", num_args = 1..=2, required = true)]
    what: Vec<String>,
}

/// Prints all that is known of one object.
pub(in crate::cli) fn describe(args: &Args) -> Result<(), CommandError> {
    let target = match &*args.what {
        [kind, name] => KindArg::parse(kind).and_then(|_| ObjectArg::parse(&format!("{kind}/{name}"))),
        [one] if one.contains('/') => ObjectArg::parse(one),
        _ => Err("say KIND NAME, such as: evenkeel describe mcps github".into()),
    };
    let ObjectArg { kind, name } = target.map_err(CommandError::Usage)?;
    block_on(async {
        let mut client = StatusClient::connect(&args.within.which.whose()?).await?;
        let list: Value = client.get(&ListQuery::of(kind, Some(&args.within.namespace)).path()).await?;
        let Some(object) = items(&list).iter().find(|item| name_of(item) == name) else {
            return Err(unknown_to(&mut client, kind, &name, Some(&args.within.namespace)).await);
        };
        let about = EventFilter { kind: Some(kind), name: Some(&name) };
        let namespace = if kind.namespaced() { &args.within.namespace } else { "default" };
        let events = events_table(&mut client, Some(namespace), about).await?;
        let terminal = Terminal::stdout();
        output::print(&described(object, events, &terminal)).map_err(CommandError::failed)
    })
}

fn described(object: &Value, mut events: TextTable, terminal: &Terminal) -> String {
    let (metadata, status) = (at(object, "/metadata"), at(object, "/status"));
    let mut text = String::new();
    let mut field = |name: &str, value: &Value| {
        let value = match value {
            Value::Null => return,
            Value::String(text) => printable(text),
            other => other.to_string(),
        };
        if !value.is_empty() {
            let _ = writeln!(text, "{:<13}{value}", format!("{name}:"));
        }
    };
    field("Name", at(metadata, "/name"));
    field("Namespace", at(metadata, "/namespace"));
    field("Kind", at(object, "/kind"));
    for (name, map) in [("Labels", at(metadata, "/labels")), ("Annotations", at(metadata, "/annotations"))] {
        for (key, value) in map.as_object().into_iter().flatten() {
            field(name, &format!("{key}={}", value.as_str().unwrap_or_default()).into());
        }
    }
    field("Created", at(metadata, "/creationTimestamp"));
    let live = match (at(metadata, "/generation"), at(status, "/attachedGeneration")) {
        (generation, live @ Value::Number(_)) if generation != live => {
            format!("{generation} ({live} is attached)")
        }
        (generation, _) => generation.to_string(),
    };
    field("Generation", &live.into());
    field("Revision", at(status, "/lastAppliedRevision"));
    field("Revision", at(status, "/revision"));
    field("Watching", at(status, "/watching"));
    if let Some(foreign) = at(status, "/foreignDocuments").as_u64().filter(|foreign| *foreign > 0) {
        field("Ignored", &format!("{foreign} documents of other API groups").into());
    }
    field("Servers", at(status, "/servers"));
    field("Attached", at(status, "/attached"));
    field("Source", at(status, "/source"));
    field("Description", at(status, "/description"));
    field("Files", at(status, "/files"));
    field("Content", at(status, "/contentDigest"));
    if let Some(name) = at(status, "/serverInfo/name").as_str() {
        let version = text_at(status, "/serverInfo/version");
        field("Server", &format!("{name} {version}").into());
    }
    field("Transport", at(status, "/transport"));
    field("Protocol", at(status, "/protocolVersion"));
    for (name, key) in
        [("Tools", "/tools"), ("Prompts", "/prompts"), ("Resources", "/resources"), ("Restarts", "/restarts")]
    {
        field(name, at(status, key));
    }
    field("Next retry", at(status, "/nextRetryTime"));
    if let Some(spec) = object.get("spec") {
        text += "Spec:\n";
        for line in serde_yaml::to_string(spec).unwrap_or_default().lines() {
            let _ = writeln!(text, "  {}", printable(line));
        }
    }
    if !conditions(object).is_empty() {
        let mut table = TextTable::new(["Type", "Status", "Reason", "For", "Message"]);
        for condition in conditions(object) {
            let cell = |key: &str| text_at(condition, key).to_owned();
            let since = cell("/lastTransitionTime").parse().map_or_else(|_| String::new(), age);
            table.row([cell("/type"), cell("/status"), cell("/reason"), since, cell("/message")]);
        }
        text += "Conditions:\n";
        text += &indented(&table.whole(&terminal.narrower(2)));
    }
    for (heading, list) in [("Faults", "/faults"), ("Warnings", "/warnings")] {
        let list = at(status, list).as_array().map_or(&[][..], Vec::as_slice);
        if !list.is_empty() {
            let _ = writeln!(text, "{heading}:");
        }
        text.extend(list.iter().map(fault));
    }
    text += "Events:\n";
    if events.is_empty() {
        text += "  none in the last hour\n";
    } else {
        text += &indented(&events.whole(&terminal.narrower(2)));
    }
    text
}

/// What is wrong with a place of the source: the sentence, and beneath it the lines around the place.
fn fault(fault: &Value) -> String {
    let place: Vec<_> = ["/file", "/line", "/column"].map(|part| text_of(at(fault, part))).into();
    let place = place.iter().filter(|part| !part.is_empty()).map(|part| printable(part));
    let place = place.collect::<Vec<_>>().join(":");
    let start = if place.is_empty() { place } else { format!("{place}: ") };
    let message = output::printable_lines(text_at(fault, "/message")).replace('\n', "\n    ");
    format!("  {start}{}: {message}\n", text_at(fault, "/reason"))
}

/// How long ago something was, in the largest unit that fits.
fn age(since: Timestamp) -> String {
    let seconds = Timestamp::now().duration_since(since).as_secs().max(0);
    let units = [(86_400, 'd'), (3_600, 'h'), (60, 'm')];
    let unit = units.into_iter().find(|(length, _)| seconds >= 2 * length);
    unit.map_or_else(|| format!("{seconds}s"), |(length, unit)| format!("{}{unit}", seconds / length))
}

fn indented(text: &str) -> String {
    let lines: Vec<_> = text.lines().map(|line| format!("  {line}")).collect();
    lines.join("\n") + "\n"
}
