//! The live connections: one actor per server attaches, refreshes, replaces and detaches it. Its state machine decides.
//!
//! Promises that one server's failure affects no other, that nothing is published before everything was listed,
//! and that a healthy connection is not disturbed. Calls do not pass through the actors: they take an
//! [`UpstreamHandle`](crate::upstream::UpstreamHandle) from a catalog route.
//! Never decides which servers are connected; `plan/` does.

mod actor;
mod attach;
mod caller_actors;
mod caller_orders;
mod connection_key;
mod context;
mod descriptor_budget;
#[cfg(test)]
mod engine_model;
mod health;
mod list_findings;
mod list_pages;
mod listing;
mod logs;
mod metrics;
mod new_connection;
mod observation;
mod reconcile;
mod refresh_schedule;
mod server_cache;
mod slots;
mod state_machine;
mod subscriptions;
mod wanted_lists;

pub use context::FleetContext;
pub use logs::ServerLogs;
pub use metrics::FleetMetrics;
pub use observation::{LiveServer, Observation, Phase};
pub use reconcile::Fleet;
pub use server_cache::{CacheUpdate, CachedServer, RestoredCache, ServerCache};
