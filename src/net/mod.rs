//! Small tools for whatever talks over a network.
//!
//! Promises one backoff for everything that is tried again, and one place that decides which requests are answered.
//! Knows no protocol above HTTP but the errors of the Kubernetes API.

pub mod api_server;
mod authorization;
mod backoff;
mod media_type;
mod stall_guard;

pub use authorization::{AllowedHosts, Authorization, AuthorizationError, BearerToken};
pub use backoff::{Backoff, Delays, jitter};
pub use media_type::{accepts, is_json};
pub use stall_guard::StallGuard;
