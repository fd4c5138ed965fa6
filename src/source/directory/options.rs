use std::path::PathBuf;
use std::time::Duration;

use crate::resource::DigestKey;
use crate::source::{Environment, SourceMetrics, StdioPolicy};

/// Tells which directory is reconciled, and how.
#[derive(Clone, Debug)]
pub struct Args {
    /// The directory of declarations, absolute; its links are not resolved. It may not exist yet.
    pub root: PathBuf,
    /// The directory in which `secretKeyRef` finds `<name>/<key>`.
    pub secrets_dir: PathBuf,
    /// The variables that `valueFrom.env` finds.
    pub environment: Environment,
    /// Take away everything when the last file is gone.
    pub prune_empty: bool,
    /// Look at intervals and expect no file events, for file systems that have none.
    pub poll_interval: Option<Duration>,
    /// Which stdio servers may run.
    pub policy: StdioPolicy,
}

/// Holds what a directory is watched with.
#[derive(Clone, Debug)]
pub(super) struct Options {
    pub args: Args,
    /// The key of connection digests.
    pub digest_key: DigestKey,
    /// Counts file events that were lost.
    pub metrics: SourceMetrics,
}
