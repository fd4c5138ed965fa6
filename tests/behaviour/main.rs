//! End-to-end tests of evenkeel's guarantees: the program itself, started as users start it, between real agents and
//! real servers of both eras and both transports. One module per topic; the tests are independent.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::disallowed_methods,
    clippy::print_stdout,
    reason = "tests"
)]

#[path = "../rig/mod.rs"]
mod rig;
#[path = "../support/mod.rs"]
mod support;

mod container;
mod control_servers;
mod faults;
mod file_changes;
mod fixture;
mod forgotten_sessions;
mod handshake;
mod input_requests;
mod isolated_sessions;
mod isolation;
mod lifecycle;
mod lists;
#[cfg(target_os = "linux")]
mod local_limits;
#[cfg(target_os = "linux")]
mod memory;
mod names;
mod oauth;
mod on_demand;
mod passthrough;
mod process_end;
mod process_start;
mod prompts_and_resources;
mod protocol_violations;
mod proxies;
mod real_servers;
mod replacement;
mod restart;
mod scale;
mod sdk_input;
mod sdk_lists;
mod sdks;
mod server_lists;
mod server_matrix;
mod sse_servers;
mod subscriptions;
mod unannounced_changes;
mod upstream_loop;
