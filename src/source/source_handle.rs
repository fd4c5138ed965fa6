use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use futures_util::future::BoxFuture;
use kube::Client;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::{ReconcileRequests, SourceMetrics, StdioPolicy, StoredStatuses};
use crate::resource::{Desired, DigestKey, SourceId};
use crate::state_dir::StateDir;

/// A source of declarations that has not been started.
pub trait Source: Send + Sync {
    /// Gives what others may know of the source. Nothing outside `source/` depends on which source it is but by this.
    fn info(&self) -> &SourceInfo;

    /// Begins to watch. Tasks run on the tracker until they are told to stop.
    fn start(self: Box<Self>, start: SourceContext) -> SourceHandle;
}

/// What others may know of a source.
#[derive(Clone)]
pub struct SourceInfo {
    /// What it is, and where.
    pub id: SourceId,
    /// Tells it from others on this machine: the path as given, or a text in its place.
    pub identity: PathBuf,
    /// The directory that the paths of files are relative to, as it was given, if there are files.
    pub root: Option<PathBuf>,
    /// The namespace of objects whose names carry none, if there is one.
    pub default_namespace: Option<Arc<str>>,
    /// Which stdio servers may run.
    pub policy: StdioPolicy,
    /// What somebody does who wants to change what is declared: `edit the files in …`.
    pub edit_instruction: Arc<str>,
    /// Where its objects are, if that is an API server: statuses are written there, and the replicas share what else is
    /// kept there.
    pub api_server: Option<ApiServer>,
}

/// The API server that holds the objects, and what this process has there.
#[derive(Clone)]
pub struct ApiServer {
    /// Its client.
    pub client: Client,
    /// The namespace of the Lease and of the session key.
    pub namespace: String,
    /// The Lease that the replica holds that writes statuses.
    pub lease: String,
    /// The Secret with the key of session ids, and the key in it.
    pub session_key: Option<(String, String)>,
    /// The name of this replica: another for every process, so that no two take one Lease for theirs.
    pub instance: Arc<str>,
}

/// What a source is started with.
pub struct SourceContext {
    /// Where it may keep what must outlive the process; the lock is held.
    pub state_dir: Arc<StateDir>,
    /// The key of connection digests.
    pub digest_key: DigestKey,
    /// What it counts.
    pub metrics: SourceMetrics,
    /// Where its tasks run.
    pub tracker: TaskTracker,
    /// Ends them.
    pub stop: CancellationToken,
}

/// What a source gives.
pub struct SourceHandle {
    /// What is declared; at first nothing that is synced.
    pub desired: watch::Receiver<Arc<Desired>>,
    /// Where work is asked for, if not at the objects themselves.
    pub requests: Option<ReconcileRequests>,
    /// What may be asked of the source itself; `None` of one that tells every change by itself.
    pub control: Option<SourceControl>,
    /// The statuses that the source holds of its objects.
    pub stored_statuses: watch::Receiver<StoredStatuses>,
}

/// What a person may ask of a source that is looked at. Cheap to clone.
#[derive(Clone)]
pub struct SourceControl {
    confirm_removal: Arc<dyn Fn() + Send + Sync>,
    rescan: Arc<dyn Fn() -> BoxFuture<'static, Arc<Desired>> + Send + Sync>,
}

impl SourceControl {
    /// Makes a handle of what a source does when it is asked.
    pub fn new(
        confirm_removal: impl Fn() + Send + Sync + 'static,
        look: impl Fn() -> BoxFuture<'static, Arc<Desired>> + Send + Sync + 'static,
    ) -> Self {
        Self { confirm_removal: Arc::new(confirm_removal), rescan: Arc::new(look) }
    }

    /// Says that an empty source is meant: what is held back, because the last declarations vanished, is taken away.
    /// Means nothing where nothing is held back.
    pub fn confirm_removal(&self) {
        (self.confirm_removal)();
    }

    /// Asks for a look at everything, waits until it is done, and gives what is declared then. Those who follow the
    /// source take it up a moment later: [`Desired::number`] tells when they have.
    pub async fn rescan(&self) -> Arc<Desired> {
        (self.rescan)().await
    }
}

impl fmt::Debug for SourceControl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Wishes")
    }
}
