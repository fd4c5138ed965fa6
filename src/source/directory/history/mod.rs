//! From what was seen of the files to the declarations that are in force, and what is remembered of them.
//!
//! Promises that an object keeps its identity and its last good declaration, that a change or a removal counts only when
//! two looks agree on it, and that all of this outlives a restart. Never looks at the tree, and never decides whether a
//! removal is meant: it is told.

mod files;
mod merge;
mod next_state;
mod records;
mod removals;

pub use files::{DeclarationFiles, ScanContext, UnreadableFolder};
pub use merge::AcceptedObjects;
pub use next_state::MergeContext;
pub use records::DeclarationRecords;
pub use removals::record_removals as note_removals;
