use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use serde::Deserialize;
use serde_json::value::RawValue;
use tokio::time::{Instant, timeout_at};

use crate::resource::{Problem, Reason};
use crate::upstream::{Item, ServerLists};
use crate::wire::{Connection, ConnectionError, ListKind, RpcResponse, is_unknown_method, members};

/// More pages than any server has: a list that does not end is not waited for.
const MAX_PAGES: usize = 1_000;
/// The longest message about a page that could not be read, in characters.
const MAX_ERROR_MESSAGE_CHARS: usize = 300;
/// More than any agent could use of one list.
const MAX_ITEMS: usize = 20_000;
/// The longest list, all its pages together.
const MAX_LIST_BYTES: usize = 16 << 20;
/// How long the lists other than the tools may take while a server attaches; they are read again later.
const OPTIONAL_LISTS_TIMEOUT: Duration = Duration::from_secs(10);

/// One list of a server, read to its end.
#[derive(Debug)]
pub(super) struct ListResult {
    /// Its items, in the order of their names, each name once.
    pub(super) items: Vec<Item>,
    /// An oddity of the server that cost nothing.
    pub(super) tolerated_problem: Option<Problem>,
}

/// All lists of a server.
#[derive(Debug, Default)]
pub(super) struct ServerListing {
    pub(super) lists: ServerLists,
    /// Lists that could not be read, and oddities that were tolerated.
    pub(super) degraded: BTreeMap<ListKind, Problem>,
}

/// Reads all lists, side by side, by the given time at the latest.
///
/// The tools decide: if they cannot be read, the server is not attached. Another list that fails, or takes longer than
/// half of the time, costs that list alone.
pub(super) async fn read_all(link: &Connection, until: Instant) -> Result<ServerListing, ConnectionError> {
    let now = Instant::now();
    let soon = now + OPTIONAL_LISTS_TIMEOUT.min(until.saturating_duration_since(now) / 2);
    let other = async |list| {
        let read = timeout_at(soon, Box::pin(read_list(link, list))).await;
        let read = read.unwrap_or_else(|_| {
            let seconds = soon.duration_since(now).as_secs_f64();
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
        Box::pin(read_list(link, ListKind::Tools)),
        other(ListKind::Prompts),
        other(ListKind::Resources),
        other(ListKind::Templates)
    )?;
    let mut listings = ServerListing::default();
    let all = [Ok(tools), prompts, resources, templates];
    for (list, read) in ListKind::ALL.into_iter().zip(all) {
        match read {
            Ok(ListResult { items, tolerated_problem: tolerated }) => {
                *listings.lists.items_mut(list) = items;
                listings.degraded.extend(tolerated.map(|problem| (list, problem)));
            }
            Err(error) => drop(listings.degraded.insert(list, list_unavailable(list, &error))),
        }
    }
    Ok(listings)
}

/// Tells why a list could not be read.
pub(super) fn list_unavailable(list: ListKind, error: &ConnectionError) -> Problem {
    let (method, message) = (list.method(), &error.problem.message);
    let message = if message.starts_with(method) { message.clone() } else { format!("{method}: {message}") };
    Problem::new(Reason::ListUnavailable, message)
}

/// Reads all pages of a list. A server without the capability is not asked.
pub(super) async fn read_list(link: &Connection, list: ListKind) -> Result<ListResult, ConnectionError> {
    if link.handshake().capabilities.list_changed(list).is_none() {
        return Ok(ListResult { items: Vec::new(), tolerated_problem: None });
    }
    let (mut items, mut bytes, mut tolerated) = (BTreeMap::new(), 0, None);
    let mut cursors = BTreeSet::new();
    let mut cursor: Option<String> = None;
    loop {
        let reply = link.list_page(list, cursor.as_deref()).await?;
        if list == ListKind::Templates
            && matches!(&reply, RpcResponse::Error(error) if is_unknown_method(error))
        {
            // They have no capability of their own: many servers that have resources have no templates.
            break;
        }
        let (RpcResponse::Result(page) | RpcResponse::Error(page)) = &reply;
        bytes += page.len();
        let next = read_page(&reply, list, &mut items).map_err(|mut error| {
            error.problem.message = link.redacted_line(&error.problem.message, MAX_ERROR_MESSAGE_CHARS);
            error
        });
        let page = next?;
        if page.items_are_null {
            tolerated = Some(Problem::new(
                Reason::NonCompliant,
                format!(
                    "{} answers null for {:?}, which is taken for an empty list",
                    list.method(),
                    list.result_member()
                ),
            ));
        }
        cursor = match page.next_cursor {
            // A cursor that comes again would go on for ever.
            Some(next) if cursors.insert(next.clone()) => Some(next),
            _ => break,
        };
        if items.len() > MAX_ITEMS || cursors.len() > MAX_PAGES || bytes > MAX_LIST_BYTES {
            let (items, pages, limit) = (items.len(), cursors.len(), MAX_LIST_BYTES >> 20);
            let why = format!(
                "it does not end within {MAX_ITEMS} items, {MAX_PAGES} pages or {limit} MiB: {items} items and {bytes} bytes \
                 after {pages} pages"
            );
            return Err(list_failed(list, &why));
        }
    }
    if list == ListKind::Tools {
        for (name, why) in
            link.set_param_headers(items.values().map(|tool: &Item| (&**tool.name(), tool.raw())))
        {
            tracing::warn!(
                tool = link.redacted_line(&name, 200),
                why = link.redacted_line(&why, 200),
                "a tool was left out"
            );
            items.remove(&*name);
        }
    }
    Ok(ListResult { items: items.into_values().collect(), tolerated_problem: tolerated })
}

/// A page of a list, apart from its items.
#[derive(Debug, PartialEq, Eq)]
struct Page {
    /// The cursor of the next page. An empty string is a cursor.
    next_cursor: Option<String>,
    /// It says null where its items belong.
    items_are_null: bool,
}

/// Adds a page's items, the first of each name.
fn read_page(
    reply: &RpcResponse,
    list: ListKind,
    items: &mut BTreeMap<Arc<str>, Item>,
) -> Result<Page, ConnectionError> {
    let raw = match reply {
        RpcResponse::Result(raw) => raw,
        RpcResponse::Error(raw) => return Err(list_failed(list, &error_message(raw))),
    };
    let unreadable = |error: serde_json::Error| list_failed(list, &error.to_string());
    let text = std::str::from_utf8(raw).map_err(|error| list_failed(list, &error.to_string()))?;
    let page = members(text).map_err(unreadable)?;
    let member = |name: &str| page.get(name).map(RawValue::get);
    let listed = member(list.result_member());
    let listed =
        listed.ok_or_else(|| list_failed(list, &format!("missing field `{}`", list.result_member())))?;
    let listed: Option<Vec<&RawValue>> = serde_json::from_str(listed).map_err(unreadable)?;
    let is_null = listed.is_none();
    for raw in listed.unwrap_or_default() {
        match Item::parse(list, raw.get()) {
            Ok(item) => drop(items.entry(item.name().clone()).or_insert(item)),
            Err(why) => tracing::warn!("a {} was left out: {why}", list.item_noun()),
        }
    }
    let next = member("nextCursor").map_or(Ok(None), serde_json::from_str).map_err(unreadable)?;
    Ok(Page { next_cursor: next, items_are_null: is_null })
}

#[derive(Deserialize)]
struct ErrorBody {
    code: i64,
    message: String,
}

/// The message of a JSON-RPC error.
fn error_message(raw: &[u8]) -> String {
    match serde_json::from_slice::<ErrorBody>(raw) {
        Ok(ErrorBody { code, message }) => format!("{message} ({code})"),
        Err(_) => "an error that could not be read".into(),
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
        let reply = RpcResponse::Error(Bytes::from_static(br#"{"code":-32603,"message":"boom"}"#));
        let error = read_page(&reply, ListKind::Tools, &mut tools).unwrap_err();
        assert_eq!(error.problem.message, "tools/list failed: boom (-32603)");
    }
}
