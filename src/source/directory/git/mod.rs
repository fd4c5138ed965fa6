//! What git knows of the tree: the commit that is checked out, what it holds, and whether git is at work.
//!
//! Promises to answer within a bound, and without git: then nothing is known of commits. Never changes, locks or fetches
//! anything, and never runs what the repository's configuration names.

mod commits;
mod head;
mod program;

pub use commits::{BlobId, CommitFiles, blob};
pub use head::{GitDirectory, GitHead};
