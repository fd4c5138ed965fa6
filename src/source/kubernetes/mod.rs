//! The custom resources of an API server as a source of declarations.
//!
//! Promises that what is declared is complete before anything follows from it, that a list which begins anew
//! takes nothing away until a consistent read agrees, and that an API server which is away, says no, or gives
//! something that cannot be read is told and asked again while everything stays as it is. Each Secret that a
//! server refers to, and each ConfigMap that a skill does, is watched by its name and no other is ever read: that
//! needs the least permission (a Role may name them) and the least memory, at the price of one connection for each. Never writes.

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
