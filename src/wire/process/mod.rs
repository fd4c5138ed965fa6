//! The child process of a stdio server: its start, its stderr, and its termination together with all processes that it
//! started.
//!
//! Promises that no process of a terminated child is left, even if evenkeel is killed. Never interprets MCP.

mod child;
mod error_lines;
mod group;
mod group_reports;
mod guard;
mod process_activity;
mod process_mark;
mod stderr_tail;

pub(super) use child::{ChildProcess, spawn};
pub use guard::{ProcessGuard, guard_children};
pub use process_activity::ProcessActivity;
pub use stderr_tail::StderrTail;
