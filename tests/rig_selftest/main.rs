//! The fault rig is a valid MCP server when it is not told to misbehave, and misbehaves as it is told.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, reason = "tests")]

#[path = "../rig/mod.rs"]
mod rig;
#[path = "../support/mod.rs"]
mod support;

mod faults;
mod official;
mod raw;
