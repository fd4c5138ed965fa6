//! MCP over the stdin and stdout of a child process.

mod lines;
mod pipes;

pub(super) use pipes::{StdioPipes, start};
