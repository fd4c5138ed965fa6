use std::path::PathBuf;
use std::time::Duration;

use crate::resource::DigestKey;
use crate::source::{Environment, Policy, SourceMetrics};

/// Where declarations are, and what their references mean.
#[derive(Clone, Debug)]
pub struct Options {
    /// The directory, as an absolute path; its links are not resolved. It may not exist yet.
    pub root: PathBuf,
    /// Where `secretKeyRef` finds `<name>/<key>`.
    pub secrets: PathBuf,
    /// What `valueFrom.env` finds.
    pub environment: Environment,
    /// Which stdio servers may run.
    pub policy: Policy,
    /// The key of connection digests.
    pub key: DigestKey,
    /// Take away everything when the last file is gone.
    pub prune_empty: bool,
    /// Look at intervals and expect no file events, for file systems that have none.
    pub poll: Option<Duration>,
    /// Where it is counted that file events were lost.
    pub metrics: SourceMetrics,
}
