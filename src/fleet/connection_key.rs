use std::fmt;

use crate::resource::ObjectKey;

/// Which connection of the fleet.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct ConnectionKey {
    /// The server that it leads to.
    pub(super) server: ObjectKey,
    /// For whom it is.
    pub(super) isolation: Isolation,
}

/// For whom a connection is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Isolation {
    /// For all callers.
    Shared,
}

impl ConnectionKey {
    /// The connection to a server that all callers share.
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
