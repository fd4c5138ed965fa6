use std::sync::Arc;

use crate::resource::{
    DeclaredObject, Digest, Endpoint, McpServerSpec, ObjectKey, RECONCILE_REQUESTED_AT,
    RECONNECT_REQUESTED_AT,
};

/// The desired state of one connection: the part of a declaration that the fleet acts on.
#[derive(Clone, Debug)]
pub struct ConnectionTarget {
    /// The key of the server.
    pub key: ObjectKey,
    /// The uid of the object. A different uid means a different server, even if everything else is equal.
    pub uid: Arc<str>,
    /// The generation of the declaration.
    pub generation: i64,
    /// The digest of the declaration, which does not depend on secrets.
    pub spec_digest: Option<Digest>,
    /// The resolved endpoint. A changed digest requires a new connection.
    pub endpoint: Arc<Endpoint>,
    /// The spec. Its other settings are applied to a live connection without replacing it.
    pub spec: Arc<McpServerSpec>,
    /// The value of the annotation [`RECONCILE_REQUESTED_AT`]. A different value requests a retry, or a refresh of the
    /// lists.
    pub reconcile_requested_at: Option<Arc<str>>,
    /// The value of the annotation [`RECONNECT_REQUESTED_AT`]. A different value requests a new connection.
    pub reconnect_requested_at: Option<Arc<str>>,
}

impl ConnectionTarget {
    /// Returns the target of a declaration; `None` if it never was valid, is suspended or has an unresolved reference.
    pub fn from_declared(declared: &DeclaredObject<McpServerSpec>) -> Option<Self> {
        let (spec, endpoint) = spec_and_endpoint(declared)?;
        let annotation = |name| declared.meta.annotations.get(name).map(|value| value.as_str().into());
        Some(Self {
            key: declared.meta.key.clone(),
            uid: declared.meta.uid.clone(),
            generation: declared.meta.generation,
            spec_digest: declared.spec_digest,
            endpoint: endpoint.clone(),
            spec: spec.clone(),
            reconcile_requested_at: annotation(RECONCILE_REQUESTED_AT),
            reconnect_requested_at: annotation(RECONNECT_REQUESTED_AT),
        })
    }

    /// Returns the prefix of the names of tools and prompts: the declared prefix, or else the server's name.
    pub fn prefix(&self) -> &str {
        self.spec.expose.prefix.as_deref().unwrap_or(&self.key.name)
    }

    /// Returns true if a declaration has a target.
    pub fn exists_for(declared: &DeclaredObject<McpServerSpec>) -> bool {
        spec_and_endpoint(declared).is_some()
    }

    /// Returns true if the connection for `current` can also be used for this target, that is, if comparing their
    /// [`DeclarationParts`](super::DeclarationParts) does not result in `Replace`.
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
