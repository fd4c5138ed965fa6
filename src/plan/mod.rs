//! Computes the changes that follow from new declarations: pure functions over plain data.
//!
//! Promises that the same [`Desired`](crate::resource::Desired) and [`LastApplied`] result in the same
//! [`DeclarationChange`]s, independent of earlier events, and that a server that needs no change gets none. The fleet
//! and `evenkeel plan` use the same decision: [`DeclarationParts`] determines what differs, and
//! [`DeclarationChange::between`] the resulting change. Never uses a runtime, a clock or I/O; time and randomness are
//! arguments.

mod change;
mod last_applied;
mod parts;
mod target;

pub use change::{DeclarationChange, Presence};
pub use last_applied::LastApplied;
pub use parts::DeclarationParts;
pub use target::ConnectionTarget;
