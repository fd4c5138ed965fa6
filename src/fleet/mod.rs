//! The live connections: one actor per server attaches, refreshes, replaces and detaches it.
//!
//! Promises that one server's trouble is its own, that nothing is published before everything was listed,
//! and that a healthy connection is left alone. Calls do not pass through the actors: they take an
//! [`UpstreamHandle`](crate::upstream::UpstreamHandle) from a catalog route. Never decides what should be connected; `plan/` does.

mod actor;
mod attach;
mod attached;
mod connection_key;
mod context;
mod health;
mod listing;
mod logs;
mod memory;
mod metrics;
mod observation;
mod pace;
mod reconcile;
mod slots;
mod subscriptions;

pub use context::Context;
pub use logs::Logs;
pub use memory::{Kept, Known, Memory, News};
pub use metrics::FleetMetrics;
pub use observation::{Listed, Observation, Phase};
pub use reconcile::Fleet;
