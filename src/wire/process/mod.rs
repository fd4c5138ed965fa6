//! The child process of a stdio server: its start, its stderr, and its termination together with all processes that it
//! started.
//!
//! Promises that no process of a terminated child is left, even if evenkeel is killed. Never interprets MCP.

mod child;
mod error_lines;
mod exit_status;
mod group;
mod group_reports;
mod guard;
mod proc_stat;
mod process_activity;
mod process_mark;
mod shared_stop_timeout;
mod spawn;
mod stderr_lines;
mod stderr_tail;

pub(super) use child::{ChildProcess, Supervision};
pub(super) use exit_status::describe_exit;
pub use guard::{ProcessGuard, guard_children};
pub use process_activity::ProcessActivity;
pub use shared_stop_timeout::SharedStopTimeout;
pub(super) use spawn::spawn;
pub(super) use stderr_lines::StderrLines;
pub use stderr_tail::StderrTail;
