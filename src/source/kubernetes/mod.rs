//! The custom resources of an API server as a source of declarations.
//!
//! Promises that the declared objects are complete before anything depends on them, that a restarted list removes
//! nothing until a consistent read confirms it, and that an API server which is unreachable, denies access, or returns
//! something that cannot be decoded is reported and retried while the current state is kept. Each Secret that a server
//! refers to, and each ConfigMap that a skill refers to, is watched by its name, and no other is ever read. That
//! requires the least permission (a Role may name them) and the least memory, at the price of one connection for each.
//! Never writes.

mod cluster;
mod list;
mod object;
mod object_store;
mod references;
mod watch;
mod watch_error;
mod watch_message;
mod watches;

pub use self::cluster::Args;
pub use self::list::list;
