//! What follows from what is declared: decisions as pure functions over plain data.
//!
//! Promises that the same [`Desired`](crate::resource::Desired) and [`Observed`] give the same [`Change`]s, whatever happened
//! before, and that a server that needs no change gets none. What the fleet does and what a plan tells is decided in one
//! place: [`Parts`] say what differs, and [`Change::between`] what follows. Knows no runtime, no clock, no I/O: time and
//! randomness are arguments.

mod change;
mod changes;
mod parts;
mod target;

pub use change::{Change, Presence};
pub use changes::Observed;
pub use parts::Parts;
pub use target::Target;
