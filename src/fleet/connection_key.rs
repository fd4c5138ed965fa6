use std::fmt;

use crate::resource::ObjectKey;

/// The key of a connection in the fleet.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct ConnectionKey {
    /// The server.
    pub(super) server: ObjectKey,
    /// The callers that share the connection.
    pub(super) isolation: Isolation,
}

/// The callers that share a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Isolation {
    /// All callers.
    Shared,
}

impl ConnectionKey {
    /// Returns the key of the connection to a server that all callers share.
    pub(super) fn shared(server: ObjectKey) -> Self {
        Self { server, isolation: Isolation::Shared }
    }
}

impl fmt::Display for ConnectionKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.isolation {
            Isolation::Shared => self.server.fmt(f),
        }
    }
}
