use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use bytes::Bytes;
use serde::Deserialize;
use serde_json::value::RawValue;
use tokio::time::Instant;

use super::Context;
use crate::catalog::Tool;
use crate::resource::{Endpoint, Reason};
use crate::wire::{self, Edit, Events, Host, Link, LinkError, Reply, Request};

/// A connection that is made and listed; nothing of it is published yet.
#[derive(Debug)]
pub(super) struct Attached {
    pub(super) link: Link,
    pub(super) events: Events,
    /// Everything that the server lists, in the order of the names.
    pub(super) tools: Vec<Tool>,
}

/// More pages than any server has: a list that does not end is not waited for.
const PAGES: usize = 1_000;
/// More than any agent could use.
const TOOLS: usize = 20_000;

/// Connects, agrees on a protocol and lists everything. A failure closes what was opened, on the host's tasks.
pub(super) async fn attach(
    context: &Context,
    endpoint: &Endpoint,
    limit: Duration,
    host: &Host,
) -> Result<Attached, LinkError> {
    let _under_way = context.metrics.attempt();
    let remembered = context.memory.era(endpoint.digest());
    let attempt = async {
        let (link, mut events) = wire::open(endpoint, remembered, host).await?;
        context.memory.learn_era(endpoint.digest(), link.peer().era);
        let listed = async {
            events.begin().await?;
            let tools = list_tools(&link).await?;
            link.rest();
            Ok(tools)
        };
        match listed.await {
            Ok(tools) => Ok(Attached { link, events, tools }),
            Err(error) => {
                host.tasks.spawn(async move { link.close().await });
                Err(error)
            }
        }
    };
    let limited = Box::pin(async {
        let seconds = limit.as_secs_f64();
        let late = || timeout(format!("not attached within {seconds} s (spec.timeouts.connect)"));
        let start = Instant::now();
        let result = tokio::time::timeout(limit, attempt).await.unwrap_or_else(|_| Err(late()));
        context.metrics.attached(start, result.is_ok());
        result
    });
    // Waiting for a slot is not the server's time.
    let result = context.slots.run(&endpoint.transport, limited).await;
    let misunderstood =
        |error: &LinkError| matches!(error.problem.reason, Reason::HandshakeFailed | Reason::Timeout);
    if remembered.is_some() && result.as_ref().is_err_and(misunderstood) {
        // The server may have been upgraded: probe it the next time.
        context.memory.forget_era(endpoint.digest());
    }
    result
}

/// All pages of `tools/list`. A server without the capability is not asked.
pub(super) async fn list_tools(link: &Link) -> Result<Vec<Tool>, LinkError> {
    if !link.peer().tools {
        return Ok(Vec::new());
    }
    let mut tools = BTreeMap::new();
    let mut cursors = BTreeSet::new();
    let mut cursor: Option<String> = None;
    loop {
        let quoted = cursor.as_ref().map(|cursor| serde_json::Value::from(cursor.as_str()).to_string());
        let edits: Vec<_> = quoted.iter().map(|cursor| Edit::Set("cursor", cursor)).collect();
        let request = Request { method: "tools/list", params: &[], edits: &edits, name: None };
        let reply = link.call(request).await?.answer().await?;
        cursor = match read_page(&reply, &mut tools)? {
            // A cursor that comes again would go on for ever.
            Some(next) if cursors.insert(next.clone()) => Some(next),
            _ => break,
        };
        if tools.len() > TOOLS || cursors.len() > PAGES {
            return Err(failed(&format!("the list is longer than {TOOLS} tools or {PAGES} pages")));
        }
    }
    for (name, why) in link.learn(tools.values().map(|tool| (tool.name.as_str(), &tool.raw[..]))) {
        tracing::warn!(tool = name, why, "a tool was left out");
        tools.remove(&name);
    }
    Ok(tools.into_values().collect())
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Page<'a> {
    #[serde(borrow)]
    tools: Vec<&'a RawValue>,
    #[serde(default)]
    next_cursor: Option<String>,
}

#[derive(Deserialize)]
struct Named<'a> {
    #[serde(borrow)]
    name: Cow<'a, str>,
}

/// Adds a page's tools, the first of each name, and gives the next cursor. An empty string is a cursor.
fn read_page(reply: &Reply, tools: &mut BTreeMap<String, Tool>) -> Result<Option<String>, LinkError> {
    let raw = match reply {
        Reply::Result(raw) => raw,
        Reply::Error(raw) => return Err(failed(&error_message(raw))),
    };
    let page: Page<'_> = serde_json::from_slice(raw).map_err(|error| failed(&error.to_string()))?;
    for raw in page.tools {
        match serde_json::from_str::<Named<'_>>(raw.get()) {
            Ok(Named { name }) => {
                let name = name.into_owned();
                let raw = Bytes::copy_from_slice(raw.get().as_bytes());
                tools.entry(name.clone()).or_insert(Tool { name, raw });
            }
            Err(error) => tracing::warn!(%error, "a tool without a name was left out"),
        }
    }
    Ok(page.next_cursor)
}

/// The message of a JSON-RPC error, cut to a readable length.
fn error_message(raw: &[u8]) -> String {
    #[derive(Deserialize)]
    struct Error {
        code: i64,
        message: String,
    }
    match serde_json::from_slice::<Error>(raw) {
        Ok(Error { code, message }) => {
            let message: String = message.chars().filter(|char| !char.is_control()).take(200).collect();
            format!("{message} ({code})")
        }
        Err(_) => "an error that could not be read".into(),
    }
}

fn failed(why: &str) -> LinkError {
    LinkError::new(Reason::ListFailed, format!("tools/list failed: {why}")).dispatched()
}

pub(super) fn timeout(message: String) -> LinkError {
    LinkError::new(Reason::Timeout, message).dispatched()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page(text: &'static str, tools: &mut BTreeMap<String, Tool>) -> Result<Option<String>, LinkError> {
        read_page(&Reply::Result(Bytes::from_static(text.as_bytes())), tools)
    }

    #[test]
    fn pages_are_merged_and_tools_kept_as_they_are() {
        let mut tools = BTreeMap::new();
        let first = page(r#"{"tools":[{"name":"b", "x":1.0}],"nextCursor":""}"#, &mut tools).unwrap();
        assert_eq!(first.as_deref(), Some(""));
        let last =
            page(r#"{"tools":[{"name":"a"},{"name":"b","x":2},{"title":"?"}],"y":{}}"#, &mut tools).unwrap();
        assert_eq!(last, None);
        let raw: Vec<_> = tools.values().map(|tool| std::str::from_utf8(&tool.raw).unwrap()).collect();
        assert_eq!(raw, [r#"{"name":"a"}"#, r#"{"name":"b", "x":1.0}"#]);
    }

    #[test]
    fn a_failed_list_is_not_an_empty_one() {
        let mut tools = BTreeMap::new();
        for text in [r#"{"tools":{}}"#, "{}", "[]"] {
            assert_eq!(page(text, &mut tools).unwrap_err().problem.reason, Reason::ListFailed);
        }
        let reply = Reply::Error(Bytes::from_static(br#"{"code":-32603,"message":"boom"}"#));
        let error = read_page(&reply, &mut tools).unwrap_err();
        assert_eq!(error.problem.message, "tools/list failed: boom (-32603)");
    }
}
