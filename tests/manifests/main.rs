//! Applies `manifests/` and `examples/kubernetes/` to a real API server, and checks how `GitOps` tools read the
//! statuses of evenkeel.

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
