//! The child process of a stdio server: its start, its stderr, its end, and the end of all that it started.
//!
//! Promises that nothing of a child is left once it was ended, even where evenkeel is killed. Knows nothing of MCP.

mod child;
mod group;
mod guard;
mod mark;
mod started;
mod stderr;

pub(super) use child::{Process, spawn};
pub use guard::{Guard, watch};
pub use started::Started;
pub use stderr::LastWords;
