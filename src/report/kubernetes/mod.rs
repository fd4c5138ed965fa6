//! Writes statuses and events of declared objects to the API server.
//!
//! Promises that a status is written only if it differs from the stored one, with one write at a time per object and
//! few in total, that a failed write is retried without blocking anything, and that of several replicas only the one
//! that holds the Lease writes. Never polls what a watch delivers, never changes the conditions of another field
//! manager, and never decides anything about servers.

mod events;
mod lease;
mod request;
mod status_diff;
mod status_writer;
mod write_conflicts;

use std::sync::Arc;

use kube::Client;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::StatusSnapshot;
use crate::source::StoredStatuses;

pub use lease::Leadership;

/// The inputs of the writers.
pub struct WriterInputs {
    /// The API server.
    pub client: Client,
    /// The current statuses.
    pub store: watch::Receiver<StatusSnapshot>,
    /// The statuses that are stored in the API server.
    pub stored_statuses: watch::Receiver<StoredStatuses>,
    /// True while this replica is the leader.
    pub leading: watch::Receiver<bool>,
    /// The reporting instance of events.
    pub instance: Arc<str>,
}

/// Writes until it is stopped.
pub async fn run_writers(inputs: WriterInputs, stop: CancellationToken) {
    let WriterInputs { client, store, stored_statuses, leading, instance } = inputs;
    let servers =
        status_writer::server_writer(&client).run(store.clone(), stored_statuses.clone(), leading.clone());
    let skills = status_writer::skill_writer(&client).run(store.clone(), stored_statuses, leading.clone());
    let events = events::write_events(client, instance, store, leading);
    let all = Box::pin(async { tokio::join!(servers, skills, events) });
    stop.run_until_cancelled(all).await;
}
