//! The API server accepts `examples/kubernetes/`.

use std::path::Path;

use serde_json::Value;

use crate::support::{Cluster, apply_crds};

#[tokio::test]
#[cfg_attr(without_api_server, ignore = "needs Go, for a Kubernetes API server")]
async fn example_declarations_pass_strict_validation() {
    let cluster = Cluster::shared().await;
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    apply_crds(cluster).await;
    let namespace = cluster.namespace("examples").await;
    let declarations = root.join("examples/kubernetes/declarations").display().to_string();
    let args = ["apply", "--validate=strict", "-n", &namespace, "-k", &declarations];
    let applied = cluster.kubectl(&args).await;
    for name in ["secret/search", "mcpserver.evenkeel.dev/search", "skill.evenkeel.dev/release-notes"] {
        assert!(applied.lines().any(|line| line == format!("{name} created")), "{name}: {applied}");
    }
}

#[tokio::test]
#[cfg_attr(without_api_server, ignore = "needs Go, for a Kubernetes API server")]
async fn example_serves_two_namespaces_with_one_instance() {
    let cluster = Cluster::shared().await;
    for namespace in ["team-a", "team-b"] {
        cluster.kubectl(&["create", "namespace", namespace]).await;
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let example = root.join("examples/kubernetes/namespaces").display().to_string();
    cluster.kubectl(&["apply", "--validate=strict", "-k", &example]).await;
    let args = "jsonpath={.spec.template.spec.containers[0].args}";
    let args = cluster.kubectl(&["get", "deployment", "evenkeel", "-n", "team-a", "-o", args]).await;
    for flag in ["--namespace=$(POD_NAMESPACE)", "--namespace=team-b"] {
        assert!(args.contains(flag), "{args}");
    }
    cluster.wait_for_permission("team-a:evenkeel", "watch", "mcpservers.evenkeel.dev", "team-b", true).await;
    let account = "--as=system:serviceaccount:team-a:evenkeel";
    let can_i = async |args: &[&str]| {
        cluster.kubectl(&[&["auth", "can-i", account, "-n", "team-b"], args].concat()).await
    };
    assert_eq!(can_i(&["watch", "mcpservers.evenkeel.dev"]).await, "yes\n");
    assert_eq!(can_i(&["watch", "secrets/search"]).await, "yes\n");
    let other = ["auth", "can-i", account, "-n", "team-b", "watch", "secrets/other"];
    let output = cluster.kubectl_command(&other).output().await.unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout), "no\n");
}

/// The CRDs of Flux and Argo CD are not installed, so only the paths in the objects are checked.
#[test]
fn flux_and_argo_cd_examples_name_existing_paths() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    for (file, path) in [("flux", "/spec/path"), ("argocd", "/spec/source/path")] {
        let text = std::fs::read_to_string(root.join(format!("examples/kubernetes/{file}.yaml"))).unwrap();
        let object: Value = serde_yaml::from_str(&text).unwrap();
        let declarations = root.join(object.pointer(path).unwrap().as_str().unwrap());
        assert!(declarations.join("kustomization.yaml").is_file(), "{}", declarations.display());
    }
}
