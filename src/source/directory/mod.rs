//! A directory of YAML files, and of the JSON files of agents, as a source of declarations.
//!
//! Promises that any change of the directory (by editors, git, volume updates, or mistakes) leads to the declared state
//! quickly and never removes objects by accident: content that cannot be read keeps the last good declaration of its
//! objects, and a removal is applied only after two scans agree on it. Events only trigger scans; a scan compares
//! everything and reads what has changed. Never reads outside the directory and the secrets directory, and never writes
//! into either.

mod check;
mod debounce;
mod env_files;
mod find;
mod git;
mod history;
mod options;
mod other_agents;
mod scan;
mod scan_loop;
mod secrets;
mod skills;
mod source;
#[cfg(test)]
pub(crate) mod testing;
mod tree;

pub use self::check::{
    CheckContext, CheckResult, Finding, Severity, check_directory, check_files, check_text, exclude_error,
};
pub use self::find::{ObjectLocation, find_objects};
pub use self::options::Args;
pub use super::parse::TargetMode;
