//! MCP over the stdin and stdout of a child process.

mod guard;
mod lines;
mod mark;
mod pipes;
mod process;
mod started;
mod stderr;

pub use guard::{Guard, watch};
pub(super) use pipes::{Pipes, Waiting, start};
pub use started::Started;
pub use stderr::LastWords;
