//! Sections for the tests of this room.

use super::{Answering, Item, Lists, Section};
use crate::fleet::{Refusal, UpstreamHandle};
use crate::resource::{ObjectKey, Problem, Reason};

/// A section of a server that has no connection.
pub(super) fn section(namespace: &str, name: &str, prefix: &str, tools: &[&str]) -> Section {
    let key = ObjectKey::new(namespace, name);
    let problem = Problem::new(Reason::Connecting, "not there yet");
    Section {
        by: Answering::Server(UpstreamHandle::new(key.clone(), Refusal::Unavailable(problem))),
        key,
        prefix: prefix.into(),
        lists: Lists { tools: tools.iter().map(|tool| self::tool(tool, "")).collect(), ..Lists::default() },
        resources: None,
        instructions: None,
        call_timeout: std::time::Duration::from_mins(10),
    }
}

/// A tool with a description.
pub(super) fn tool(name: &str, description: &str) -> Item {
    Item {
        name: name.into(),
        raw: serde_json::json!({ "name": name, "description": description }).to_string().into(),
    }
}
