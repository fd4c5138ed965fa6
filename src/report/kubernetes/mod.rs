//! Tells the truth to an API server: statuses and events of the objects that it holds.
//!
//! Promises that a status is written only if it differs from what the object shows, one write at a time for
//! each object and few for all, that a write that fails is tried again while nothing waits for it, and that of
//! several replicas the one that holds the Lease writes. Never reads what it could be told, never touches
//! another manager's conditions, and never decides anything about servers.

mod events;
mod lease;
mod request;
mod status_diff;
mod write_conflicts;
mod writer;

use std::sync::Arc;

use kube::Client;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::StatusSnapshot;
use crate::source::StoredStatuses;

pub use lease::Leadership;

/// What is told, and to whom.
pub struct WriterInputs {
    /// The API server.
    pub client: Client,
    /// What is true.
    pub store: watch::Receiver<StatusSnapshot>,
    /// What the objects show.
    pub shown: watch::Receiver<StoredStatuses>,
    /// Whether it is this replica that writes.
    pub leading: watch::Receiver<bool>,
    /// What this replica calls itself in events.
    pub instance: Arc<str>,
}

/// Writes until it is stopped.
pub async fn tell(inputs: WriterInputs, stop: CancellationToken) {
    let WriterInputs { client, store, shown, leading, instance } = inputs;
    let servers = writer::servers(&client).run(store.clone(), shown.clone(), leading.clone());
    let skills = writer::skills(&client).run(store.clone(), shown, leading.clone());
    let events = events::tell(client, instance, store, leading);
    let all = Box::pin(async { tokio::join!(servers, skills, events) });
    stop.run_until_cancelled(all).await;
}
