//! Turns the observed files into the accepted declarations, and saves them for the next run.
//!
//! Promises that an object keeps its identity and its last good declaration, that a change or a removal is applied only
//! after two scans agree on it, and that all of this survives a restart. Never reads the tree, and never decides
//! whether a removal is intended: the caller does.

mod files;
mod merge;
mod next_state;
mod problems;
mod records;
mod removals;

pub use files::{DeclarationFiles, ScanContext, UnreadableFolder};
pub use merge::AcceptedObjects;
pub use next_state::MergeContext;
pub use records::DeclarationRecords;
pub use removals::record_removals;
