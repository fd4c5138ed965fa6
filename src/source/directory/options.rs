use std::path::PathBuf;
use std::time::Duration;

use crate::resource::DigestKey;
use crate::source::{Environment, SourceMetrics, StdioPolicy};

/// The directory to reconcile, and the options for it.
#[derive(Clone, Debug)]
pub struct Args {
    /// The directory of declarations, absolute; its links are not resolved. It may not exist yet.
    pub root: PathBuf,
    /// The directory in which `secretKeyRef` finds `<name>/<key>`.
    pub secrets_dir: PathBuf,
    /// The environment for `valueFrom.env`.
    pub environment: Environment,
    /// Remove all objects when the last file is gone.
    pub prune_empty: bool,
    /// The interval at which to scan instead of using file events, for file systems without them.
    pub poll_interval: Option<Duration>,
    /// The policy for stdio servers.
    pub policy: StdioPolicy,
}

/// The options with which a directory is watched.
#[derive(Clone, Debug)]
pub(super) struct Options {
    pub args: Args,
    /// The key of connection digests.
    pub digest_key: DigestKey,
    /// The counters, which include lost file events.
    pub metrics: SourceMetrics,
}
