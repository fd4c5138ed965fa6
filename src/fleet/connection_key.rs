use std::fmt;

use crate::resource::ObjectKey;
use crate::upstream::CallerConnectionKey;

/// The key of a connection in the fleet.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum ConnectionKey {
    /// The connection to a server that all callers share, or from which the lists of an isolated server are read.
    Shared(ObjectKey),
    /// The connection that one caller has of its own.
    Caller(CallerConnectionKey),
}

impl fmt::Display for ConnectionKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Shared(server) => server.fmt(f),
            Self::Caller(key) => write!(f, "{} for {}", key.server, key.caller),
        }
    }
}
