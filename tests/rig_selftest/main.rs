//! Tests of the test rig: without scripted faults it is a valid MCP server, and scripted faults happen.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, reason = "tests")]

#[path = "../rig/mod.rs"]
mod rig;
#[path = "../support/mod.rs"]
mod support;

mod faults;
mod official;
mod raw;
