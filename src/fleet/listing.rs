use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use serde::Deserialize;
use serde_json::value::RawValue;
use tokio::time::{Instant, timeout_at};

use crate::resource::{Problem, Reason};
use crate::upstream::{Item, ServerLists};
use crate::wire::{Connection, ConnectionError, ListKind, RpcResponse, is_unknown_method, parse_members};

/// The most pages of a list: bounds lists that never end.
const MAX_PAGES: usize = 1_000;
/// The longest error message about a page, in characters.
const MAX_ERROR_MESSAGE_CHARS: usize = 300;
/// The most items of a list.
const MAX_ITEMS: usize = 20_000;
/// The size limit of a list, all its pages together.
const MAX_LIST_BYTES: usize = 16 << 20;
/// The timeout of the lists other than the tools while a server attaches; lists that time out are read again later.
const OPTIONAL_LISTS_TIMEOUT: Duration = Duration::from_secs(10);

/// One complete list of a server.
#[derive(Clone, Debug)]
pub(super) struct ListResult {
    /// Its items, ordered by name, each name once.
    pub(super) items: Vec<Item>,
    /// A protocol violation of the server that was tolerated.
    pub(super) tolerated_problem: Option<Problem>,
}

/// All lists of a server.
#[derive(Clone, Debug, Default)]
pub(super) struct ServerListing {
    pub(super) lists: ServerLists,
    /// The problems of lists that could not be read, and tolerated protocol violations.
    pub(super) degraded: BTreeMap<ListKind, Problem>,
}

/// Reads all lists concurrently, by `until` at the latest.
///
/// # Errors
///
/// Fails if the tools cannot be read; the server is then not attached. Another list that fails, or takes longer than
/// half of the time, is only reported as degraded, unless its error ends the connection.
pub(super) async fn read_all(
    connection: &Connection,
    until: Instant,
) -> Result<ServerListing, ConnectionError> {
    let now = Instant::now();
    let optional_deadline = now + OPTIONAL_LISTS_TIMEOUT.min(until.saturating_duration_since(now) / 2);
    let read_optional = async |list| {
        let read = timeout_at(optional_deadline, Box::pin(read_list(connection, list))).await;
        let read = read.unwrap_or_else(|_| {
            let seconds = optional_deadline.duration_since(now).as_secs_f64();
            Err(ConnectionError::new(Reason::Timeout, format!("no answer within {seconds} s"))
                .into_dispatched())
        });
        match read {
            Err(error) if error.ends_connection() || error.problem.reason == Reason::PolicyDenied => {
                Err(error)
            }
            read => Ok(read),
        }
    };
    let (tools, prompts, resources, templates) = tokio::try_join!(
        Box::pin(read_list(connection, ListKind::Tools)),
        read_optional(ListKind::Prompts),
        read_optional(ListKind::Resources),
        read_optional(ListKind::Templates)
    )?;
    let mut listing = ServerListing::default();
    let all = [Ok(tools), prompts, resources, templates];
    for (list, read) in ListKind::ALL.into_iter().zip(all) {
        match read {
            Ok(ListResult { items, tolerated_problem }) => {
                *listing.lists.items_mut(list) = items;
                listing.degraded.extend(tolerated_problem.map(|problem| (list, problem)));
            }
            Err(error) => drop(listing.degraded.insert(list, list_unavailable(list, &error))),
        }
    }
    Ok(listing)
}

/// Returns the problem of a list that could not be read.
pub(super) fn list_unavailable(list: ListKind, error: &ConnectionError) -> Problem {
    let (method, message) = (list.method(), &error.problem.message);
    let message = if message.starts_with(method) { message.clone() } else { format!("{method}: {message}") };
    Problem::new(Reason::ListUnavailable, message)
}

/// Reads all pages of a list. Sends no request to a server without the capability.
pub(super) async fn read_list(
    connection: &Connection,
    list: ListKind,
) -> Result<ListResult, ConnectionError> {
    if connection.handshake().capabilities.list_changed(list).is_none() {
        return Ok(ListResult { items: Vec::new(), tolerated_problem: None });
    }
    let (mut items, mut bytes, mut tolerated_problem) = (BTreeMap::new(), 0, None);
    let mut cursors = BTreeSet::new();
    let mut cursor: Option<String> = None;
    loop {
        let response = connection.list_page(list, cursor.as_deref()).await?;
        if list == ListKind::Templates
            && matches!(&response, RpcResponse::Error(error) if is_unknown_method(error))
        {
            // Templates have no capability of their own: many servers that have resources implement no templates.
            break;
        }
        let (RpcResponse::Result(page) | RpcResponse::Error(page)) = &response;
        bytes += page.len();
        let next = read_page(&response, list, &mut items).map_err(|mut error| {
            error.problem.message = connection.redacted_line(&error.problem.message, MAX_ERROR_MESSAGE_CHARS);
            error
        });
        let page = next?;
        if page.items_are_null {
            tolerated_problem = Some(Problem::new(
                Reason::NonCompliant,
                format!(
                    "{} returned null for {:?}; it is treated as an empty list",
                    list.method(),
                    list.result_member()
                ),
            ));
        }
        cursor = match page.next_cursor {
            // A repeated cursor would loop for ever.
            Some(next) if cursors.insert(next.clone()) => Some(next),
            _ => break,
        };
        if items.len() > MAX_ITEMS || cursors.len() > MAX_PAGES || bytes > MAX_LIST_BYTES {
            let (items, pages, limit) = (items.len(), cursors.len(), MAX_LIST_BYTES >> 20);
            let why = format!(
                "the list exceeds {MAX_ITEMS} items, {MAX_PAGES} pages or {limit} MiB: {items} items and {bytes} bytes \
                 after {pages} pages"
            );
            return Err(list_failed(list, &why));
        }
    }
    if list == ListKind::Tools {
        for (name, why) in
            connection.set_param_headers(items.values().map(|tool: &Item| (&**tool.name(), tool.raw())))
        {
            tracing::warn!(
                tool = connection.redacted_line(&name, 200),
                why = connection.redacted_line(&why, 200),
                "a tool was ignored"
            );
            items.remove(&*name);
        }
    }
    Ok(ListResult { items: items.into_values().collect(), tolerated_problem })
}

/// A page of a list, apart from its items.
#[derive(Debug, PartialEq, Eq)]
struct Page {
    /// The cursor of the next page. An empty string is a cursor.
    next_cursor: Option<String>,
    /// True if the server returned null in place of the items.
    items_are_null: bool,
}

/// Adds a page's items; of items with the same name the first is kept.
fn read_page(
    response: &RpcResponse,
    list: ListKind,
    items: &mut BTreeMap<Arc<str>, Item>,
) -> Result<Page, ConnectionError> {
    let raw = match response {
        RpcResponse::Result(raw) => raw,
        RpcResponse::Error(raw) => return Err(list_failed(list, &error_message(raw))),
    };
    let unreadable = |error: serde_json::Error| list_failed(list, &error.to_string());
    let text = std::str::from_utf8(raw).map_err(|error| list_failed(list, &error.to_string()))?;
    let page = parse_members(text).map_err(unreadable)?;
    let member = |name: &str| page.get(name).map(RawValue::get);
    let listed = member(list.result_member());
    let listed =
        listed.ok_or_else(|| list_failed(list, &format!("missing field `{}`", list.result_member())))?;
    let listed: Option<Vec<&RawValue>> = serde_json::from_str(listed).map_err(unreadable)?;
    let items_are_null = listed.is_none();
    for raw in listed.unwrap_or_default() {
        match Item::parse(list, raw.get()) {
            Ok(item) => drop(items.entry(item.name().clone()).or_insert(item)),
            Err(why) => tracing::warn!("a {} was ignored: {why}", list.item_noun()),
        }
    }
    let next_cursor = member("nextCursor").map_or(Ok(None), serde_json::from_str).map_err(unreadable)?;
    Ok(Page { next_cursor, items_are_null })
}

#[derive(Deserialize)]
struct ErrorBody {
    code: i64,
    message: String,
}

/// Formats a JSON-RPC error as text.
fn error_message(raw: &[u8]) -> String {
    match serde_json::from_slice::<ErrorBody>(raw) {
        Ok(ErrorBody { code, message }) => format!("{message} ({code})"),
        Err(_) => "unparsable JSON-RPC error".into(),
    }
}

fn list_failed(list: ListKind, why: &str) -> ConnectionError {
    ConnectionError::new(Reason::ListFailed, format!("{} failed: {why}", list.method())).into_dispatched()
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    fn read_tools_page(
        text: &'static str,
        tools: &mut BTreeMap<Arc<str>, Item>,
    ) -> Result<Page, ConnectionError> {
        read_page(&RpcResponse::Result(Bytes::from_static(text.as_bytes())), ListKind::Tools, tools)
    }

    #[test]
    fn pages_are_merged_and_tool_json_is_unchanged() {
        let mut tools = BTreeMap::new();
        let first =
            read_tools_page(r#"{"tools":[{"name":"b", "x":1.0}],"nextCursor":""}"#, &mut tools).unwrap();
        assert_eq!(first, Page { next_cursor: Some(String::new()), items_are_null: false });
        let last = read_tools_page(
            r#"{"tools":[{"name":"a"},{"name":"b","x":2},{"title":"?"}],"y":{}}"#,
            &mut tools,
        )
        .unwrap();
        assert_eq!(last, Page { next_cursor: None, items_are_null: false });
        let raw: Vec<_> = tools.values().map(Item::raw).collect();
        assert_eq!(raw, [r#"{"name":"a"}"#, r#"{"name":"b", "x":1.0}"#]);
    }

    #[test]
    fn null_items_are_an_empty_list() {
        let mut tools = BTreeMap::new();
        for text in [r#"{"tools":null}"#, r#"{"tools":null,"nextCursor":null}"#] {
            assert_eq!(
                read_tools_page(text, &mut tools).unwrap(),
                Page { next_cursor: None, items_are_null: true }
            );
        }
        assert!(tools.is_empty());
    }

    #[test]
    fn failed_list_is_an_error() {
        let mut tools = BTreeMap::new();
        for text in [r#"{"tools":{}}"#, "{}", "[]"] {
            assert_eq!(read_tools_page(text, &mut tools).unwrap_err().problem.reason, Reason::ListFailed);
        }
        let response = RpcResponse::Error(Bytes::from_static(br#"{"code":-32603,"message":"boom"}"#));
        let error = read_page(&response, ListKind::Tools, &mut tools).unwrap_err();
        assert_eq!(error.problem.message, "tools/list failed: boom (-32603)");
    }
}
