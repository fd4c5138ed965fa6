//! Builders of observations and sections for the tests of this module and of `admin/`.

use std::sync::Arc;

use serde_json::json;

use crate::catalog::{NameConflict, NameHolderState};
use crate::fleet::{LiveServer, Observation, Phase};
use crate::plan::ConnectionTarget;
use crate::resource::testing::{declared_server, key};
use crate::resource::{Digest, Problem, Reason, ServerInfo};
use crate::upstream::{CallRefusal, Item, Section, ServerLists, UpstreamControl, ViewName};
use crate::wire::{ListKind, ServerDescription};

/// Returns a live server with three tools.
pub fn live_server(generation: i64) -> LiveServer {
    LiveServer {
        generation,
        description: Arc::new(ServerDescription {
            server_info: ServerInfo { name: "test".into(), version: "1".into() },
            protocol_version: "2025-11-25".into(),
            instructions: None,
        }),
        tools: 3,
        prompts: 0,
        resources: 0,
        catalog_digest: Digest::of(b"tools"),
        declares_no_tools: false,
    }
}

/// Returns an observation of server `name`: `generation` is being applied, `live` is connected.
pub fn observation(name: &str, generation: i64, phase: Phase, live: Option<i64>) -> Observation {
    Observation {
        paused: None,
        degraded: None,
        key: key(name),
        uid: format!("uid-{name}").into(),
        generation,
        last_handled_request: None,
        phase,
        live_server: live.map(|generation| Arc::new(live_server(generation))),
        restarts: 0,
    }
}

/// Returns the conflict of tool `n` of server `a`, whose name belongs to `default/b`.
pub fn name_conflict(n: u32) -> NameConflict {
    NameConflict {
        view: ViewName::All,
        list: ListKind::Tools,
        name: n.to_string(),
        bare_name: format!("a_{n}"),
        assigned_name: format!("a_{n}_x9"),
        holder: key("b"),
        holder_state: NameHolderState::Current,
    }
}

/// Returns the section of server `name` with one tool, under a prefix other than its name.
pub fn section(name: &str, prefix: &str, tool: &str) -> Section {
    let target = ConnectionTarget::from_declared(&declared_server(name, 1)).unwrap();
    let tool = Item::parse(ListKind::Tools, &json!({ "name": tool }).to_string()).unwrap();
    let refusal = CallRefusal::Unavailable(Problem::new(Reason::Connecting, "not attached yet"));
    let handle = UpstreamControl::new(key(name), refusal).handle().clone();
    let section = Section::new(
        &target,
        &Arc::new(ServerLists { tools: vec![tool], ..ServerLists::default() }),
        None,
        handle,
    );
    Section { prefix: prefix.into(), ..section }
}
