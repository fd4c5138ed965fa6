use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use tokio::sync::watch;
use tokio_util::task::TaskTracker;

use super::Failure;
use super::cluster::{Cluster, ClusterArgs, Wait};
use super::tasks::Tasks;
use crate::gateway::SessionKey;
use crate::report::{Place, Snapshot};
use crate::resource::DigestKey;
use crate::source::{
    Desired, Environment, Policy, Requests, Shown, SourceMetrics, directory, kubernetes, requests,
};
use crate::state::StateDir;

/// Where objects of a directory are that name no namespace, and whose names carry none.
const HOME_NAMESPACE: &str = "default";

/// What is to be reconciled, as the arguments say.
#[derive(Clone, Debug)]
pub(super) enum SourceArgs {
    Directory(DirectoryArgs),
    Cluster(ClusterArgs),
}

#[derive(Clone, Debug)]
pub(super) struct DirectoryArgs {
    /// The directory of declarations, absolute; links are not resolved.
    pub root: PathBuf,
    /// Where references to secrets are looked up.
    pub secrets: PathBuf,
    /// What references to variables find.
    pub environment: Environment,
    /// Take away everything when the last file is gone.
    pub prune_empty: bool,
    /// Look at intervals and expect no file events.
    pub poll: Option<Duration>,
    /// Which stdio servers may run.
    pub policy: Policy,
}

/// What is reconciled, and everything that differs with it: its own tasks, and where its status is told.
pub(super) enum Source {
    Directory(DirectoryArgs),
    Cluster(Box<Cluster>),
}

/// What a source gives.
pub(super) struct Feed {
    pub desired: watch::Receiver<Arc<Desired>>,
    /// Where work is asked for, if not at the objects themselves.
    pub requests: Option<Requests>,
    /// What may be asked of the source itself; nothing of one that tells every change by itself.
    pub wishes: Option<directory::Wishes>,
    /// The statuses that the source holds of its objects.
    pub shown: watch::Receiver<Shown>,
    /// What is counted.
    pub metrics: SourceMetrics,
}

impl SourceArgs {
    /// Finds out where the source is; that it answers is not needed yet.
    pub async fn open(&self) -> Result<Source, Failure> {
        Ok(match self {
            Self::Directory(args) => Source::Directory(args.clone()),
            Self::Cluster(args) => Source::Cluster(Box::new(Cluster::find(args).await?)),
        })
    }
}

impl Source {
    /// What tells it from others on this machine: the path as given, or what stands for one.
    pub fn identity(&self) -> PathBuf {
        match self {
            Self::Directory(args) => args.root.clone(),
            Self::Cluster(cluster) => cluster.identity(),
        }
    }

    /// The same for people, in the status API.
    pub fn place(&self) -> Place {
        match self {
            Self::Directory(args) => Place::Directory(args.root.clone()),
            Self::Cluster(cluster) => Place::Cluster(cluster.to_string()),
        }
    }

    /// The directory, if it is one.
    pub fn root(&self) -> Option<PathBuf> {
        match self {
            Self::Directory(args) => Some(args.root.clone()),
            Self::Cluster(_) => None,
        }
    }

    /// Which stdio servers may run.
    pub fn policy(&self) -> &Policy {
        match self {
            Self::Directory(args) => &args.policy,
            Self::Cluster(cluster) => cluster.policy(),
        }
    }

    /// What it is, in the audit log.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Directory(_) => "directory",
            Self::Cluster(_) => "cluster",
        }
    }

    /// Where objects are whose names carry no namespace.
    pub fn home(&self) -> Option<Arc<str>> {
        match self {
            Self::Directory(_) => Some(HOME_NAMESPACE.into()),
            Self::Cluster(cluster) => cluster.home(),
        }
    }

    /// What somebody does who wants to change what is declared.
    pub fn to_change(&self) -> String {
        match self {
            Self::Directory(args) => format!("edit the files in {}", args.root.display()),
            Self::Cluster(cluster) => format!("change the objects in {cluster}"),
        }
    }

    /// Starts to watch; connections are told apart by `key`.
    pub fn start(&self, state: &Arc<StateDir>, key: DigestKey, tasks: &mut Tasks) -> Feed {
        let (tracker, stop) = (TaskTracker::new(), tasks.stop());
        let metrics = SourceMetrics::default();
        let counted = metrics.clone();
        let feed = match self {
            Self::Directory(args) => {
                let DirectoryArgs { root, secrets, environment, prune_empty, poll, policy } = args.clone();
                let options = directory::Options {
                    root,
                    secrets,
                    environment,
                    policy,
                    key,
                    prune_empty,
                    poll,
                    metrics: counted,
                };
                let (declared, wishes) = directory::start(options, state.clone(), &tracker, stop.clone());
                let (requests, desired, stage) = requests(declared, stop);
                tracker.spawn(stage);
                let shown = watch::channel(Shown::default()).1;
                Feed { desired, requests: Some(requests), wishes: Some(wishes), shown, metrics }
            }
            Self::Cluster(cluster) => {
                let (desired, shown) = kubernetes::start(cluster.options(key, counted), &tracker, stop);
                Feed { desired, requests: None, wishes: None, shown, metrics }
            }
        };
        tasks.spawn("the watch of the source", async move {
            tracker.close();
            tracker.wait().await;
            Ok(())
        });
        feed
    }

    /// The key of session ids; that of several replicas may have to be waited for, and why is in the channel.
    pub fn session_key(&self, state: &StateDir) -> Result<(BoxFuture<'static, SessionKey>, Wait), Failure> {
        if let Self::Cluster(cluster) = self
            && let Some((key, wait)) = cluster.session_key()
        {
            return Ok((key.boxed(), wait));
        }
        let bytes = state.key("sessions").map_err(Failure::failed)?;
        let key = SessionKey::new(&bytes).map_err(Failure::failed)?;
        Ok((std::future::ready(key).boxed(), watch::channel(None).1))
    }

    /// Tells the truth where the objects are, if there is such a place beside the status API.
    pub fn tell(&self, store: watch::Receiver<Snapshot>, shown: watch::Receiver<Shown>, tasks: &mut Tasks) {
        if let Self::Cluster(cluster) = self {
            cluster.tell(store, shown, tasks);
        }
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Directory(args) => write!(f, "{}", args.root.display()),
            Self::Cluster(cluster) => write!(f, "{cluster}"),
        }
    }
}
