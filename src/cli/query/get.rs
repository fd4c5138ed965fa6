use clap::ValueEnum;
use hyper::Method;
use serde::Deserialize;
use serde_json::{Value, json};

use super::super::client::{ResponseLines, StatusClient, json as read_json};
use super::super::error::CommandError;
use super::super::instance::InstanceArgs;
use super::super::output::{self, Terminal};
use super::super::runtime::block_on;
use super::object_arg::{ListQuery, Selection, WatchLine, at, items, name_of, text_at, unknown_to, unread};
use super::text_table::TextTable;
use crate::report::ObjectKind;
use crate::resource::GROUP;

/// What a table is asked for with.
pub(super) const TABLE: &str = "application/json;as=Table;v=v1;g=meta.k8s.io,application/json";

/// The arguments of `evenkeel get`.
#[derive(Debug, clap::Args)]
pub(in crate::cli) struct Args {
    /// mcpservers (mcps), skills (skl), sources (src), mcp for servers and skills, or several with commas; KIND/NAME, of
    /// which there may be more, is one object
    #[arg(value_name = "KIND")]
    kind: String,
    /// Only these
    #[arg(value_name = "NAME")]
    names: Vec<String>,
    #[command(flatten)]
    listing: ListArgs,
    /// Go on with every change
    #[arg(short, long)]
    watch: bool,
}

/// Which objects, and how they are printed.
#[derive(Clone, Debug, clap::Args)]
pub(in crate::cli) struct ListArgs {
    #[command(flatten)]
    pub which: InstanceArgs,
    /// How they are printed
    #[arg(short, long, value_name = "FORMAT", value_enum, default_value = "table")]
    pub output: OutputFormat,
    /// Of this namespace
    #[arg(short, long, value_name = "NAMESPACE", default_value = "default")]
    pub namespace: String,
    /// Of all namespaces
    #[arg(short = 'A', long, conflicts_with = "namespace")]
    pub all_namespaces: bool,
    /// Only those with these labels, such as area=code or 'tier in (a, b)'
    #[arg(short = 'l', long, value_name = "SELECTOR")]
    pub selector: Option<String>,
}

/// How objects are printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(in crate::cli) enum OutputFormat {
    /// The columns that matter most
    Table,
    /// All columns
    Wide,
    /// The objects of the status API
    Json,
    /// The same as YAML
    Yaml,
    /// KIND/NAME
    Name,
}

/// A table as the API gives it.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct ApiTable {
    pub column_definitions: Vec<TableColumn>,
    #[serde(default)]
    pub rows: Vec<TableRow>,
    pub metadata: Value,
}

#[derive(Debug, Deserialize)]
pub(super) struct TableColumn {
    pub name: String,
    #[serde(default)]
    pub priority: i32,
}

#[derive(Debug, Deserialize)]
pub(super) struct TableRow {
    pub cells: Vec<Value>,
    #[serde(default)]
    pub object: Value,
}

/// Prints objects.
pub(in crate::cli) fn get(args: &Args) -> Result<(), CommandError> {
    let words: Vec<_> = std::iter::once(&args.kind).chain(&args.names).map(String::as_str).collect();
    let selection = Selection::parse(&words).map_err(CommandError::Usage)?;
    args.listing.print(&selection, args.watch)
}

impl ListArgs {
    /// The namespace, unless all are meant.
    pub fn namespace(&self) -> Option<&str> {
        (!self.all_namespaces).then_some(&*self.namespace)
    }

    /// With all columns, if columns are printed.
    pub fn wide(mut self) -> Self {
        if self.output == OutputFormat::Table {
            self.output = OutputFormat::Wide;
        }
        self
    }

    /// Prints these objects.
    pub fn print(&self, selection: &Selection, watch: bool) -> Result<(), CommandError> {
        block_on(async {
            let mut client = StatusClient::connect(&self.which.whose()?).await?;
            match (watch, &*selection.kinds.0, &*selection.names) {
                (false, ..) if matches!(self.output, OutputFormat::Table | OutputFormat::Wide) => {
                    self.tables(&mut client, selection).await
                }
                (false, ..) => self.documents(&mut client, selection).await,
                (true, [kind], []) => self.watch(client, *kind, None).await,
                (true, [kind], [(_, name)]) => self.watch(client, *kind, Some(name)).await,
                (true, ..) => Err(CommandError::Usage("--watch is for one kind, and one name or all".into())),
            }
        })
    }

    fn query(&self, kind: ObjectKind) -> ListQuery {
        self.query_in(kind, self.namespace())
    }

    fn query_in(&self, kind: ObjectKind, namespace: Option<&str>) -> ListQuery {
        let query = ListQuery::of(kind, namespace);
        match &self.selector {
            Some(selector) => query.with("labelSelector", selector),
            None => query,
        }
    }

    async fn tables(&self, client: &mut StatusClient, selection: &Selection) -> Result<(), CommandError> {
        let kinds = &*selection.kinds.0;
        let terminal = Terminal::stdout();
        let mut text = String::new();
        let mut found = Vec::new();
        for kind in kinds {
            let body = client.send(Method::GET, &self.query(*kind).path(), TABLE, None).await?;
            let mut answer: ApiTable = read_json(body).await?;
            answer.rows.retain(|row| selection.holds(*kind, name_of(&row.object)));
            found.extend(answer.rows.iter().map(|row| (*kind, name_of(&row.object).to_owned())));
            if answer.rows.is_empty() {
                continue;
            }
            let prefix =
                if kinds.len() > 1 { format!("{}/", kind.name().to_lowercase()) } else { String::new() };
            let mut table = self.table(&answer);
            self.fill(&mut table, &answer, &prefix);
            if !text.is_empty() {
                text.push('\n');
            }
            text += &table.whole(&terminal);
            if *kind == ObjectKind::McpServer && terminal.width.is_some() {
                text += &summary(&answer);
            }
        }
        output::print(&text).map_err(CommandError::failed)?;
        self.missing(client, selection, &found).await?;
        if text.is_empty() {
            self.nothing(client, kinds).await?;
        }
        if selection.names.is_empty() && !kinds.contains(&ObjectKind::Source) {
            // No table of objects shows it: a file that could not be read may declare some.
            let sources: Value = client.get(&ListQuery::of(ObjectKind::Source, None).path()).await?;
            if let Some(note) = unread(items(&sources)) {
                output::note(&note);
            }
        }
        Ok(())
    }

    /// Says that there is nothing, and if it is elsewhere.
    async fn nothing(&self, client: &mut StatusClient, kinds: &[ObjectKind]) -> Result<(), CommandError> {
        let mut all = 0;
        for kind in kinds {
            let list: Value = client.get(&self.query_in(*kind, None).path()).await?;
            all += items(&list).len();
        }
        let within = self.namespace().map(|name| format!(" in namespace {name}")).unwrap_or_default();
        let elsewhere = if all == 0 { String::new() } else { format!("; {all} in other namespaces: -A") };
        let kinds: Vec<_> = kinds.iter().map(|kind| kind.plural()).collect();
        output::note(&format!("no {} found{within}{elsewhere}", kinds.join(" or ")));
        Ok(())
    }

    /// A failure if a name was asked for that nobody has.
    async fn missing(
        &self,
        client: &mut StatusClient,
        selection: &Selection,
        found: &[(ObjectKind, String)],
    ) -> Result<(), CommandError> {
        for (kinds, name) in &selection.names {
            if let [kind, ..] = &*kinds.0
                && !found.iter().any(|(kind, found)| found == name && kinds.0.contains(kind))
            {
                return Err(unknown_to(client, *kind, name, self.namespace()).await);
            }
        }
        Ok(())
    }

    fn table(&self, answer: &ApiTable) -> TextTable {
        let columns = answer.column_definitions.iter().filter(|column| self.shows(column));
        let headings = columns.map(|column| column.name.clone());
        TextTable::new(self.all_namespaces.then(|| "Namespace".to_owned()).into_iter().chain(headings))
    }

    fn shows(&self, column: &TableColumn) -> bool {
        column.priority == 0 || self.output == OutputFormat::Wide
    }

    fn fill(&self, table: &mut TextTable, answer: &ApiTable, prefix: &str) {
        for row in &answer.rows {
            let namespace = text_at(&row.object, "/metadata/namespace").to_owned();
            let cells =
                row.cells.iter().zip(&answer.column_definitions).filter(|(_, column)| self.shows(column));
            let cells = cells.map(|(cell, column)| {
                if column.name == "Name" { format!("{prefix}{}", text_of(cell)) } else { text_of(cell) }
            });
            table.row(self.all_namespaces.then_some(namespace).into_iter().chain(cells));
        }
    }

    async fn documents(&self, client: &mut StatusClient, selection: &Selection) -> Result<(), CommandError> {
        let mut objects = Vec::new();
        let mut found = Vec::new();
        for kind in &selection.kinds.0 {
            let list: Value = client.get(&self.query(*kind).path()).await?;
            let wanted = items(&list).iter().filter(|item| selection.holds(*kind, name_of(item)));
            found.extend(wanted.clone().map(|item| (*kind, name_of(item).to_owned())));
            objects.extend(wanted.cloned());
        }
        self.missing(client, selection, &found).await?;
        let text = match (self.output, &*objects, &*selection.names) {
            (OutputFormat::Name, ..) => objects.iter().map(named).collect(),
            (_, [object], [_]) => self.document(object)?,
            _ => {
                let list = json!({
                    "apiVersion": "v1", "kind": "List", "metadata": { "resourceVersion": "" }, "items": objects,
                });
                self.document(&list)?
            }
        };
        output::print(&text).map_err(CommandError::failed)
    }

    fn document(&self, value: &Value) -> Result<String, CommandError> {
        match self.output {
            OutputFormat::Yaml => serde_yaml::to_string(value).map_err(CommandError::failed),
            OutputFormat::Name => Ok(named(value)),
            _ => Ok(format!("{value:#}\n")),
        }
    }

    /// Prints what there is and then every change, until the daemon or the reader goes.
    async fn watch(
        &self,
        mut client: StatusClient,
        kind: ObjectKind,
        name: Option<&String>,
    ) -> Result<(), CommandError> {
        let terminal = Terminal::stdout();
        let query = match name {
            Some(name) => self.query(kind).named(name),
            None => self.query(kind),
        };
        let tables = matches!(self.output, OutputFormat::Table | OutputFormat::Wide);
        let accept = if tables { TABLE } else { "application/json" };
        if let Some(name) = name {
            let all: Value = client.get(&self.query(kind).path()).await?;
            if !items(&all).iter().any(|item| name_of(item) == name) {
                return Err(unknown_to(&mut client, kind, name, self.namespace()).await);
            }
        }
        // What there is comes first, as one list: so that the columns fit.
        let body = client.send(Method::GET, &query.path(), accept, None).await?;
        let list: Value = read_json(body).await?;
        let version = text_at(&list, "/metadata/resourceVersion").to_owned();
        let mut table = TextTable::default();
        if tables {
            let answer: ApiTable = serde_json::from_value(list).map_err(CommandError::failed)?;
            table = self.table(&answer);
            self.fill(&mut table, &answer, "");
            if !output::print_more(&table.whole(&terminal)).map_err(CommandError::failed)? {
                return Ok(());
            }
        } else {
            for item in items(&list) {
                if !output::print_more(&self.document(item)?).map_err(CommandError::failed)? {
                    return Ok(());
                }
            }
        }
        let query = query.with("watch", "true").with("resourceVersion", version);
        let mut lines = ResponseLines::of(client.send(Method::GET, &query.path(), accept, None).await?);
        loop {
            let change = WatchLine::next(&mut lines).await?;
            if change.kind == "DELETED" {
                let object = if tables { at(&change.object, "/rows/0/object") } else { &change.object };
                output::note(&format!("{}/{} is no longer declared", kind.name(), name_of(object)));
                continue;
            }
            let text = if tables {
                let answer: ApiTable = serde_json::from_value(change.object).map_err(CommandError::failed)?;
                self.fill(&mut table, &answer, "");
                table.rest(&terminal)
            } else {
                self.document(&change.object)?
            };
            if !output::print_more(&text).map_err(CommandError::failed)? {
                return Ok(());
            }
        }
    }
}

/// How far all these servers are together, for a person.
fn summary(answer: &ApiTable) -> String {
    let column = |name| answer.column_definitions.iter().position(|column| column.name == name);
    let (ready, tools) = (column("Ready"), column("Tools"));
    let cell =
        |row: &TableRow, column: Option<usize>| column.and_then(|column| row.cells.get(column).cloned());
    let attached =
        answer.rows.iter().filter(|row| cell(row, ready).is_some_and(|cell| cell == "True")).count();
    let tools: u64 = answer.rows.iter().filter_map(|row| cell(row, tools)?.as_u64()).sum();
    format!("{attached} of {} attached, {tools} tools\n", answer.rows.len())
}

/// A cell as text.
pub(super) fn text_of(cell: &Value) -> String {
    match cell {
        Value::Null => String::new(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

fn named(object: &Value) -> String {
    let kind = text_at(object, "/kind").to_lowercase();
    format!("{kind}.{GROUP}/{}\n", name_of(object))
}
