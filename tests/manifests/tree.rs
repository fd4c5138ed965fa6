//! A copy of what people apply, with kustomizations of their own beside it.

use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

use crate::support::Cluster;

/// `manifests/` and `crds/` in a temporary directory.
pub struct Tree(TempDir);

impl Tree {
    pub fn new() -> Self {
        let copy = TempDir::with_prefix("tree").unwrap();
        for part in ["manifests", "crds"] {
            let from = Path::new(env!("CARGO_MANIFEST_DIR")).join(part);
            assert!(Command::new("cp").arg("-R").arg(from).arg(copy.path()).status().unwrap().success());
        }
        Self(copy)
    }

    /// What is to be applied for a part of `manifests/`.
    pub fn part(&self, part: &str) -> String {
        self.0.path().join("manifests").join(part).display().to_string()
    }

    /// Somebody's own kustomization, in a directory beside `manifests/`.
    pub fn own(&self, name: &str, text: &str) -> String {
        let directory: PathBuf = self.0.path().join(name);
        std::fs::create_dir(&directory).unwrap();
        std::fs::write(directory.join("kustomization.yaml"), text).unwrap();
        directory.display().to_string()
    }

    /// `overlays/cluster`, applied to this cluster, as it is written.
    pub async fn everywhere(&self, cluster: &Cluster) {
        cluster.kubectl(&["apply", "--server-side", "-k", &self.part("overlays/cluster")]).await;
    }

    /// `overlays/namespace`, applied to a namespace by a kustomization that names it.
    pub async fn in_namespace(&self, cluster: &Cluster, namespace: &str) {
        let own = self.own(namespace, &only(namespace));
        cluster.kubectl(&["apply", "--server-side", "-k", &own]).await;
    }
}

/// A kustomization of `overlays/namespace` for a namespace.
pub fn only(namespace: &str) -> String {
    format!(
        "apiVersion: kustomize.config.k8s.io/v1beta1\nkind: Kustomization\nnamespace: {namespace}\n\
         resources: [../manifests/overlays/namespace]\n"
    )
}
