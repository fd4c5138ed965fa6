use std::sync::Arc;

use prometheus_client::registry::Registry;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::history::SnapshotHistory;
use crate::net::Authorization;
use crate::report::StatusSnapshot;
use crate::source::ReconcileRequests;

/// Holds the state that the status API answers from.
#[derive(Clone, Debug)]
pub struct ApiState {
    /// The status of every object.
    pub store: watch::Receiver<StatusSnapshot>,
    /// The reason why agents cannot be served yet; `None` from when they can.
    pub agents_not_ready: watch::Receiver<Option<String>>,
    /// The metrics of the whole process.
    pub metrics: Arc<Registry>,
    /// Takes requests to reconcile; `None` in a cluster, where the objects themselves are annotated.
    pub requests: Option<ReconcileRequests>,
    /// Tells how to change a declaration: `edit the files in …`.
    pub edit_hint: Arc<str>,
    /// Ends the watches.
    pub stop: CancellationToken,
}

/// Holds the state of the handlers.
#[derive(Clone)]
pub(super) struct App {
    pub state: ApiState,
    pub history: Arc<SnapshotHistory>,
    pub authorization: Authorization,
}

impl App {
    pub fn new(sources: ApiState, authorization: Authorization) -> Self {
        Self { state: sources, history: Arc::default(), authorization }
    }

    /// Copies the snapshot, so that the reporter never waits for an answer to be written.
    pub fn snapshot(&self) -> StatusSnapshot {
        self.state.store.borrow().clone()
    }
}
