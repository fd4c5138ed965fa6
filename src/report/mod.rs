//! Where the truth is told: conditions and status of every declared object, and what happened to them.
//!
//! Promises that a status is a function of what is declared and observed, that it is written only when it
//! changes, that it carries the generation it speaks of, and that telling about one object costs that
//! object and not the fleet. Never starts, probes or delays a server, and shows no secret.

mod audit;
mod conditions;
mod event;
pub mod kubernetes;
mod ledger;
mod news;
mod object;
mod readiness;
mod reporter;
mod server;
mod skill;
mod source;
mod source_object;
mod store;
#[cfg(test)]
pub(crate) mod testing;

pub use audit::{AuditMetrics, keep_audit};
pub use conditions::{Sentences, Truth, condition};
pub use event::{Action, Event, Occurrence, Regarding};
pub use object::{Kind, Object};
pub use readiness::Readiness;
pub use reporter::{Inputs, Reporter};
pub use server::server_status;
pub use skill::skill_status;
pub use source::{Counts, SourceFault, SourceResource, SourceSpec, SourceStatus, source_status};
pub use source_object::Source;
pub use store::Snapshot;
