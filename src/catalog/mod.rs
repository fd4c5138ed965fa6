//! What agents may see: the sections that servers publish, merged into immutable generations.
//!
//! Promises that a reader sees one generation whole, that publishing one server's change costs that
//! server and not the fleet, that order is byte-stable, that names are unique and route back exactly, and that a name
//! never leads to another item than before: it is kept while its server is declared and for an hour after that.
//! Never talks to a server.

mod change;
mod declared;
mod generation;
mod item;
mod kept;
mod matcher;
mod names;
mod publisher;
mod route;
mod section;
mod table;
mod template;
#[cfg(test)]
mod testing;
mod view;

pub use declared::Declaration;
pub use generation::{Conflict, Generation, Holding, Step};
pub use item::Item;
pub use kept::{KeptNames, OwnName, Until};
pub use matcher::Matcher;
pub use names::NameId;
pub use publisher::{Catalog, NamesOf, Publisher, PublisherTask, catalog};
pub use route::Route;
pub use section::{Answering, Lists, Section};
pub use table::{BadCursor, Gone, Page, Table};
pub use view::{Place, View, ViewName};
