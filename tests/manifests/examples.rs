//! `examples/kubernetes/` is what the API server takes.

use std::path::Path;

use crate::support::Cluster;

#[tokio::test]
async fn the_declarations_are_taken_strictly() {
    let Some(cluster) = Cluster::shared().await else { return };
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    cluster.kubectl(&["apply", "--server-side", "-k", &root.join("crds").display().to_string()]).await;
    let namespace = cluster.namespace("examples").await;
    let declarations = root.join("examples/kubernetes/declarations").display().to_string();
    let args = ["apply", "--validate=strict", "-n", &namespace, "-k", &declarations];
    let applied = cluster.kubectl(&args).await;
    for name in ["secret/search", "mcpserver.evenkeel.dev/search", "skill.evenkeel.dev/release-notes"] {
        assert!(applied.lines().any(|line| line == format!("{name} created")), "{name}: {applied}");
    }
}
