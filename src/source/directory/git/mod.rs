//! Reads the state of the git repository that contains the tree: the checked-out commit, its files, and whether git is
//! running.
//!
//! Promises to return within a bound, and to work without git: then no commits are available. Never changes, locks or
//! fetches anything, and never runs a program that the configuration of the repository names.

mod commits;
mod head;
mod program;

pub use commits::{BlobId, CommitFiles, blob_id};
pub use head::{GitDirectory, GitHead};
