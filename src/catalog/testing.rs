//! Sections for the tests of this module.

use std::sync::Arc;

use crate::resource::{ObjectKey, Problem, Reason};
use crate::upstream::{CallRefusal, Item, Responder, Section, ServerLists, UpstreamControl};
use crate::wire::ListKind;

/// Creates a section of a server that has no connection.
pub(crate) fn section(namespace: &str, name: &str, prefix: &str, tools: &[&str]) -> Section {
    let key = ObjectKey::new(namespace, name);
    let problem = Problem::new(Reason::Connecting, "not attached yet");
    Section {
        responder: Responder::Server(
            UpstreamControl::new(key.clone(), CallRefusal::Unavailable(problem)).handle().clone(),
        ),
        key,
        prefix: prefix.into(),
        lists: Arc::new(ServerLists {
            tools: tools.iter().map(|tool| self::tool(tool, "")).collect(),
            ..ServerLists::default()
        }),
        resource_filter: None,
        instructions: None,
        call_timeout: std::time::Duration::from_mins(10),
    }
}

/// Creates a tool with a description.
pub(crate) fn tool(name: &str, description: &str) -> Item {
    let entry = serde_json::json!({ "name": name, "description": description }).to_string();
    Item::parse(ListKind::Tools, &entry).unwrap()
}
