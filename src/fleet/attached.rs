use super::listing::Listings;
use crate::wire::{Events, Link};

/// A connection that is made and listed; nothing of it is published yet.
#[derive(Debug)]
pub(super) struct Attached {
    pub(super) link: Link,
    pub(super) events: Events,
    /// Everything that the server lists.
    pub(super) listings: Listings,
}
