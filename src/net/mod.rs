//! Utilities for network clients and servers.
//!
//! Promises one backoff rule for all retries, that no panic of a long-lived task is lost, and one place that decides
//! which HTTP requests are served. Contains no protocol above HTTP except the errors of the Kubernetes API.

pub mod api_server;
mod authorization;
mod backoff;
mod media_type;
mod restart;
mod stall_guard;
mod supervised_tasks;

pub use authorization::{AllowedHosts, Authorization, AuthorizationError, BearerToken};
pub use backoff::{Backoff, Delays, jitter};
pub use media_type::{accepts, is_json};
pub use restart::{RestartBackoff, catch_panic, restart_on_panic};
pub use stall_guard::StallGuard;
pub use supervised_tasks::SupervisedTasks;
