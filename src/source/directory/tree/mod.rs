//! Walks, reads and watches the files below the root. Blocks.
//!
//! Promises never to read outside the root, never to wait for a file, and that where file events work no change between
//! two walks is missed. Never interprets the content of a file, and never writes one.

mod file_events;
mod ignore_rules;
mod read;
mod root;
mod walk;
mod watch;

pub use file_events::FileEventQueue;
pub use ignore_rules::{IGNORE_FILE, IgnoreRules};
pub use read::{FileId, FileStamp, OPEN_FLAGS, file_id, read_failure, read_file, read_open_file};
pub use root::TreeRoot;
pub use walk::{FoundFile, MAX_FILE_BYTES, TreeVisitor, walk};
pub use watch::{FolderWatcher, resolution_paths};
