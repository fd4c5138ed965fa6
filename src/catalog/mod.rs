//! What agents may see: the sections that servers publish, merged into immutable generations.
//!
//! Promises that a reader sees one generation whole, that publishing one server's change costs that
//! server and not the fleet, that order is byte-stable, and that names are unique and route back exactly.
//! Never talks to a server.

mod generation;
mod item;
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

pub use generation::{Conflict, Generation, Step};
pub use item::Item;
pub use matcher::Matcher;
pub use publisher::{Catalog, Publisher, PublisherTask, catalog};
pub use route::Route;
pub use section::{Answering, Lists, Section};
pub use table::{BadCursor, Gone, Page, Table};
pub use view::{Place, View, ViewName};
