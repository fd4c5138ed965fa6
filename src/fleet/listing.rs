use std::collections::BTreeMap;
use std::time::Duration;

use serde::Deserialize;
use tokio::time::{Instant, timeout_at};

use super::list_findings::LeftOutItems;
use super::list_pages::ListPages;
use super::wanted_lists::{filter_of, is_wanted};
use crate::resource::{McpServerSpec, Problem, Reason};
use crate::upstream::{Item, NameMatcher, ServerLists};
use crate::wire::{Connection, ConnectionError, ListKind, RpcResponse, is_unknown_method};

/// The longest error message about a page, in characters.
const MAX_ERROR_MESSAGE_CHARS: usize = 300;
/// The timeout of the lists other than the tools while a server attaches; lists that time out are read again later.
const OPTIONAL_LISTS_TIMEOUT: Duration = Duration::from_secs(10);

/// One complete list of a server.
#[derive(Clone, Debug, Default)]
pub(super) struct ListResult {
    /// Its items, ordered by name, each name once.
    pub(super) items: Vec<Item>,
    /// The items that are left out, for the log.
    pub(super) left_out: LeftOutItems,
    /// The tolerated faults of the list.
    pub(super) problem: Option<Problem>,
}

/// All lists of a server.
#[derive(Clone, Debug, Default)]
pub(super) struct ServerListing {
    pub(super) lists: ServerLists,
    /// The items that are left out, for the log.
    pub(super) left_out: BTreeMap<ListKind, LeftOutItems>,
    /// The problems of lists that could not be read, and tolerated protocol violations.
    pub(super) degraded: BTreeMap<ListKind, Problem>,
}

/// Reads all lists that are wanted concurrently, by `until` at the latest.
///
/// # Errors
///
/// Fails if the tools cannot be read; the server is then not attached. Another list that fails, or takes longer than
/// half of the time, is only reported as degraded, unless its error ends the connection. So is any list for which the
/// server says that it has no such method.
pub(super) async fn read_all(
    connection: &Connection,
    spec: &McpServerSpec,
    until: Instant,
) -> Result<ServerListing, ConnectionError> {
    let now = Instant::now();
    let optional_deadline = now + OPTIONAL_LISTS_TIMEOUT.min(until.saturating_duration_since(now) / 2);
    let read_optional = async |list| {
        let read = timeout_at(optional_deadline, Box::pin(read_list(connection, spec, list))).await;
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
    let read_tools = async {
        match Box::pin(read_list(connection, spec, ListKind::Tools)).await {
            Err(error) if error.problem.reason != Reason::ListUnavailable => Err(error),
            read => Ok(read),
        }
    };
    let (tools, prompts, resources, templates) = tokio::try_join!(
        read_tools,
        read_optional(ListKind::Prompts),
        read_optional(ListKind::Resources),
        read_optional(ListKind::Templates)
    )?;
    let mut listing = ServerListing::default();
    let all = [tools, prompts, resources, templates];
    for (list, read) in ListKind::ALL.into_iter().zip(all) {
        match read {
            Ok(ListResult { items, left_out, problem }) => {
                *listing.lists.items_mut(list) = items;
                listing.left_out.insert(list, left_out);
                listing.degraded.extend(problem.map(|problem| (list, problem)));
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

/// Reads all pages of a list. Sends no request for a list that is not wanted.
pub(super) async fn read_list(
    connection: &Connection,
    spec: &McpServerSpec,
    list: ListKind,
) -> Result<ListResult, ConnectionError> {
    let capabilities = connection.handshake().capabilities;
    if !is_wanted(list, capabilities, spec) {
        return Ok(ListResult::default());
    }
    let matcher = NameMatcher::from_filter(filter_of(spec, list));
    let redact = |text: &str, limit| connection.redacted_line(text, limit);
    let mut pages = ListPages::new(list, connection.handshake().era, matcher.as_ref(), &redact);
    let mut cursor: Option<String> = None;
    loop {
        let (page, reason) = match connection.list_page(list, cursor.as_deref()).await? {
            RpcResponse::Result(result) => (pages.add(&result), Reason::ListFailed),
            RpcResponse::Error(error) if !is_unknown_method(&error) => {
                (Err(error_message(&error)), Reason::ListFailed)
            }
            // Templates have no capability of their own: many servers that have resources implement no templates.
            RpcResponse::Error(_) if list == ListKind::Templates => (Ok(None), Reason::ListUnavailable),
            RpcResponse::Error(error) => {
                let why = format!(
                    "{}, although the server's capabilities or spec.capabilities have it",
                    error_message(&error)
                );
                (Err(why), Reason::ListUnavailable)
            }
        };
        cursor = match page {
            Ok(Some(next)) => Some(next),
            Ok(None) => break,
            Err(_) if pages.end_at_refused_cursor(cursor.as_deref()) => break,
            Err(why) => {
                let why = connection.redacted_line(&why, MAX_ERROR_MESSAGE_CHARS);
                let message = format!("{} failed: {why}", list.method());
                return Err(ConnectionError::new(reason, message).into_dispatched());
            }
        };
    }
    if list == ListKind::Tools {
        let tools = pages.items().map(|tool| (&**tool.name(), tool.raw()));
        for (name, why) in connection.set_param_headers(tools) {
            pages.leave_out(name, why);
        }
    }
    let (items, findings) = pages.finish();
    let problem = findings.problem(list);
    Ok(ListResult { items, left_out: findings.left_out, problem })
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
