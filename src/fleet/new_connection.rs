use super::listing::ServerListing;
use crate::wire::{Connection, ConnectionEvents};

/// A new connection with the server's lists, which are not published yet.
#[derive(Debug)]
pub(super) struct NewConnection {
    pub(super) connection: Connection,
    pub(super) events: ConnectionEvents,
    /// The server's lists.
    pub(super) listing: ServerListing,
}
