use bytes::Bytes;

use crate::fleet::UpstreamHandle;
use crate::resource::ObjectKey;

/// What one server offers, after its filters: made once per change of the server, shared by generations.
#[derive(Debug)]
pub struct Section {
    /// The server.
    pub key: ObjectKey,
    /// Stands before names; empty for none.
    pub prefix: String,
    /// Its tools in the order of their names, each name once.
    pub tools: Vec<Tool>,
    /// The way to the server.
    pub handle: UpstreamHandle,
}

/// One tool as its server lists it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tool {
    /// The server's own name for it.
    pub name: String,
    /// The whole tool as the server wrote it, a JSON object.
    pub raw: Bytes,
}
