//! The daemon: starts all parts, in the order in which data flows, and stops them.
//!
//! Promises that a task that ends before shutdown is an error, that all addresses are bound before anything is
//! started, and that everything ends within a time limit after a signal. Never decides anything about servers.

mod error;
mod kubeconfig;
mod limits;
mod listen;
mod names_file;
mod server_cache_file;
mod session_key;
mod signals;
pub mod socket;
mod start;
mod status_writer;
mod tasks;
mod telemetry;

pub use error::DaemonError;
pub use kubeconfig::KUBECONFIG_FILE as KUBECONFIG;
pub use limits::raise_open_file_limit;
pub use signals::Signals;
pub use start::Daemon;
pub use telemetry::Telemetry;
