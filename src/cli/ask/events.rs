use hyper::Method;
use serde_json::Value;

use super::super::client::{Client, Lines, json as read_json};
use super::super::failure::Failure;
use super::super::output::{self, Terminal};
use super::super::runtime::block_on;
use super::super::which::Which;
use super::get::{Answer, Output, Row, TABLE, text_of};
use super::table::Table;
use super::target::{Change, Query, Target, at, items, name_of, text_at, unknown_to};
use crate::report::Kind;

/// The arguments of `evenkeel events`.
#[derive(Debug, clap::Args)]
pub(in crate::cli) struct Args {
    #[command(flatten)]
    which: Which,
    /// Only of this object
    #[arg(long = "for", value_name = "KIND/NAME", value_parser = Target::parse)]
    about: Option<Target>,
    /// Go on with every new one
    #[arg(short, long)]
    watch: bool,
    /// How they are printed
    #[arg(short, long, value_name = "FORMAT", value_enum, default_value = "table")]
    output: Output,
    /// Only of this namespace
    #[arg(short, long, value_name = "NAMESPACE")]
    namespace: Option<String>,
    /// Of all namespaces, which is so without --namespace too
    #[arg(short = 'A', long, conflicts_with = "namespace")]
    all_namespaces: bool,
}

/// Which events are meant.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Selected<'a> {
    pub kind: Option<Kind>,
    pub name: Option<&'a str>,
}

impl Selected<'_> {
    fn query(self, namespace: Option<&str>) -> Query {
        let fields = [
            self.kind.map(|kind| format!("regarding.kind={}", kind.name())),
            self.name.map(|name| format!("regarding.name={name}")),
        ];
        let fields: Vec<_> = fields.into_iter().flatten().collect();
        let query = Query::events(namespace);
        if fields.is_empty() { query } else { query.with("fieldSelector", fields.join(",")) }
    }
}

/// Prints what happened in the last hour, the oldest first.
pub(in crate::cli) fn events(args: &Args) -> Result<(), Failure> {
    let selected = Selected {
        kind: args.about.as_ref().map(|about| about.kind),
        name: args.about.as_ref().map(|about| about.name.as_str()),
    };
    let namespace = args.namespace.as_deref().filter(|_| !args.all_namespaces);
    block_on(async {
        let terminal = Terminal::stdout();
        let mut client = Client::connect(&args.which.whose()?).await?;
        let query = selected.query(namespace).with("includeObject", "Object");
        let answer = ask(&mut client, &query).await?;
        if let Some(about) = args.about.as_ref().filter(|_| answer.rows.is_empty() && !args.watch) {
            // What is not declared any more may still be told of; of what never was, there is nothing to tell.
            let list: Value = client.get(&Query::of(about.kind, namespace).path()).await?;
            if !items(&list).iter().any(|item| name_of(item) == about.name) {
                return Err(unknown_to(&mut client, about.kind, &about.name, namespace).await);
            }
        }
        let version = text_at(&answer.metadata, "/resourceVersion").to_owned();
        let tables = matches!(args.output, Output::Table | Output::Wide);
        let mut table = table_of(&answer, args.output == Output::Wide);
        let text = if tables { table.whole(&terminal) } else { documents(&answer, args)? };
        if !output::print_more(&text).map_err(Failure::failed)? || !args.watch {
            return Ok(());
        }
        let query = query.with("watch", "true").with("resourceVersion", version);
        let mut lines = Lines::of(client.send(Method::GET, &query.path(), TABLE, None).await?);
        loop {
            let change = Change::next(&mut lines).await?;
            if change.kind == "DELETED" {
                // It is an hour old.
                continue;
            }
            let answer: Answer = serde_json::from_value(change.object).map_err(Failure::failed)?;
            let text = if tables {
                fill(&mut table, &answer, args.output == Output::Wide);
                table.rest(&terminal)
            } else {
                documents(&answer, args)?
            };
            if !output::print_more(&text).map_err(Failure::failed)? {
                return Ok(());
            }
        }
    })
}

/// The events about one object, for its description: without the column that says which.
pub(super) async fn table(
    client: &mut Client,
    namespace: Option<&str>,
    selected: Selected<'_>,
) -> Result<Table, Failure> {
    let query = selected.query(namespace).with("includeObject", "Object");
    let mut answer = ask(client, &query).await?;
    if let Some(index) = answer.column_definitions.iter().position(|column| column.name == "Object") {
        answer.column_definitions.remove(index);
        for row in answer.rows.iter_mut().filter(|row| index < row.cells.len()) {
            row.cells.remove(index);
        }
    }
    Ok(table_of(&answer, false))
}

async fn ask(client: &mut Client, query: &Query) -> Result<Answer, Failure> {
    let mut answer: Answer = read_json(client.send(Method::GET, &query.path(), TABLE, None).await?).await?;
    answer.rows.sort_by_cached_key(|row| last_seen(&row.object).to_owned());
    Ok(answer)
}

fn last_seen(event: &Value) -> &str {
    let again = at(event, "/series/lastObservedTime").as_str();
    again.unwrap_or_else(|| text_at(event, "/eventTime"))
}

/// The message last, since it is the one that wraps.
fn order(answer: &Answer, wide: bool) -> Vec<usize> {
    let shown = |index: &usize| {
        answer.column_definitions.get(*index).is_some_and(|column| wide || column.priority == 0)
    };
    let is_message =
        |index: &usize| answer.column_definitions.get(*index).is_some_and(|column| column.name == "Message");
    let (message, others): (Vec<usize>, Vec<usize>) =
        (0..answer.column_definitions.len()).filter(shown).partition(is_message);
    [others, message].concat()
}

fn table_of(answer: &Answer, wide: bool) -> Table {
    let columns = order(answer, wide).into_iter().filter_map(|index| answer.column_definitions.get(index));
    let mut table = Table::new(columns.map(|column| column.name.clone()));
    fill(&mut table, answer, wide);
    table
}

fn fill(table: &mut Table, answer: &Answer, wide: bool) {
    let order = order(answer, wide);
    for row in &answer.rows {
        table.row(order.iter().map(|index| row.cells.get(*index).map(text_of).unwrap_or_default()));
    }
}

fn documents(answer: &Answer, args: &Args) -> Result<String, Failure> {
    let document = |row: &Row| match args.output {
        Output::Name => Ok(format!("event/{}\n", name_of(&row.object))),
        Output::Yaml => {
            Ok("---\n".to_owned() + &serde_yaml::to_string(&row.object).map_err(Failure::failed)?)
        }
        _ => Ok(format!("{}\n", row.object)),
    };
    answer.rows.iter().map(document).collect()
}
