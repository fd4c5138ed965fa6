use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use futures_util::future::BoxFuture;
use kube::Client;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::{ReconcileRequests, SourceMetrics, StdioPolicy, StoredStatuses};
use crate::net::SupervisedTasks;
use crate::resource::{Desired, DigestKey, SourceId};
use crate::state_dir::StateDir;

/// A source of declarations that has not been started.
pub trait Source: Send + Sync {
    /// Returns the description of the source. Code outside `source/` depends on the kind of a source only through it.
    fn info(&self) -> &SourceInfo;

    /// Starts to watch. Its tasks run among those of `context` until `context.stop` is cancelled.
    fn start(self: Box<Self>, context: SourceContext) -> SourceHandle;
}

/// The description of a source.
#[derive(Clone)]
pub struct SourceInfo {
    /// The kind of the source and its location.
    pub id: SourceId,
    /// An identity that is unique among the sources on this machine: the path as given, or a text in its place.
    pub identity: PathBuf,
    /// The directory, as it was given, that the paths of files are relative to; `None` if there are no files.
    pub root: Option<PathBuf>,
    /// The namespace of objects whose names carry none, if there is one.
    pub default_namespace: Option<Arc<str>>,
    /// The namespaces that exist for agents even if nothing is declared in them.
    pub namespaces: Arc<[Arc<str>]>,
    /// The policy for stdio servers.
    pub policy: StdioPolicy,
    /// An instruction for a person who wants to change a declaration, such as `edit the files in …`.
    pub edit_instruction: Arc<str>,
    /// The API server that holds the objects, if there is one: statuses are written to it, and the replicas share its
    /// other objects.
    pub api_server: Option<ApiServer>,
}

/// The API server that holds the objects, and the objects that this process uses in it.
#[derive(Clone)]
pub struct ApiServer {
    /// The client of the API server.
    pub client: Client,
    /// The namespace of the Lease and of the session key.
    pub namespace: String,
    /// The name of the Lease. The replica that holds it writes statuses.
    pub lease: String,
    /// The Secret with the key of session ids, and the key within the Secret.
    pub session_key: Option<(String, String)>,
    /// The name of this replica. It is unique for every process, so two processes never use one Lease as the same
    /// holder.
    pub instance: Arc<str>,
}

/// The context in which a source is started.
pub struct SourceContext {
    /// The state directory for what must outlive the process; its lock is held.
    pub state_dir: Arc<StateDir>,
    /// The key of connection digests.
    pub digest_key: DigestKey,
    /// The counters of the source.
    pub metrics: SourceMetrics,
    /// The tasks of the source: those that it cannot start again itself report their panics.
    pub tasks: SupervisedTasks,
    /// Cancels the tasks.
    pub stop: CancellationToken,
}

/// The handle to a started source.
pub struct SourceHandle {
    /// The declared objects; the first value is not synced.
    pub desired: watch::Receiver<Arc<Desired>>,
    /// The handle that accepts reconcile requests; `None` if requests are made on the objects themselves.
    pub requests: Option<ReconcileRequests>,
    /// The control of the source itself; `None` for a source that is notified of every change.
    pub control: Option<SourceControl>,
    /// The statuses that the source stores for its objects.
    pub stored_statuses: watch::Receiver<StoredStatuses>,
}

/// Operations on a source that scans. Cheap to clone.
#[derive(Clone)]
pub struct SourceControl {
    confirm_removal: Arc<dyn Fn() + Send + Sync>,
    rescan: Arc<dyn Fn() -> BoxFuture<'static, Arc<Desired>> + Send + Sync>,
}

impl SourceControl {
    /// Creates a control from the two operations of a source.
    pub fn new(
        confirm_removal: impl Fn() + Send + Sync + 'static,
        rescan: impl Fn() -> BoxFuture<'static, Arc<Desired>> + Send + Sync + 'static,
    ) -> Self {
        Self { confirm_removal: Arc::new(confirm_removal), rescan: Arc::new(rescan) }
    }

    /// Confirms that an empty source is intended: the removals that are held, because the last declarations
    /// disappeared, are applied. Has no effect if nothing is held.
    pub fn confirm_removal(&self) {
        (self.confirm_removal)();
    }

    /// Requests a complete scan, waits until it is done, and returns the objects that are declared then. Subscribers of
    /// the source apply them a moment later: [`Desired::sequence`] shows when they have.
    pub async fn rescan(&self) -> Arc<Desired> {
        (self.rescan)().await
    }
}

impl fmt::Debug for SourceControl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SourceControl")
    }
}
