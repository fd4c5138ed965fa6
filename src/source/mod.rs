//! Where servers and skills are declared: a directory of files, or a Kubernetes API server.
//!
//! A source gives one thing, [`Desired`](crate::resource::Desired), through a `tokio::sync::watch`, and takes nothing back; status
//! leaves through `report/`. Promises that what it gives is complete, that an object leaves it only when
//! it was really taken away, and that an unreadable declaration keeps its object's last good one.
//! Never connects to a server, and neither plan nor fleet knows which source it is.

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
pub use parse::{closest_match, mistake};
pub use policy::{AllowedStdio, DEFAULT_ALLOWED_VARIABLES, StdioPolicy};
pub use requests::{ReconcileRequest, ReconcileRequests, requests};
pub use resolve::Environment;
pub use source_handle::{ApiServer, Source, SourceContext, SourceControl, SourceHandle, SourceInfo};
pub use stored_status::{StoredStatus, StoredStatuses};
