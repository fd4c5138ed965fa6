//! A copy of `manifests/`, next to which tests write kustomizations of their own.

use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

use super::{Cluster, eventually};

/// A copy of `manifests/` in a temporary directory.
pub struct ManifestsCopy(TempDir);

impl ManifestsCopy {
    pub fn new() -> Self {
        let copy = TempDir::with_prefix("tree").unwrap();
        let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("manifests");
        assert!(Command::new("cp").arg("-R").arg(from).arg(copy.path()).status().unwrap().success());
        Self(copy)
    }

    /// Returns the path of a part of `manifests/`.
    pub fn path_of(&self, part: &str) -> String {
        self.0.path().join("manifests").join(part).display().to_string()
    }

    /// Writes a kustomization in a directory next to `manifests/`, and returns the path of the directory.
    pub fn write_kustomization(&self, name: &str, text: &str) -> String {
        let directory: PathBuf = self.0.path().join(name);
        std::fs::create_dir(&directory).unwrap();
        std::fs::write(directory.join("kustomization.yaml"), text).unwrap();
        directory.display().to_string()
    }

    /// Applies `overlays/cluster` unchanged.
    pub async fn apply_cluster_overlay(&self, cluster: &Cluster) {
        cluster.kubectl(&["apply", "--server-side", "-k", &self.path_of("overlays/cluster")]).await;
        wait_for_roles(cluster, "evenkeel", "default").await;
    }

    /// Applies `overlays/namespace` to a namespace, by a kustomization with that namespace.
    pub async fn apply_namespace_overlay(&self, cluster: &Cluster, namespace: &str) {
        let kustomization = self.write_kustomization(namespace, &namespace_kustomization(namespace));
        cluster.kubectl(&["apply", "--server-side", "-k", &kustomization]).await;
        wait_for_roles(cluster, namespace, namespace).await;
    }
}

/// Waits until the API server applies both roles of the account in the namespace `home`: the one for its own namespace,
/// and the one for the namespace that it serves.
async fn wait_for_roles(cluster: &Cluster, home: &str, served: &str) {
    let account = format!("{home}:evenkeel");
    cluster.wait_for_permission(&account, "create", "leases.coordination.k8s.io", home, true).await;
    cluster.wait_for_permission(&account, "watch", "secrets", served, true).await;
}

/// Returns a kustomization of `overlays/namespace` for a namespace.
pub fn namespace_kustomization(namespace: &str) -> String {
    format!(
        "apiVersion: kustomize.config.k8s.io/v1beta1\nkind: Kustomization\nnamespace: {namespace}\n\
         resources: [../manifests/overlays/namespace]\n"
    )
}

/// Applies the CRDs of `crds/` and waits until they are served.
pub async fn apply_crds(cluster: &Cluster) {
    let crds = Path::new(env!("CARGO_MANIFEST_DIR")).join("crds").display().to_string();
    cluster.kubectl(&["apply", "--server-side", "-f", &crds]).await;
    wait_for_crds(cluster).await;
}

/// Waits until the API server serves the CRDs.
pub async fn wait_for_crds(cluster: &Cluster) {
    eventually("the CRDs are served", async || {
        let kinds = cluster
            .kubectl(&["api-resources", "--api-group=evenkeel.dev", "--cached=false", "-o", "name"])
            .await;
        (kinds == "mcpservers.evenkeel.dev\nskills.evenkeel.dev\n").then_some(())
    })
    .await;
}
