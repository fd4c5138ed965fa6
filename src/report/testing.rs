//! Observations and sections for the tests of this module and of `admin/`.

use std::sync::Arc;

use serde_json::json;

use crate::catalog::{NameConflict, NameHolder};
use crate::fleet::{LiveServer, Observation, Phase};
use crate::plan::ConnectionTarget;
use crate::resource::testing::{declared, key};
use crate::resource::{Digest, Problem, Reason, ServerInfo};
use crate::upstream::{CallRefusal, Item, Section, ServerLists, UpstreamControl, ViewName};
use crate::wire::{ListKind, ServerDescription};

pub fn listed(generation: i64) -> LiveServer {
    LiveServer {
        generation,
        about: Arc::new(ServerDescription {
            server_info: ServerInfo { name: "test".into(), version: "1".into() },
            protocol_version: "2025-11-25".into(),
            instructions: None,
        }),
        tools: 3,
        prompts: 0,
        resources: 0,
        catalog_digest: Digest::of(b"tools"),
    }
}

/// What the fleet says of `name`: the generation it works on, and the one that is live.
pub fn seen(name: &str, generation: i64, phase: Phase, live: Option<i64>) -> Observation {
    Observation {
        paused: None,
        degraded: None,
        key: key(name),
        uid: format!("uid-{name}").into(),
        generation,
        requested: None,
        phase,
        listed: live.map(|generation| Arc::new(listed(generation))),
        restarts: 0,
    }
}

/// The tool `n` of `a`, whose name `default/b` has.
pub fn conflict(n: u32) -> NameConflict {
    NameConflict {
        view: ViewName::Everything,
        list: ListKind::Tools,
        name: n.to_string(),
        wanted: format!("a_{n}"),
        given: format!("a_{n}_x9"),
        holder: key("b"),
        holding: NameHolder::Has,
    }
}

/// What `name` offers: one tool, under a prefix that is not its name.
pub fn section(name: &str, prefix: &str, tool: &str) -> Section {
    let target = ConnectionTarget::of(&declared(name, 1)).unwrap();
    let tool = Item::read(ListKind::Tools, &json!({ "name": tool }).to_string()).unwrap();
    let away = CallRefusal::Unavailable(Problem::new(Reason::Connecting, "not there yet"));
    let handle = UpstreamControl::new(key(name), away).handle().clone();
    let section = Section::new(
        &target,
        &Arc::new(ServerLists { tools: vec![tool], ..ServerLists::default() }),
        None,
        handle,
    );
    Section { prefix: prefix.into(), ..section }
}
