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
mod status_writer;
mod write_conflicts;

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
    pub stored_statuses: watch::Receiver<StoredStatuses>,
    /// Whether it is this replica that writes.
    pub leading: watch::Receiver<bool>,
    /// What this replica calls itself in events.
    pub instance: Arc<str>,
}

/// Writes until it is stopped.
pub async fn run_writers(inputs: WriterInputs, stop: CancellationToken) {
    let WriterInputs { client, store, stored_statuses: shown, leading, instance } = inputs;
    let servers = status_writer::server_writer(&client).run(store.clone(), shown.clone(), leading.clone());
    let skills = status_writer::skill_writer(&client).run(store.clone(), shown, leading.clone());
    let events = events::write_events(client, instance, store, leading);
    let all = Box::pin(async { tokio::join!(servers, skills, events) });
    stop.run_until_cancelled(all).await;
}
