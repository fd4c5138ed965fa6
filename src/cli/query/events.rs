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
    /// Show only the events of this object
    #[arg(long = "for", value_name = "KIND/NAME", value_parser = ObjectArg::parse)]
    about: Option<ObjectArg>,
    /// Print new events as they occur
    #[arg(short, long)]
    watch: bool,
    /// Output format
    #[arg(short, long, value_name = "FORMAT", value_enum, default_value = "table")]
    output: OutputFormat,
    /// Show only the events of this namespace
    #[arg(short, long, value_name = "NAMESPACE")]
    namespace: Option<String>,
    /// Show the events of all namespaces; the default
    #[arg(short = 'A', long, conflicts_with = "namespace")]
    all_namespaces: bool,
}

/// Selects events by their object.
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

/// Prints the events of the last hour, the oldest first.
pub(in crate::cli) fn events(args: &Args) -> Result<(), CommandError> {
    let filter = EventFilter {
        kind: args.about.as_ref().map(|about| about.kind),
        name: args.about.as_ref().map(|about| about.name.as_str()),
    };
    let namespace = args.namespace.as_deref().filter(|_| !args.all_namespaces);
    block_on(async {
        let terminal = Terminal::stdout();
        let mut client = StatusClient::connect(&args.instance.resolve()?).await?;
        let query = filter.query(namespace).with_parameter("includeObject", "Object");
        let table_response = fetch_events(&mut client, &query).await?;
        if let Some(about) = args.about.as_ref().filter(|_| table_response.rows.is_empty() && !args.watch) {
            // An object that is no longer declared may still have events. Without events, the name must exist.
            let list: Value = client.get(&ListQuery::new(about.kind, namespace).path()).await?;
            if !items(&list).iter().any(|item| object_name(item) == about.name) {
                return Err(report_unknown_name(&mut client, about.kind, &about.name, namespace).await);
            }
        }
        let version = text_at(&table_response.metadata, "/resourceVersion").to_owned();
        let tables = matches!(args.output, OutputFormat::Table | OutputFormat::Wide);
        let mut table = to_text_table(&table_response, args.output == OutputFormat::Wide);
        let text = if tables { table.render(&terminal) } else { render_documents(&table_response, args)? };
        if !output::print_chunk(&text).map_err(CommandError::failed)? || !args.watch {
            return Ok(());
        }
        let query = query.with_parameter("watch", "true").with_parameter("resourceVersion", version);
        let mut lines =
            ResponseLines::new(client.send(Method::GET, &query.path(), TABLE_ACCEPT, None).await?);
        loop {
            let change = WatchLine::next(&mut lines).await?;
            if change.event_type == "DELETED" {
                // The event has expired after an hour.
                continue;
            }
            let table_response: ApiTable =
                serde_json::from_value(change.object).map_err(CommandError::failed)?;
            let text = if tables {
                add_rows(&mut table, &table_response, args.output == OutputFormat::Wide);
                table.render_rows(&terminal)
            } else {
                render_documents(&table_response, args)?
            };
            if !output::print_chunk(&text).map_err(CommandError::failed)? {
                return Ok(());
            }
        }
    })
}

/// Returns the events of one object for its description, without the column that names the object.
pub(super) async fn event_table(
    client: &mut StatusClient,
    namespace: Option<&str>,
    filter: EventFilter<'_>,
) -> Result<TextTable, CommandError> {
    let query = filter.query(namespace).with_parameter("includeObject", "Object");
    let mut response = fetch_events(client, &query).await?;
    if let Some(index) = response.column_definitions.iter().position(|column| column.name == "Object") {
        response.column_definitions.remove(index);
        for row in response.rows.iter_mut().filter(|row| index < row.cells.len()) {
            row.cells.remove(index);
        }
    }
    Ok(to_text_table(&response, false))
}

async fn fetch_events(client: &mut StatusClient, query: &ListQuery) -> Result<ApiTable, CommandError> {
    let mut response: ApiTable =
        read_json(client.send(Method::GET, &query.path(), TABLE_ACCEPT, None).await?).await?;
    response.rows.sort_by_cached_key(|row| last_seen(&row.object).to_owned());
    Ok(response)
}

fn last_seen(event: &Value) -> &str {
    let last_observed = value_at(event, "/series/lastObservedTime").as_str();
    last_observed.unwrap_or_else(|| text_at(event, "/eventTime"))
}

/// Returns the order of the columns: the message is last, since it is the one that wraps.
fn column_order(response: &ApiTable, wide: bool) -> Vec<usize> {
    let is_shown = |index: &usize| {
        response.column_definitions.get(*index).is_some_and(|column| wide || column.priority == 0)
    };
    let is_message = |index: &usize| {
        response.column_definitions.get(*index).is_some_and(|column| column.name == "Message")
    };
    let (message, others): (Vec<usize>, Vec<usize>) =
        (0..response.column_definitions.len()).filter(is_shown).partition(is_message);
    [others, message].concat()
}

fn to_text_table(response: &ApiTable, wide: bool) -> TextTable {
    let columns =
        column_order(response, wide).into_iter().filter_map(|index| response.column_definitions.get(index));
    let mut table = TextTable::new(columns.map(|column| column.name.clone()));
    add_rows(&mut table, response, wide);
    table
}

fn add_rows(table: &mut TextTable, response: &ApiTable, wide: bool) {
    let order = column_order(response, wide);
    for row in &response.rows {
        table.add_row(order.iter().map(|index| row.cells.get(*index).map(cell_text).unwrap_or_default()));
    }
}

fn render_documents(response: &ApiTable, args: &Args) -> Result<String, CommandError> {
    let document = |row: &TableRow| match args.output {
        OutputFormat::Name => Ok(format!("event/{}\n", object_name(&row.object))),
        OutputFormat::Yaml => {
            Ok("---\n".to_owned() + &serde_yaml::to_string(&row.object).map_err(CommandError::failed)?)
        }
        _ => Ok(format!("{}\n", row.object)),
    };
    response.rows.iter().map(document).collect()
}
