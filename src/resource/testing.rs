//! Declared objects for the tests of all modules.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use jiff::Timestamp;
use serde_json::{Value, json};

use super::{
    DeclaredMeta, DeclaredObject, Digest, DigestKey, Endpoint, McpServerSpec, ObjectKey, Origin,
    ProtocolMode, SourceId, StdioEndpoint, Transport,
};

pub fn at(second: i64) -> Timestamp {
    Timestamp::from_second(second).unwrap()
}

pub fn key(name: &str) -> ObjectKey {
    ObjectKey::new("default", name)
}

pub fn server_spec(spec: Value) -> Arc<McpServerSpec> {
    serde_json::from_value(spec).unwrap()
}

pub fn meta(name: &str, generation: i64) -> DeclaredMeta {
    DeclaredMeta {
        key: key(name),
        uid: format!("uid-{name}").into(),
        generation,
        created_at: at(0),
        labels: BTreeMap::new(),
        annotations: BTreeMap::new(),
        origin: Origin::File { path: Arc::new(PathBuf::from(format!("{name}.yaml"))), line: 1 },
        revision: "r1".into(),
        last_commit: None,
    }
}

/// Returns a valid stdio server.
pub fn declared_server(name: &str, generation: i64) -> DeclaredObject<McpServerSpec> {
    let transport =
        Transport::Stdio(StdioEndpoint { command: "c".into(), args: Vec::new(), cwd: None, env: Vec::new() });
    DeclaredObject {
        meta: meta(name, generation),
        spec: Some(server_spec(json!({ "stdio": { "command": "c" } }))),
        spec_digest: Some(Digest::of(b"spec")),
        rejected: None,
        endpoint: Some(Ok(Arc::new(Endpoint::new(transport, ProtocolMode::Auto, &DigestKey::new(b"k"))))),
    }
}

pub fn source_id() -> SourceId {
    SourceId { kind: "directory", location: "/fleet".into() }
}
