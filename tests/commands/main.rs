//! Tests the commands against a running instance: output, exit codes and files.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::disallowed_methods,
    reason = "tests"
)]

#[path = "../rig/mod.rs"]
mod rig;
#[path = "../support/mod.rs"]
mod support;

mod audit;
mod edit;
mod logs;
mod metrics;
mod read;
mod secrets;
mod skills;
mod test_instance;
mod unchanged_fleet;
mod wait;
