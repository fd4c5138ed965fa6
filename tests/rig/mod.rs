//! The test rig: one scriptable MCP server. It implements everything that the specification allows a server to do, and
//! most of what it forbids.
//!
//! A [`Script`] configures its behavior. Tests start it in their own process over HTTP ([`FakeHttpServer`]), or
//! evenkeel starts it as a child process over stdio ([`FakeStdioServer`]). Tests change the script while the server
//! runs and read its [`Counters`]; violations by the client are recorded in [`Counters::complaints`]. The rig is built
//! on hyper and raw JSON and shares no code with evenkeel or rmcp: a mistake on one side cannot be repeated on the
//! other. It is never part of the shipped binary.
//!
//! As a program (`cargo build --example rig`): `rig [--http ADDRESS] SCRIPT.json`.

// Tests fail by panicking, and each test crate uses only a part of the rig.
#![allow(
    dead_code,
    unused_imports,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::disallowed_methods,
    clippy::exit,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a test program"
)]

mod control;
mod counters;
mod era;
#[allow(clippy::duplicate_mod, reason = "a crate may include the rig without the other support modules")]
#[path = "../support/example.rs"]
mod example;
mod handle;
mod headers;
mod http;
mod input;
mod message;
mod polling;
mod script;
mod server;
mod server_features;
mod sse;
mod stdio;
mod tools;

pub use control::ControlCommand;
pub use counters::Counters;
pub use handle::{FakeHttpServer, FakeServerProcess, FakeStdioServer};
pub use http::serve;
pub use script::{Action, ResponseFormat, Rule, Script, ServerEra};
pub use server::FakeServer;
pub use stdio::{run, run_grandchild};
pub use tools::{ODD_RESULT, ODD_TOOL};
