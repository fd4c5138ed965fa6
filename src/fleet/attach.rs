use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use rmcp::model::ErrorCode;
use serde::Deserialize;
use serde_json::value::RawValue;

use super::Context;
use crate::catalog::{Item, Lists};
use crate::plan::Target;
use crate::resource::Reason;
use crate::wire::{self, Era, Events, Host, Link, LinkError, List, Reply, members};

/// A connection that is made and listed; nothing of it is published yet.
#[derive(Debug)]
pub(super) struct Attached {
    pub(super) link: Link,
    pub(super) events: Events,
    /// Everything that the server lists.
    pub(super) lists: Lists,
}

/// More pages than any server has: a list that does not end is not waited for.
const PAGES: usize = 1_000;
/// The longest message about a page that could not be read, in characters.
const MESSAGE: usize = 300;
/// More than any agent could use of one list.
const ITEMS: usize = 20_000;
/// The longest list, all its pages together.
const BYTES: usize = 16 << 20;

/// Connects, agrees on a protocol and lists everything. A failure closes what was opened, on the host's tasks.
/// A server whose era is not known is addressed in that of `opening`, or probed.
pub(super) async fn attach(
    context: &Context,
    target: &Target,
    host: &Host,
    opening: Option<Era>,
) -> Result<Attached, LinkError> {
    let (endpoint, limit) = (&target.endpoint, target.spec.timeouts.connect.get());
    let _under_way = context.metrics.attempt();
    let remembered = context.memory.era(endpoint.digest());
    let attempt = async {
        let (link, mut events) = wire::open(endpoint, remembered.or(opening), host).await?;
        context.memory.learn_era(endpoint.digest(), link.peer().era);
        let listed = async {
            events.begin().await?;
            let lists = list_all(&link).await?;
            link.rest(Duration::MAX);
            Ok(lists)
        };
        match listed.await {
            Ok(lists) => Ok(Attached { link, events, lists }),
            Err(error) => {
                host.tasks.spawn(async move { link.close().await });
                Err(error)
            }
        }
    };
    let limited = Box::pin(async {
        let seconds = limit.as_secs_f64();
        let late = || {
            let words = host.last_words.quoted();
            timeout(format!("not attached within {seconds} s (spec.timeouts.connect){words}"))
        };
        let measured = context.metrics.attach(target);
        let result = tokio::time::timeout(limit, attempt).await.unwrap_or_else(|_| Err(late()));
        measured.attached(&result);
        result
    });
    // Waiting for a slot is not the server's time.
    let result = context.slots.run(&endpoint.transport, &host.started, limited).await;
    let misunderstood =
        |error: &LinkError| matches!(error.problem.reason, Reason::HandshakeFailed | Reason::Timeout);
    if remembered.is_some() && result.as_ref().is_err_and(misunderstood) {
        // The server may have been upgraded: probe it the next time.
        context.memory.forget_era(endpoint.digest());
    }
    result
}

/// All lists, side by side.
async fn list_all(link: &Link) -> Result<Lists, LinkError> {
    let [tools, prompts, resources, templates] = List::ALL.map(|list| Box::pin(read_list(link, list)));
    let (tools, prompts, resources, templates) = tokio::try_join!(tools, prompts, resources, templates)?;
    Ok(Lists { tools, prompts, resources, templates })
}

/// All pages of a list. A server without the capability is not asked.
pub(super) async fn read_list(link: &Link, list: List) -> Result<Vec<Item>, LinkError> {
    if link.peer().capabilities.list(list).is_none() {
        return Ok(Vec::new());
    }
    let (mut items, mut bytes) = (BTreeMap::new(), 0);
    let mut cursors = BTreeSet::new();
    let mut cursor: Option<String> = None;
    loop {
        let reply = link.page(list, cursor.as_deref()).await?;
        if list == List::Templates && is_unknown_method(&reply) {
            // They have no capability of their own: many servers that have resources have no templates.
            break;
        }
        let (Reply::Result(page) | Reply::Error(page)) = &reply;
        bytes += page.len();
        let next = read_page(&reply, list, &mut items).map_err(|mut error| {
            error.problem.message = link.words(&error.problem.message, MESSAGE);
            error
        });
        cursor = match next? {
            // A cursor that comes again would go on for ever.
            Some(next) if cursors.insert(next.clone()) => Some(next),
            _ => break,
        };
        if items.len() > ITEMS || cursors.len() > PAGES || bytes > BYTES {
            let (items, pages, limit) = (items.len(), cursors.len(), BYTES >> 20);
            let why = format!(
                "it does not end within {ITEMS} items, {PAGES} pages or {limit} MiB: {items} items and {bytes} bytes \
                 after {pages} pages"
            );
            return Err(failed(list, &why));
        }
    }
    if list == List::Tools {
        for (name, why) in link.learn(items.values().map(|tool: &Item| (&**tool.name(), tool.raw()))) {
            tracing::warn!(tool = link.words(&name, 200), why = link.words(&why, 200), "a tool was left out");
            items.remove(&*name);
        }
    }
    Ok(items.into_values().collect())
}

/// Adds a page's items, the first of each name, and gives the next cursor. An empty string is a cursor.
fn read_page(
    reply: &Reply,
    list: List,
    items: &mut BTreeMap<Arc<str>, Item>,
) -> Result<Option<String>, LinkError> {
    let raw = match reply {
        Reply::Result(raw) => raw,
        Reply::Error(raw) => return Err(failed(list, &error_message(raw))),
    };
    let unreadable = |error: serde_json::Error| failed(list, &error.to_string());
    let text = std::str::from_utf8(raw).map_err(|error| failed(list, &error.to_string()))?;
    let page = members(text).map_err(unreadable)?;
    let member = |name: &str| page.get(name).map(RawValue::get);
    let listed = member(list.member());
    let listed = listed.ok_or_else(|| failed(list, &format!("missing field `{}`", list.member())))?;
    for raw in serde_json::from_str::<Vec<&RawValue>>(listed).map_err(unreadable)? {
        match Item::read(list, raw.get()) {
            Ok(item) => drop(items.entry(item.name().clone()).or_insert(item)),
            Err(why) => tracing::warn!("a {} was left out: {why}", list.item()),
        }
    }
    member("nextCursor").map_or(Ok(None), serde_json::from_str).map_err(unreadable)
}

#[derive(Deserialize)]
struct Error {
    code: i64,
    message: String,
}

fn is_unknown_method(reply: &Reply) -> bool {
    let Reply::Error(raw) = reply else { return false };
    serde_json::from_slice(raw)
        .is_ok_and(|Error { code, .. }| code == i64::from(ErrorCode::METHOD_NOT_FOUND.0))
}

/// The message of a JSON-RPC error.
fn error_message(raw: &[u8]) -> String {
    match serde_json::from_slice::<Error>(raw) {
        Ok(Error { code, message }) => format!("{message} ({code})"),
        Err(_) => "an error that could not be read".into(),
    }
}

fn failed(list: List, why: &str) -> LinkError {
    LinkError::new(Reason::ListFailed, format!("{} failed: {why}", list.method())).dispatched()
}

pub(super) fn timeout(message: String) -> LinkError {
    LinkError::new(Reason::Timeout, message).dispatched()
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    fn page(text: &'static str, tools: &mut BTreeMap<Arc<str>, Item>) -> Result<Option<String>, LinkError> {
        read_page(&Reply::Result(Bytes::from_static(text.as_bytes())), List::Tools, tools)
    }

    #[test]
    fn pages_are_merged_and_tools_kept_as_they_are() {
        let mut tools = BTreeMap::new();
        let first = page(r#"{"tools":[{"name":"b", "x":1.0}],"nextCursor":""}"#, &mut tools).unwrap();
        assert_eq!(first.as_deref(), Some(""));
        let last =
            page(r#"{"tools":[{"name":"a"},{"name":"b","x":2},{"title":"?"}],"y":{}}"#, &mut tools).unwrap();
        assert_eq!(last, None);
        let raw: Vec<_> = tools.values().map(Item::raw).collect();
        assert_eq!(raw, [r#"{"name":"a"}"#, r#"{"name":"b", "x":1.0}"#]);
    }

    #[test]
    fn a_failed_list_is_not_an_empty_one() {
        let mut tools = BTreeMap::new();
        for text in [r#"{"tools":{}}"#, "{}", "[]"] {
            assert_eq!(page(text, &mut tools).unwrap_err().problem.reason, Reason::ListFailed);
        }
        let reply = Reply::Error(Bytes::from_static(br#"{"code":-32603,"message":"boom"}"#));
        let error = read_page(&reply, List::Tools, &mut tools).unwrap_err();
        assert_eq!(error.problem.message, "tools/list failed: boom (-32603)");
    }
}
