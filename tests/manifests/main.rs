//! `manifests/` and `examples/kubernetes/` as a real API server takes them, and our statuses as `GitOps` tools read
//! them.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::disallowed_methods,
    reason = "tests"
)]

#[path = "../rig/mod.rs"]
mod rig;
#[path = "../support/mod.rs"]
mod support;

mod apply;
mod cluster;
mod deployment;
mod docs;
mod examples;
mod gitops_health;
mod permissions;
