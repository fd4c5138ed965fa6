//! The child process of a stdio server: its start, its stderr, its end, and the end of all that it started.
//!
//! Promises that nothing of a child is left once it was ended, even where evenkeel is killed. Knows nothing of MCP.

mod child;
mod group;
mod guard;
mod process_activity;
mod process_mark;
mod stderr_tail;

pub(super) use child::{ChildProcess, spawn};
pub use guard::{ProcessGuard, guard_children};
pub use process_activity::ProcessActivity;
pub use stderr_tail::StderrTail;
