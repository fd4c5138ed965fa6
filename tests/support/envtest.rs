//! Programs written in Go: a Kubernetes control plane (from `KUBEBUILDER_ASSETS`, or built from `tests/envtest`), and
//! `tests/gitops_health`, which computes the health of objects as `GitOps` tools do.

use std::path::{Path, PathBuf};
use std::process::Command;

use super::install::{install_once, require_on_path};

/// The paths of the programs of a control plane.
#[derive(Clone, Debug)]
pub struct ClusterPrograms {
    pub etcd: PathBuf,
    pub api_server: PathBuf,
    pub kubectl: PathBuf,
}

/// Returns the programs. Builds them once, unless `KUBEBUILDER_ASSETS` is set.
pub fn cluster_programs() -> ClusterPrograms {
    if let Some(assets) = std::env::var_os("KUBEBUILDER_ASSETS") {
        let assets = PathBuf::from(assets);
        return ClusterPrograms {
            etcd: assets.join("etcd"),
            api_server: assets.join("kube-apiserver"),
            kubectl: assets.join("kubectl"),
        };
    }
    let go = require_on_path("go", "a Kubernetes API server for tests");
    let announcement = "building etcd, kube-apiserver and kubectl for the tests (once, takes some minutes)";
    let home = build_go_programs("envtest", announcement, &go, |command| {
        // Without these flags the server would report the version v0.0.0.
        let version = ["gitVersion=v1.36.3", "gitMajor=1", "gitMinor=36"]
            .map(|setting| format!(" -X k8s.io/component-base/version.{setting}"));
        command
            .arg(format!("-ldflags=-s -w{}", version.concat()))
            .arg("k8s.io/kubernetes/cmd/kube-apiserver")
            .arg("k8s.io/kubernetes/cmd/kubectl")
            .arg("go.etcd.io/etcd/server/v3");
    });
    // Go names etcd's program after its package, `server`.
    ClusterPrograms {
        etcd: home.join("server"),
        api_server: home.join("kube-apiserver"),
        kubectl: home.join("kubectl"),
    }
}

/// Returns the program that computes the health of objects as `GitOps` tools do. Builds it once.
pub fn gitops_health_program() -> PathBuf {
    let go = require_on_path("go", "the health check of GitOps tools");
    let home = build_go_programs(
        "gitops_health",
        "building the health check of GitOps tools (once)",
        &go,
        |command| {
            command.arg(".");
        },
    );
    home.join("gitops_health")
}

/// Builds programs of the Go module `tests/MODULE` into `target/MODULE/DIGEST`, unless they exist. `add_args` adds the
/// arguments of `go build`.
fn build_go_programs(
    module: &str,
    announcement: &str,
    go: &Path,
    add_args: impl FnOnce(&mut Command),
) -> PathBuf {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests").join(module);
    install_once(&format!("{module}/{}", source_digest(&source)), announcement, |home| {
        let mut command = Command::new(go);
        command.current_dir(source).env("GOWORK", "off").args(["build", "-mod=readonly", "-trimpath", "-o"]);
        // A directory also for a single program.
        command.arg(home.join(""));
        add_args(&mut command);
        vec![command]
    })
}

/// Returns a digest of the files of the module.
fn source_digest(source: &Path) -> String {
    let mut files: Vec<_> = std::fs::read_dir(source).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    let text: Vec<u8> = files.iter().flat_map(|file| std::fs::read(file).unwrap()).collect();
    evenkeel::resource::Digest::of(&text).hex_prefix(12)
}
