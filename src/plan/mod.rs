//! What follows from what is declared: decisions as pure functions over plain data.
//!
//! Promises that the same [`Desired`](crate::resource::Desired) and [`LastApplied`] give the same [`DeclarationChange`]s, whatever happened
//! before, and that a server that needs no change gets none. What the fleet does and what a plan tells is decided in one
//! place: [`DeclarationParts`] say what differs, and [`DeclarationChange::between`] what follows. Knows no runtime, no clock, no I/O: time and
//! randomness are arguments.

mod change;
mod last_applied;
mod parts;
mod target;

pub use change::{DeclarationChange, Presence};
pub use last_applied::LastApplied;
pub use parts::DeclarationParts;
pub use target::ConnectionTarget;
