use std::sync::Arc;

use prometheus_client::registry::Registry;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::history::SnapshotHistory;
use crate::net::Authorization;
use crate::oauth::Logins;
use crate::report::StatusSnapshot;
use crate::source::ReconcileRequests;

/// The state from which the status API serves.
#[derive(Clone, Debug)]
pub struct ApiState {
    /// The status of every object.
    pub store: watch::Receiver<StatusSnapshot>,
    /// The reason why agents are not served yet; `None` once they are.
    pub agents_not_ready: watch::Receiver<Option<String>>,
    /// The metrics of the whole process.
    pub metrics: Arc<Registry>,
    /// Accepts requests to reconcile; `None` in a cluster, where the objects themselves are annotated.
    pub requests: Option<ReconcileRequests>,
    /// The logins to servers that wait for the redirect of an authorization server.
    pub logins: Logins,
    /// An instruction for changing a declaration: `edit the files in …`.
    pub edit_hint: Arc<str>,
    /// Ends all watches when cancelled.
    pub stop: CancellationToken,
}

/// The state of the request handlers.
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

    /// Returns a copy of the snapshot, so that the reporter never waits for a response to be written.
    pub fn snapshot(&self) -> StatusSnapshot {
        self.state.store.borrow().clone()
    }
}
