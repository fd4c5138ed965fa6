use std::fmt;
use std::sync::Arc;

use crate::resource::ObjectKey;

/// The place where a grant is kept. Each grant has one, and is renewed by one task.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum GrantPlace {
    /// A file in the state directory.
    File(Arc<str>),
    /// Nowhere: the grant of a client that needs no login (client credentials).
    Memory(ObjectKey),
}

impl fmt::Display for GrantPlace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(name) => write!(f, "{name} in the state directory"),
            Self::Memory(server) => write!(f, "the client credentials of {server}"),
        }
    }
}
