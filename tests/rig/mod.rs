//! The fault rig: one scriptable MCP server that can do everything a server may do, and most of what it may not.
//!
//! A [`Script`] says how it behaves. Tests start it in their own process over HTTP ([`Http`]) or let evenkeel
//! start it as a child over stdio ([`Stdio`]), change the script while it runs and read its [`Counters`]; what a
//! client does wrong stands in [`Counters::complaints`]. It is written on hyper and raw JSON and shares no code
//! with evenkeel or with rmcp, so that no mistake can hide on both sides. It is never part of the shipped binary.
//!
//! As a program (`cargo build --example rig`): `rig [--http ADDRESS] SCRIPT.json`.

// Tests fail by panicking, and each uses the part of the rig that it needs.
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
#[allow(clippy::duplicate_mod, reason = "a bench has the rig without the rest of support")]
#[path = "../support/example.rs"]
mod example;
mod handle;
mod headers;
mod http;
mod message;
mod script;
mod server;
mod server_features;
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
