//! What agents may see: the sections that servers publish, merged into immutable generations.
//!
//! Promises that a reader sees one generation whole, that publishing one server's change costs that
//! server and not the fleet, that order is byte-stable, that names are unique and route back exactly, and that a name
//! never leads to another item than before: it is kept while its server is declared and for an hour after that.
//! Never talks to a server.

mod change;
mod conflict;
mod declared;
mod generation;
mod kept;
mod names;
mod publisher;
mod route;
mod table;
mod template;
#[cfg(test)]
mod testing;
mod view;

pub use conflict::{Conflict, Holding};
pub use declared::Declaration;
pub use generation::{Generation, Step};
pub use kept::{KeptNames, OwnName, Until};
pub use names::NameId;
pub use publisher::{Catalog, NamesOf, Publisher, PublisherTask, catalog};
pub use route::Route;
pub use table::{BadCursor, Gone, Page, Table};
pub use view::{Place, View};
