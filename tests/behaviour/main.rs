//! What evenkeel promises, end to end: the program itself, started as people start it, between real agents and real
//! servers of both eras and both transports. One module per theme; every test stands alone.

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

mod change;
mod container;
mod faults;
mod isolation;
mod lists;
mod names;
mod offers;
mod ondemand;
mod opening;
mod passthrough;
mod peers;
mod real_peers;
mod replace;
mod restart;
mod ring;
mod scale;
mod servers;
mod sessions;
mod stage;
mod start;
mod subscriptions;
mod update;
