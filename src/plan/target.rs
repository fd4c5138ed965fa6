use std::sync::Arc;

use crate::resource::{
    DeclaredObject, Digest, Endpoint, McpServerSpec, ObjectKey, RECONCILE_REQUESTED_AT,
    RECONNECT_REQUESTED_AT,
};

/// What one connection should be: the part of a declaration that the fleet acts on.
#[derive(Clone, Debug)]
pub struct ConnectionTarget {
    /// The server.
    pub key: ObjectKey,
    /// The object's uid: another uid is another server, whatever else is equal.
    pub uid: Arc<str>,
    /// The generation that this target stands for.
    pub generation: i64,
    /// The digest of the declaration, which says nothing of secrets.
    pub spec_digest: Option<Digest>,
    /// How to reach it; a changed digest means a new connection.
    pub endpoint: Arc<Endpoint>,
    /// The rest of the declaration: what applies to a live connection without replacing it.
    pub spec: Arc<McpServerSpec>,
    /// The last value of [`REQUESTED_AT`]: another value asks for a retry, or for the lists to be read again.
    pub reconcile_requested_at: Option<Arc<str>>,
    /// The last value of [`RECONNECT_AT`]: another value asks for a new connection.
    pub reconnect_requested_at: Option<Arc<str>>,
}

impl ConnectionTarget {
    /// The target of a declaration; `None` if it has none now: never valid, suspended, or with a
    /// reference that was not found.
    pub fn from_declared(declared: &DeclaredObject<McpServerSpec>) -> Option<Self> {
        let (spec, endpoint) = spec_and_endpoint(declared)?;
        let asked = |name| declared.meta.annotations.get(name).map(|value| value.as_str().into());
        Some(Self {
            key: declared.meta.key.clone(),
            uid: declared.meta.uid.clone(),
            generation: declared.meta.generation,
            spec_digest: declared.spec_digest,
            endpoint: endpoint.clone(),
            spec: spec.clone(),
            reconcile_requested_at: asked(RECONCILE_REQUESTED_AT),
            reconnect_requested_at: asked(RECONNECT_REQUESTED_AT),
        })
    }

    /// Gives what stands before the names of tools and prompts: the declared prefix, else the server's name.
    pub fn prefix(&self) -> &str {
        self.spec.expose.prefix.as_deref().unwrap_or(&self.key.name)
    }

    /// True if a declaration has a target now.
    pub fn exists_for(declared: &DeclaredObject<McpServerSpec>) -> bool {
        spec_and_endpoint(declared).is_some()
    }

    /// True if the connection made for `current` serves this target too: if [`DeclarationParts`](super::DeclarationParts) of the two call for
    /// no `Replace`.
    pub fn same_connection(&self, current: &Self) -> bool {
        self.uid == current.uid
            && self.endpoint.digest() == current.endpoint.digest()
            && (self.reconnect_requested_at.is_none()
                || self.reconnect_requested_at == current.reconnect_requested_at)
    }
}

fn spec_and_endpoint(
    declared: &DeclaredObject<McpServerSpec>,
) -> Option<(&Arc<McpServerSpec>, &Arc<Endpoint>)> {
    let spec = declared.spec.as_ref().filter(|spec| !spec.suspend)?;
    let endpoint = declared.endpoint.as_ref()?.as_ref().ok()?;
    Some((spec, endpoint))
}
