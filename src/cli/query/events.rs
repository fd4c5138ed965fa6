use hyper::Method;
use serde_json::Value;

use super::super::client::{ResponseLines, StatusClient, read_json};
use super::super::error::CommandError;
use super::super::instance::InstanceArgs;
use super::super::output::{self, Terminal};
use super::super::runtime::block_on;
use super::get::{ApiTable, OutputFormat, TABLE_ACCEPT, TableRow, cell_text};
use super::object_arg::{
    ListQuery, ObjectArg, WatchLine, items, object_name, report_unknown_name, text_at, value_at,
};
use super::text_table::TextTable;
use crate::report::ObjectKind;

/// The arguments of `evenkeel events`.
#[derive(Debug, clap::Args)]
pub(in crate::cli) struct Args {
    #[command(flatten)]
    instance: InstanceArgs,
    /// Only of this object
    #[arg(long = "for", value_name = "KIND/NAME", value_parser = ObjectArg::parse)]
    about: Option<ObjectArg>,
    /// Go on with every new one
    #[arg(short, long)]
    watch: bool,
    /// How they are printed
    #[arg(short, long, value_name = "FORMAT", value_enum, default_value = "table")]
    output: OutputFormat,
    /// Only of this namespace
    #[arg(short, long, value_name = "NAMESPACE")]
    namespace: Option<String>,
    /// Of all namespaces, which is so without --namespace too
    #[arg(short = 'A', long, conflicts_with = "namespace")]
    all_namespaces: bool,
}

/// Which events are meant.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct EventFilter<'a> {
    pub kind: Option<ObjectKind>,
    pub name: Option<&'a str>,
}

impl EventFilter<'_> {
    fn query(self, namespace: Option<&str>) -> ListQuery {
        let fields = [
            self.kind.map(|kind| format!("regarding.kind={}", kind.name())),
            self.name.map(|name| format!("regarding.name={name}")),
        ];
        let fields: Vec<_> = fields.into_iter().flatten().collect();
        let query = ListQuery::events(namespace);
        if fields.is_empty() { query } else { query.with_parameter("fieldSelector", fields.join(",")) }
    }
}

/// Prints what happened in the last hour, the oldest first.
pub(in crate::cli) fn events(args: &Args) -> Result<(), CommandError> {
    let selected = EventFilter {
        kind: args.about.as_ref().map(|about| about.kind),
        name: args.about.as_ref().map(|about| about.name.as_str()),
    };
    let namespace = args.namespace.as_deref().filter(|_| !args.all_namespaces);
    block_on(async {
        let terminal = Terminal::stdout();
        let mut client = StatusClient::connect(&args.instance.resolve()?).await?;
        let query = selected.query(namespace).with_parameter("includeObject", "Object");
        let answer = fetch_events(&mut client, &query).await?;
        if let Some(about) = args.about.as_ref().filter(|_| answer.rows.is_empty() && !args.watch) {
            // What is not declared any more may still be told of; of what never was, there is nothing to tell.
            let list: Value = client.get(&ListQuery::new(about.kind, namespace).path()).await?;
            if !items(&list).iter().any(|item| object_name(item) == about.name) {
                return Err(report_unknown_name(&mut client, about.kind, &about.name, namespace).await);
            }
        }
        let version = text_at(&answer.metadata, "/resourceVersion").to_owned();
        let tables = matches!(args.output, OutputFormat::Table | OutputFormat::Wide);
        let mut table = to_text_table(&answer, args.output == OutputFormat::Wide);
        let text = if tables { table.render(&terminal) } else { render_documents(&answer, args)? };
        if !output::print_chunk(&text).map_err(CommandError::failed)? || !args.watch {
            return Ok(());
        }
        let query = query.with_parameter("watch", "true").with_parameter("resourceVersion", version);
        let mut lines =
            ResponseLines::new(client.send(Method::GET, &query.path(), TABLE_ACCEPT, None).await?);
        loop {
            let change = WatchLine::next(&mut lines).await?;
            if change.event_type == "DELETED" {
                // It is an hour old.
                continue;
            }
            let answer: ApiTable = serde_json::from_value(change.object).map_err(CommandError::failed)?;
            let text = if tables {
                add_rows(&mut table, &answer, args.output == OutputFormat::Wide);
                table.render_rows(&terminal)
            } else {
                render_documents(&answer, args)?
            };
            if !output::print_chunk(&text).map_err(CommandError::failed)? {
                return Ok(());
            }
        }
    })
}

/// The events about one object, for its description: without the column that says which.
pub(super) async fn event_table(
    client: &mut StatusClient,
    namespace: Option<&str>,
    selected: EventFilter<'_>,
) -> Result<TextTable, CommandError> {
    let query = selected.query(namespace).with_parameter("includeObject", "Object");
    let mut answer = fetch_events(client, &query).await?;
    if let Some(index) = answer.column_definitions.iter().position(|column| column.name == "Object") {
        answer.column_definitions.remove(index);
        for row in answer.rows.iter_mut().filter(|row| index < row.cells.len()) {
            row.cells.remove(index);
        }
    }
    Ok(to_text_table(&answer, false))
}

async fn fetch_events(client: &mut StatusClient, query: &ListQuery) -> Result<ApiTable, CommandError> {
    let mut answer: ApiTable =
        read_json(client.send(Method::GET, &query.path(), TABLE_ACCEPT, None).await?).await?;
    answer.rows.sort_by_cached_key(|row| last_seen(&row.object).to_owned());
    Ok(answer)
}

fn last_seen(event: &Value) -> &str {
    let again = value_at(event, "/series/lastObservedTime").as_str();
    again.unwrap_or_else(|| text_at(event, "/eventTime"))
}

/// The message last, since it is the one that wraps.
fn column_order(answer: &ApiTable, wide: bool) -> Vec<usize> {
    let shown = |index: &usize| {
        answer.column_definitions.get(*index).is_some_and(|column| wide || column.priority == 0)
    };
    let is_message =
        |index: &usize| answer.column_definitions.get(*index).is_some_and(|column| column.name == "Message");
    let (message, others): (Vec<usize>, Vec<usize>) =
        (0..answer.column_definitions.len()).filter(shown).partition(is_message);
    [others, message].concat()
}

fn to_text_table(answer: &ApiTable, wide: bool) -> TextTable {
    let columns =
        column_order(answer, wide).into_iter().filter_map(|index| answer.column_definitions.get(index));
    let mut table = TextTable::new(columns.map(|column| column.name.clone()));
    add_rows(&mut table, answer, wide);
    table
}

fn add_rows(table: &mut TextTable, answer: &ApiTable, wide: bool) {
    let order = column_order(answer, wide);
    for row in &answer.rows {
        table.add_row(order.iter().map(|index| row.cells.get(*index).map(cell_text).unwrap_or_default()));
    }
}

fn render_documents(answer: &ApiTable, args: &Args) -> Result<String, CommandError> {
    let document = |row: &TableRow| match args.output {
        OutputFormat::Name => Ok(format!("event/{}\n", object_name(&row.object))),
        OutputFormat::Yaml => {
            Ok("---\n".to_owned() + &serde_yaml::to_string(&row.object).map_err(CommandError::failed)?)
        }
        _ => Ok(format!("{}\n", row.object)),
    };
    answer.rows.iter().map(document).collect()
}
