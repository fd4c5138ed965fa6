//! The files below the root: walking them, reading them and hearing of their changes. Blocks.
//!
//! Promises never to read outside the root, never to wait for a file, and that no change between a walk and the next is
//! unheard where file events work. Never says what a file means, and never writes one.

mod mailbox;
mod read;
mod walk;
mod watch;

pub use mailbox::Mailbox;
pub use read::{FLAGS, FileId, Stamp, content, file_id, small_file, why};
pub use walk::{Found, MAX_FILE, Root, Visitor, walk};
pub use watch::{Watcher, names_of};
