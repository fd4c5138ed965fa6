//! The daemon: puts the parts together, in the order in which data flows, and takes them down again.
//!
//! Promises that one of its tasks which ends although it was not told to is noticed, that all addresses are taken
//! before anything is started, and that everything ends within a bound after a signal. Decides nothing about servers.

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
