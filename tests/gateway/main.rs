//! Tests of the MCP endpoint in one process with a catalog, over real sockets.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, reason = "tests")]

#[path = "../rig/mod.rs"]
mod rig;
#[path = "../support/mod.rs"]
mod support;

mod batches;
mod calls;
mod checks;
mod connections;
mod cors;
mod fixture;
mod input;
mod legacy;
mod limits;
mod modern;
mod namespaces;
mod param_headers;
mod rmcp_client;
