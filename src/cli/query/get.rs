use clap::ValueEnum;
use hyper::Method;
use serde::Deserialize;
use serde_json::{Value, json};

use super::super::client::{ResponseLines, StatusClient, read_json};
use super::super::error::CommandError;
use super::super::instance::InstanceArgs;
use super::super::output::{self, Terminal};
use super::super::runtime::block_on;
use super::object_arg::{
    ListQuery, Selection, WatchLine, items, object_name, report_unknown_name, source_fault_note, text_at,
    value_at,
};
use super::text_table::TextTable;
use crate::report::ObjectKind;
use crate::resource::GROUP;

/// The `Accept` header that requests a table.
pub(super) const TABLE_ACCEPT: &str = "application/json;as=Table;v=v1;g=meta.k8s.io,application/json";

/// The arguments of `evenkeel get`.
#[derive(Debug, clap::Args)]
pub(in crate::cli) struct Args {
    /// mcpservers (mcps), skills (skl), sources (src), mcp (servers and skills), or a comma-separated list of them; or
    /// KIND/NAME, one or more
    #[arg(value_name = "KIND")]
    kind: String,
    /// Names of the objects [default: all]
    #[arg(value_name = "NAME")]
    names: Vec<String>,
    #[command(flatten)]
    listing: ListArgs,
    /// After listing the objects, print every change
    #[arg(short, long)]
    watch: bool,
}

/// Arguments that select objects and the output format.
#[derive(Clone, Debug, clap::Args)]
pub(in crate::cli) struct ListArgs {
    #[command(flatten)]
    pub instance: InstanceArgs,
    /// Output format
    #[arg(short, long, value_name = "FORMAT", value_enum, default_value = "table")]
    pub output: OutputFormat,
    /// Namespace of the objects
    #[arg(short, long, value_name = "NAMESPACE", default_value = "default")]
    pub namespace: String,
    /// List the objects of all namespaces
    #[arg(short = 'A', long, conflicts_with = "namespace")]
    pub all_namespaces: bool,
    /// Label selector, such as area=code or 'tier in (a, b)'
    #[arg(short = 'l', long, value_name = "SELECTOR")]
    pub selector: Option<String>,
}

/// The output format of objects.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(in crate::cli) enum OutputFormat {
    /// Table with the most important columns
    Table,
    /// Table with all columns
    Wide,
    /// JSON objects of the status API
    Json,
    /// YAML objects of the status API
    Yaml,
    /// KIND/NAME only
    Name,
}

/// A `Table` of the status API.
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
    let targets: Vec<_> = std::iter::once(&args.kind).chain(&args.names).map(String::as_str).collect();
    let selection = Selection::parse(&targets).map_err(CommandError::Usage)?;
    args.listing.print(&selection, args.watch)
}

impl ListArgs {
    /// Returns the namespace; `None` for all namespaces.
    pub fn namespace(&self) -> Option<&str> {
        (!self.all_namespaces).then_some(&*self.namespace)
    }

    /// Returns the same arguments with all columns, if a table is printed.
    pub fn wide(mut self) -> Self {
        if self.output == OutputFormat::Table {
            self.output = OutputFormat::Wide;
        }
        self
    }

    /// Prints the selected objects.
    pub fn print(&self, selection: &Selection, watch: bool) -> Result<(), CommandError> {
        block_on(async {
            let mut client = StatusClient::connect(&self.instance.resolve()?).await?;
            match (watch, &*selection.kinds.0, &*selection.names) {
                (false, ..) if matches!(self.output, OutputFormat::Table | OutputFormat::Wide) => {
                    self.print_tables(&mut client, selection).await
                }
                (false, ..) => self.print_documents(&mut client, selection).await,
                (true, [kind], []) => self.watch(client, *kind, None).await,
                (true, [kind], [(_, name)]) => self.watch(client, *kind, Some(name)).await,
                (true, ..) => {
                    Err(CommandError::Usage("--watch supports one kind, with one name or all objects".into()))
                }
            }
        })
    }

    fn query(&self, kind: ObjectKind) -> ListQuery {
        self.query_in(kind, self.namespace())
    }

    fn query_in(&self, kind: ObjectKind, namespace: Option<&str>) -> ListQuery {
        let query = ListQuery::new(kind, namespace);
        match &self.selector {
            Some(selector) => query.with_parameter("labelSelector", selector),
            None => query,
        }
    }

    async fn print_tables(
        &self,
        client: &mut StatusClient,
        selection: &Selection,
    ) -> Result<(), CommandError> {
        let kinds = &*selection.kinds.0;
        let terminal = Terminal::stdout();
        let mut text = String::new();
        let mut found = Vec::new();
        for kind in kinds {
            let body = client.send(Method::GET, &self.query(*kind).path(), TABLE_ACCEPT, None).await?;
            let mut response: ApiTable = read_json(body).await?;
            response.rows.retain(|row| selection.contains(*kind, object_name(&row.object)));
            found.extend(response.rows.iter().map(|row| (*kind, object_name(&row.object).to_owned())));
            if response.rows.is_empty() {
                continue;
            }
            let prefix =
                if kinds.len() > 1 { format!("{}/", kind.name().to_lowercase()) } else { String::new() };
            let mut table = self.new_table(&response);
            self.add_rows(&mut table, &response, &prefix);
            if !text.is_empty() {
                text.push('\n');
            }
            text += &table.render(&terminal);
            if *kind == ObjectKind::McpServer && terminal.width.is_some() {
                text += &summary(&response);
            }
        }
        output::print(&text).map_err(CommandError::failed)?;
        self.ensure_names_found(client, selection, &found).await?;
        if text.is_empty() {
            self.note_nothing_found(client, kinds).await?;
        }
        if selection.names.is_empty() && !kinds.contains(&ObjectKind::Source) {
            // A file that could not be read may declare objects that the table lacks.
            let sources: Value = client.get(&ListQuery::new(ObjectKind::Source, None).path()).await?;
            if let Some(note) = source_fault_note(items(&sources)) {
                output::print_note(&note);
            }
        }
        Ok(())
    }

    /// Notes that no objects were found, and how many there are in other namespaces.
    async fn note_nothing_found(
        &self,
        client: &mut StatusClient,
        kinds: &[ObjectKind],
    ) -> Result<(), CommandError> {
        let mut all = 0;
        for kind in kinds {
            let list: Value = client.get(&self.query_in(*kind, None).path()).await?;
            all += items(&list).len();
        }
        let within = self.namespace().map(|name| format!(" in namespace {name}")).unwrap_or_default();
        let elsewhere =
            if all == 0 { String::new() } else { format!("; {all} in other namespaces (use -A)") };
        let kinds: Vec<_> = kinds.iter().map(|kind| kind.plural()).collect();
        output::print_note(&format!("no {} found{within}{elsewhere}", kinds.join(" or ")));
        Ok(())
    }

    /// Fails if a requested name was not found.
    async fn ensure_names_found(
        &self,
        client: &mut StatusClient,
        selection: &Selection,
        found: &[(ObjectKind, String)],
    ) -> Result<(), CommandError> {
        for (kinds, name) in &selection.names {
            if let [kind, ..] = &*kinds.0
                && !found.iter().any(|(kind, found)| found == name && kinds.0.contains(kind))
            {
                return Err(report_unknown_name(client, *kind, name, self.namespace()).await);
            }
        }
        Ok(())
    }

    fn new_table(&self, response: &ApiTable) -> TextTable {
        let columns = response.column_definitions.iter().filter(|column| self.shows_column(column));
        let headings = columns.map(|column| column.name.clone());
        TextTable::new(self.all_namespaces.then(|| "Namespace".to_owned()).into_iter().chain(headings))
    }

    fn shows_column(&self, column: &TableColumn) -> bool {
        column.priority == 0 || self.output == OutputFormat::Wide
    }

    fn add_rows(&self, table: &mut TextTable, response: &ApiTable, prefix: &str) {
        for row in &response.rows {
            let namespace = text_at(&row.object, "/metadata/namespace").to_owned();
            let cells = row
                .cells
                .iter()
                .zip(&response.column_definitions)
                .filter(|(_, column)| self.shows_column(column));
            let cells = cells.map(|(cell, column)| {
                if column.name == "Name" { format!("{prefix}{}", cell_text(cell)) } else { cell_text(cell) }
            });
            table.add_row(self.all_namespaces.then_some(namespace).into_iter().chain(cells));
        }
    }

    async fn print_documents(
        &self,
        client: &mut StatusClient,
        selection: &Selection,
    ) -> Result<(), CommandError> {
        let mut objects = Vec::new();
        let mut found = Vec::new();
        for kind in &selection.kinds.0 {
            let list: Value = client.get(&self.query(*kind).path()).await?;
            let selected = items(&list).iter().filter(|item| selection.contains(*kind, object_name(item)));
            found.extend(selected.clone().map(|item| (*kind, object_name(item).to_owned())));
            objects.extend(selected.cloned());
        }
        self.ensure_names_found(client, selection, &found).await?;
        let text = match (self.output, &*objects, &*selection.names) {
            (OutputFormat::Name, ..) => objects.iter().map(object_reference).collect(),
            (_, [object], [_]) => self.render_document(object)?,
            _ => {
                let list = json!({
                    "apiVersion": "v1", "kind": "List", "metadata": { "resourceVersion": "" }, "items": objects,
                });
                self.render_document(&list)?
            }
        };
        output::print(&text).map_err(CommandError::failed)
    }

    fn render_document(&self, value: &Value) -> Result<String, CommandError> {
        match self.output {
            OutputFormat::Yaml => serde_yaml::to_string(value).map_err(CommandError::failed),
            OutputFormat::Name => Ok(object_reference(value)),
            _ => Ok(format!("{value:#}\n")),
        }
    }

    /// Prints the existing objects and then every change, until the instance ends or stdout is closed.
    async fn watch(
        &self,
        mut client: StatusClient,
        kind: ObjectKind,
        name: Option<&String>,
    ) -> Result<(), CommandError> {
        let terminal = Terminal::stdout();
        let query = match name {
            Some(name) => self.query(kind).with_name(name),
            None => self.query(kind),
        };
        let tables = matches!(self.output, OutputFormat::Table | OutputFormat::Wide);
        let accept = if tables { TABLE_ACCEPT } else { "application/json" };
        if let Some(name) = name {
            let all: Value = client.get(&self.query(kind).path()).await?;
            if !items(&all).iter().any(|item| object_name(item) == name) {
                return Err(report_unknown_name(&mut client, kind, name, self.namespace()).await);
            }
        }
        // The existing objects come first as one list, so that the columns fit.
        let body = client.send(Method::GET, &query.path(), accept, None).await?;
        let list: Value = read_json(body).await?;
        let version = text_at(&list, "/metadata/resourceVersion").to_owned();
        let mut table = TextTable::default();
        if tables {
            let response: ApiTable = serde_json::from_value(list).map_err(CommandError::failed)?;
            table = self.new_table(&response);
            self.add_rows(&mut table, &response, "");
            if !output::print_chunk(&table.render(&terminal)).map_err(CommandError::failed)? {
                return Ok(());
            }
        } else {
            for item in items(&list) {
                if !output::print_chunk(&self.render_document(item)?).map_err(CommandError::failed)? {
                    return Ok(());
                }
            }
        }
        let query = query.with_parameter("watch", "true").with_parameter("resourceVersion", version);
        let mut lines = ResponseLines::new(client.send(Method::GET, &query.path(), accept, None).await?);
        loop {
            let change = WatchLine::next(&mut lines).await?;
            if change.event_type == "DELETED" {
                let object = if tables { value_at(&change.object, "/rows/0/object") } else { &change.object };
                output::print_note(&format!("{}/{} is no longer declared", kind.name(), object_name(object)));
                continue;
            }
            let text = if tables {
                let response: ApiTable =
                    serde_json::from_value(change.object).map_err(CommandError::failed)?;
                self.add_rows(&mut table, &response, "");
                table.render_rows(&terminal)
            } else {
                self.render_document(&change.object)?
            };
            if !output::print_chunk(&text).map_err(CommandError::failed)? {
                return Ok(());
            }
        }
    }
}

/// Returns a summary line of all servers in a table.
fn summary(response: &ApiTable) -> String {
    let column = |name| response.column_definitions.iter().position(|column| column.name == name);
    let (ready, tools) = (column("Ready"), column("Tools"));
    let cell =
        |row: &TableRow, column: Option<usize>| column.and_then(|column| row.cells.get(column).cloned());
    let attached =
        response.rows.iter().filter(|row| cell(row, ready).is_some_and(|cell| cell == "True")).count();
    let tools: u64 = response.rows.iter().filter_map(|row| cell(row, tools)?.as_u64()).sum();
    format!("{attached} of {} attached, {tools} tools\n", response.rows.len())
}

/// Returns a cell as text.
pub(super) fn cell_text(cell: &Value) -> String {
    match cell {
        Value::Null => String::new(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

fn object_reference(object: &Value) -> String {
    let kind = text_at(object, "/kind").to_lowercase();
    format!("{kind}.{GROUP}/{}\n", object_name(object))
}
