//! Sources of declared servers and skills: a directory of files, or a Kubernetes API server.
//!
//! A source publishes one value, [`Desired`](crate::resource::Desired), on a `tokio::sync::watch` channel, and receives
//! nothing back; status is written by `report/`. Promises that the published value is complete, that an object
//! disappears from it only when its declaration was really removed, and that an unreadable declaration keeps the last
//! good one of its object. Never connects to a server. Neither plan nor fleet depends on the kind of source.

pub mod directory;
pub mod kubernetes;
mod metrics;
mod open;
mod parse;
mod policy;
mod requests;
mod resolve;
mod source_handle;
mod stored_status;

pub use metrics::SourceMetrics;
pub use open::{SourceArgs, SourceError};
pub use parse::{closest_match, first_problem};
pub use policy::{AllowedStdio, DEFAULT_ALLOWED_VARIABLES, StdioPolicy};
pub use requests::{ReconcileRequest, ReconcileRequests, merge_requests};
pub use resolve::Environment;
pub use source_handle::{ApiServer, Source, SourceContext, SourceControl, SourceHandle, SourceInfo};
pub use stored_status::{StoredStatus, StoredStatuses};
