//! MCP over the stdin and stdout of a child process.

mod lines;
mod pipes;
mod process;
mod stderr;

pub(super) use pipes::{Pipes, Waiting, start};
