use super::listing::ServerListing;
use crate::wire::{Connection, ConnectionEvents};

/// A connection that is made and listed; nothing of it is published yet.
#[derive(Debug)]
pub(super) struct NewConnection {
    pub(super) connection: Connection,
    pub(super) events: ConnectionEvents,
    /// Everything that the server lists.
    pub(super) listing: ServerListing,
}
