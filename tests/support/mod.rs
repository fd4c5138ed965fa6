//! The environment of the behaviour tests: the evenkeel program, the files that it reads, agents that send raw MCP in
//! either era, real servers from their registries, and a real Kubernetes API server. Expectations about evenkeel are in
//! the tests, never here.

// Tests fail by panicking, and each test crate uses only a part of this module.
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
mod forward_proxy;
mod git;
pub mod http;
mod install;
mod kubectl;
mod manifests;
mod process;
mod process_usage;
mod real_servers;
pub mod reverse_proxy;
mod test_directory;

use std::time::Duration;

pub use agent::{Agent, Era, NotificationStream, PendingRequest};
pub use cluster::Cluster;
pub use daemon::{Evenkeel, free_port};
pub use envtest::{ClusterPrograms, cluster_programs, gitops_health_program};
pub use example::example;
pub use forward_proxy::ForwardProxy;
pub use git::git;
pub use install::{find_on_path, install_once, require_on_path};
pub use kubectl::{Kubectl, KubectlOutput, RunningKubectl};
pub use manifests::{ManifestsCopy, apply_crds, namespace_kustomization, wait_for_crds};
pub use process_usage::{ProcessCounts, ProcessUsage};
pub use real_servers::{RealServer, everything_server, promtool, time_server};
pub use test_directory::{TestDirectory, server_yaml};

/// The longest time that a test waits for one thing, also on a busy machine.
pub const TEST_TIMEOUT: Duration = Duration::from_mins(1);

/// Polls the closure every 10 ms until it returns a value. Fails the test with `description` after
/// [`TEST_TIMEOUT`].
pub async fn eventually<T>(description: &str, mut poll: impl AsyncFnMut() -> Option<T>) -> T {
    let wait = async {
        loop {
            if let Some(value) = poll().await {
                return value;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    within(description, wait).await
}

/// Waits for a future. Fails the test with `description` after [`TEST_TIMEOUT`].
pub async fn within<T>(description: &str, future: impl Future<Output = T>) -> T {
    let result = tokio::time::timeout(TEST_TIMEOUT, future).await;
    result.unwrap_or_else(|_| panic!("timed out after {TEST_TIMEOUT:?}: {description}"))
}
