use std::sync::Arc;

use prometheus_client::registry::Registry;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::history::History;
use crate::net::Authorization;
use crate::report::Snapshot;
use crate::source::Requests;

/// What the status API is made from.
#[derive(Clone, Debug)]
pub struct Sources {
    /// What is told.
    pub store: watch::Receiver<Snapshot>,
    /// Why agents cannot be served yet; `None` from when they can.
    pub agents_wait: watch::Receiver<Option<String>>,
    /// What is counted.
    pub metrics: Arc<Registry>,
    /// Where requests for work go; none where the objects themselves are asked, in a cluster.
    pub requests: Option<Requests>,
    /// What somebody does who wants to change what is declared: `edit the files in …`.
    pub to_change: Arc<str>,
    /// Ends the watches.
    pub stop: CancellationToken,
}

/// What the handlers answer from.
#[derive(Clone)]
pub(super) struct App {
    pub store: watch::Receiver<Snapshot>,
    pub agents_wait: watch::Receiver<Option<String>>,
    pub metrics: Arc<Registry>,
    pub requests: Option<Requests>,
    pub to_change: Arc<str>,
    pub stop: CancellationToken,
    pub history: Arc<History>,
    pub authorization: Authorization,
}

impl App {
    pub fn new(sources: Sources, authorization: Authorization) -> Self {
        let Sources { store, agents_wait, metrics, requests, to_change, stop } = sources;
        Self {
            store,
            agents_wait,
            metrics,
            requests,
            to_change,
            stop,
            history: Arc::default(),
            authorization,
        }
    }

    /// A copy, so that the reporter never waits for an answer to be written.
    pub fn snapshot(&self) -> Snapshot {
        self.store.borrow().clone()
    }
}
