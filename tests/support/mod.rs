//! What behaviour tests need around evenkeel: the program itself, the files that it reads, agents that speak raw MCP
//! in either era, real servers from their registries, and a real Kubernetes API server. Nothing here knows what
//! evenkeel should do; tests say that.

// Tests fail by panicking, and each uses the part of this that it needs.
#![allow(
    dead_code,
    unused_imports,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::disallowed_methods,
    clippy::print_stderr,
    reason = "tests"
)]

mod agent;
mod cluster;
mod daemon;
mod envtest;
mod example;
mod git;
pub mod http;
mod install;
mod kubectl;
mod manifests;
mod process;
mod real_servers;
mod test_directory;

use std::time::Duration;

pub use agent::{Agent, Era, NotificationStream, PendingRequest};
pub use cluster::Cluster;
pub use daemon::{Evenkeel, free_port};
pub use envtest::{ClusterPrograms, cluster_programs, gitops_health_program};
pub use example::example;
pub use git::git;
pub use install::{find_on_path, install_once, require_on_path};
pub use kubectl::{Kubectl, KubectlOutput, RunningKubectl};
pub use manifests::{ManifestsCopy, apply_crds, namespace_kustomization, wait_for_crds};
pub use real_servers::{RealServer, everything_server, promtool, time_server};
pub use test_directory::{TestDirectory, server_yaml};

/// How long anything may take on a busy machine before a test gives up on it.
pub const TEST_TIMEOUT: Duration = Duration::from_mins(1);

/// Waits until the closure gives a value. Fails the test, naming `what`, when [`PATIENCE`] is over.
pub async fn eventually<T>(what: &str, mut ask: impl AsyncFnMut() -> Option<T>) -> T {
    let wait = async {
        loop {
            if let Some(found) = ask().await {
                return found;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    within(what, wait).await
}

/// Waits for a future. Fails the test, naming `what`, when [`PATIENCE`] is over.
pub async fn within<T>(what: &str, future: impl Future<Output = T>) -> T {
    let done = tokio::time::timeout(TEST_TIMEOUT, future).await;
    done.unwrap_or_else(|_| panic!("not within {TEST_TIMEOUT:?}: {what}"))
}
