//! A directory of YAML files, and of the JSON files of agents, as a source of declarations.
//!
//! Promises that what people do to the directory (editors, git, volumes that are flipped, mistakes) leads to
//! the declared state, quickly, and never to an accident: what cannot be read keeps its last good form, and
//! what is there no longer must be seen so twice. Events only say when to look; a look compares everything,
//! and reads what has changed. Never reads outside the directory and the secrets directory, and never writes
//! into either.

mod check;
mod debounce;
mod find;
mod git;
mod history;
mod options;
mod scan;
mod scan_loop;
mod secrets;
mod skills;
mod source;
mod tree;

pub use self::check::{
    CheckContext, CheckResult, Finding, Severity, check_directory, check_files, check_text,
};
pub use self::find::{ObjectLocation, find_objects};
pub use self::options::Args;
pub use super::parse::TargetMode;
