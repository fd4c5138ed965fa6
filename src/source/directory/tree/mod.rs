//! The files below the root: walking them, reading them and hearing of their changes. Blocks.
//!
//! Promises never to read outside the root, never to wait for a file, and that no change between a walk and the next is
//! unheard where file events work. Never says what a file means, and never writes one.

mod file_events;
mod read;
mod walk;
mod watch;

pub use file_events::FileEventQueue;
pub use read::{FileId, FileStamp, OPEN_FLAGS, content, file_id, read_file, why};
pub use walk::{FoundFile, MAX_FILE_BYTES, TreeRoot, TreeVisitor, walk};
pub use watch::{FolderWatcher, resolution_paths};
