//! Long runs of evenkeel under load, which end where they began: nothing of what happened in between is left. Run by
//! hand, as CONTRIBUTING.md describes.

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

mod agents;
mod churn;
mod fleet;
