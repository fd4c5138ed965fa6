//! Tests of the API server that the other tests use.

use crate::support::Cluster;

#[tokio::test]
#[cfg_attr(without_api_server, ignore = "needs Go, for a Kubernetes API server")]
async fn restarted_api_server_keeps_its_data() {
    let mut cluster = Cluster::start().await;
    let namespace = cluster.namespace("kept").await;
    cluster.kill_api_server();
    cluster.kubectl_error(&["get", "namespaces"]).await;
    cluster.restart_api_server().await;
    let found = cluster.kubectl(&["get", "namespaces", "-o", "name"]).await;
    assert!(found.lines().any(|line| line == format!("namespace/{namespace}")), "{found}");
}
