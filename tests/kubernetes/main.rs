//! A fleet from a real API server, with the permissions of the manifests: applied objects, their status, and calls
//! while the API server, a permission, a Secret or a replica is missing. Most tests share one API server, each in a
//! namespace of its own.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stdout,
    clippy::disallowed_methods,
    reason = "tests"
)]

#[path = "../rig/mod.rs"]
mod rig;
#[path = "../support/mod.rs"]
mod support;

mod api_responses;
mod api_server;
mod broken_connections;
mod commands;
mod faults;
mod measure;
mod objects;
mod plan;
mod proxy;
mod replica_input;
mod replica_set;
mod replicas;
mod secrets;
mod skills;
mod test_namespace;
mod writes;
