//! What follows from what is declared: decisions as pure functions over plain data.
//!
//! Promises that the same [`Desired`](crate::resource::Desired) and [`Observed`] give the same [`Change`]s, whatever happened
//! before, and that a server that needs no change gets none. Knows no runtime, no clock, no I/O: time and
//! randomness are arguments.

mod changes;
mod parts;
mod target;

pub use changes::{Change, Observed, changes};
pub use parts::{Parts, Step};
pub use target::Target;
