//! The items listed to agents: the sections that servers publish, merged into immutable generations.
//!
//! Promises that a reader gets one consistent generation, that the cost of publishing a server's change depends on that
//! server and not on the fleet, that order is byte-stable, that names are unique and route back exactly, and that a
//! name never routes to a different item than before: it stays reserved while its server is declared and for one hour
//! after that. Never sends anything to a server.

mod change;
mod conflict;
mod declared;
mod expected;
mod generation;
mod list_page;
mod names;
mod publisher;
mod reserved_names;
mod route;
mod startup;
mod table;
mod template;
#[cfg(test)]
pub(crate) mod testing;
mod view;

pub use conflict::{NameConflict, NameHolderState};
pub use declared::CatalogDeclaration;
pub use expected::ExpectedItem;
pub use generation::{CatalogUpdate, Generation};
pub use list_page::{InvalidCursor, ListPage};
pub use names::NameId;
pub use publisher::{Catalog, Publisher, PublisherTask, ServerNames, catalog};
pub use reserved_names::{ReservedName, ReservedNames, ReservedUntil};
pub use route::Route;
pub use table::{RemovedName, Table};
pub use view::{ResourceRoute, View};
