//! Status reporting: conditions and status of every declared object, events, and audit records.
//!
//! Promises that a status is a function of the declared and the observed state, that it is written only when it
//! changes, that it carries its `observedGeneration`, and that the cost of reporting a change depends on the changed
//! object and not on the size of the fleet. Never starts, probes or delays a server, and never exposes a secret.

mod audit;
mod conditions;
mod event;
mod event_aggregator;
pub mod kubernetes;
mod object;
mod readiness;
mod reporter;
mod server;
mod skill;
mod source;
mod source_object;
mod state_change;
mod status_snapshot;
#[cfg(test)]
pub(crate) mod testing;

pub use audit::{AuditMetrics, write_audit_log};
pub use conditions::{ConditionMessages, ConditionStatus, find_condition};
pub use event::{Event, EventAction, Occurrence, Regarding};
pub use object::{ObjectKind, StatusObject};
pub use readiness::Readiness;
pub use reporter::{Reporter, ReporterInputs};
pub use server::server_status;
pub use skill::skill_status;
pub use source::{ServerCounts, SourceFault, SourceResource, SourceSpec, SourceStatus, source_status};
pub use source_object::SourceObject;
pub use status_snapshot::StatusSnapshot;
