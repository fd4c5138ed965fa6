use std::fmt;
use std::sync::Arc;

use serde_json::Value;
use serde_json::value::RawValue;

use super::handle::UpstreamHandle;
use crate::resource::{Isolation, McpServerSpec};
use crate::wire::{Members, RpcResponse};

/// The component that handles requests for the items of a section.
#[derive(Clone, Debug)]
pub enum Responder {
    /// A server, through its connection.
    Server(UpstreamHandle),
    /// A server, through a connection that the caller has of its own (`isolation: Session`).
    Isolated {
        /// The handle of the connection from which the lists are read. It takes no calls.
        catalog: UpstreamHandle,
        /// True if the server gets the roots of the caller.
        roots: bool,
    },
    /// Evenkeel itself, such as for skills.
    Local(Arc<dyn LocalResponder>),
}

impl Responder {
    /// Returns the responder of a server with this spec.
    pub(super) fn of_server(spec: &McpServerSpec, handle: UpstreamHandle) -> Self {
        match spec.isolation {
            Isolation::Shared => Self::Server(handle),
            Isolation::Session => Self::Isolated { catalog: handle, roots: spec.roots },
        }
    }

    /// Returns true if the two are of the same kind.
    pub(super) fn is_equivalent_to(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Isolated { roots, .. }, Self::Isolated { roots: other, .. }) => roots == other,
            _ => std::mem::discriminant(self) == std::mem::discriminant(other),
        }
    }
}

/// Handles requests without a server.
pub trait LocalResponder: fmt::Debug + Send + Sync {
    /// Handles a request for an item of the section. `name` is the name or URI of the item. Must not block.
    fn respond(&self, method: &str, name: &str, params: &Members<'_>) -> RpcResponse;

    /// Returns the skill that the section represents; `None` if it does not represent one.
    fn skill(&self) -> Option<SkillEntry<'_>> {
        None
    }

    /// Returns the resources of the direct children of a directory; `None` if the section has no such directory.
    fn directory_children(&self, _uri: &str) -> Option<Vec<Value>> {
        None
    }
}

/// A skill of the Skills extension (SEP-2640).
#[derive(Clone, Copy, Debug)]
pub struct SkillEntry<'a> {
    /// The URI of SKILL.md.
    pub uri: &'a str,
    /// The skill as an item of `skills/list`.
    pub json: &'a RawValue,
    /// The resource of the skill's root directory.
    pub directory: &'a RawValue,
}
