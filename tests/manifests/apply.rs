//! The API server accepts each overlay, in any namespace, and its Pods under the restricted Pod Security Standard.

use std::path::Path;

use serde_json::{Value, json};

use crate::support::{Cluster, ManifestsCopy, namespace_kustomization, wait_for_crds};

#[tokio::test]
#[cfg_attr(without_api_server, ignore = "needs Go, for a Kubernetes API server")]
async fn cluster_overlay_applies_and_reapplying_changes_nothing() {
    let cluster = Cluster::start().await;
    let manifests = ManifestsCopy::new();
    let overlay = manifests.path_of("overlays/cluster");
    // A dry run creates no namespace, and objects need an existing one.
    cluster.kubectl(&["create", "namespace", "evenkeel"]).await;
    let apply = ["apply", "--server-side", "--force-conflicts", "--warnings-as-errors", "-k", &overlay];
    cluster.kubectl(&[&apply[..], &["--dry-run=server"]].concat()).await;
    let objects =
        cluster.kubectl(&["get", "deployments,services,clusterroles", "-n", "evenkeel", "-o", "name"]).await;
    assert!(!objects.contains("evenkeel"), "{objects}");

    cluster.kubectl(&["apply", "-k", &overlay]).await;
    wait_for_crds(&cluster).await;
    cluster.kubectl(&["apply", "-k", &overlay]).await;
    let generation =
        ["get", "deployment", "evenkeel", "-n", "evenkeel", "-o", "jsonpath={.metadata.generation}"];
    assert_eq!(cluster.kubectl(&generation).await, "1", "applying again changes nothing");
    let namespace =
        cluster.kubectl(&["get", "namespace", "evenkeel", "-o", "jsonpath={.metadata.labels}"]).await;
    assert!(namespace.contains("restricted"), "{namespace}");
}

#[tokio::test]
#[cfg_attr(without_api_server, ignore = "needs Go, for a Kubernetes API server")]
async fn crds_folder_applies_without_warnings() {
    let cluster = Cluster::start().await;
    let crds = Path::new(env!("CARGO_MANIFEST_DIR")).join("crds").display().to_string();
    let applied = cluster.kubectl(&["apply", "--warnings-as-errors", "-f", &crds]).await;
    let expected = ["mcpservers", "skills"]
        .map(|kind| format!("customresourcedefinition.apiextensions.k8s.io/{kind}.evenkeel.dev created\n"));
    assert_eq!(applied, expected.concat());
    wait_for_crds(&cluster).await;
}

#[tokio::test]
#[cfg_attr(without_api_server, ignore = "needs Go, for a Kubernetes API server")]
async fn overlays_render_for_another_namespace() {
    let cluster = Cluster::shared().await;
    let manifests = ManifestsCopy::new();
    let kustomization = "apiVersion: kustomize.config.k8s.io/v1beta1\nkind: Kustomization\nnamespace: NAME\n\
               resources: [../manifests/overlays/cluster]\ncomponents: [../manifests/components/servicemonitor]\n";
    for (directory, text) in
        [("one", namespace_kustomization("team-z")), ("all", kustomization.replace("NAME", "team-z"))]
    {
        let rendered =
            cluster.kubectl(&["kustomize", &manifests.write_kustomization(directory, &text)]).await;
        assert!(!rendered.contains("namespace: evenkeel"), "{directory}: {rendered}");
        let objects: Vec<Value> = parse_objects(&rendered);
        let all_subjects: Vec<_> = objects
            .iter()
            .filter(|object| object["kind"].as_str().unwrap().ends_with("RoleBinding"))
            .map(|binding| &binding["subjects"])
            .collect();
        assert_eq!(all_subjects.len(), 2);
        for subjects in all_subjects {
            let expected = json!([{ "kind": "ServiceAccount", "name": "evenkeel", "namespace": "team-z" }]);
            assert_eq!(*subjects, expected, "{directory}");
        }
        for object in objects.iter().filter(|object| object["kind"] == "Namespace") {
            assert_eq!(object["metadata"]["name"], "team-z");
        }
    }
}

#[tokio::test]
#[cfg_attr(without_api_server, ignore = "needs Go, for a Kubernetes API server")]
async fn namespace_overlay_has_only_objects_of_its_namespace() {
    let cluster = Cluster::shared().await;
    let manifests = ManifestsCopy::new();
    let namespace = cluster.namespace("tenant").await;
    let rendered = cluster
        .kubectl(&[
            "kustomize",
            &manifests.write_kustomization("rendered", &namespace_kustomization(&namespace)),
        ])
        .await;
    for object in parse_objects(&rendered) {
        assert_eq!(object["metadata"]["namespace"], *namespace, "{object}");
    }
    manifests.apply_namespace_overlay(cluster, &namespace).await;
    let deployment =
        cluster.kubectl(&["get", "deployment", "evenkeel", "-n", &namespace, "-o", "json"]).await;
    let deployment: Value = serde_json::from_str(&deployment).unwrap();
    // An update loses no call: an old replica serves until the new one is ready.
    let expected =
        json!({ "type": "RollingUpdate", "rollingUpdate": { "maxSurge": 1, "maxUnavailable": 0 } });
    assert_eq!(deployment["spec"]["strategy"], expected);
    let args = &deployment["spec"]["template"]["spec"]["containers"][0]["args"];
    assert_eq!(args[2], "--namespace=$(POD_NAMESPACE)", "{args}");
}

#[tokio::test]
#[cfg_attr(without_api_server, ignore = "needs Go, for a Kubernetes API server")]
async fn pod_is_admitted_under_restricted_pod_security() {
    let cluster = Cluster::shared().await;
    let manifests = ManifestsCopy::new();
    let namespace = cluster.namespace("restricted").await;
    cluster
        .kubectl(&["label", "namespace", &namespace, "pod-security.kubernetes.io/enforce=restricted"])
        .await;
    let rendered = cluster
        .kubectl(&[
            "kustomize",
            &manifests.write_kustomization("rendered", &namespace_kustomization(&namespace)),
        ])
        .await;
    let deployment =
        parse_objects(&rendered).into_iter().find(|object| object["kind"] == "Deployment").unwrap();
    let mut pod = json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": { "name": "evenkeel" },
        "spec": deployment["spec"]["template"]["spec"],
    });
    cluster.apply(&namespace, &pod.to_string()).await;

    pod["metadata"]["name"] = "careless".into();
    pod["spec"]["securityContext"]["runAsNonRoot"] = false.into();
    let error = cluster.apply_error(&namespace, &pod.to_string()).await;
    assert!(error.contains("violates PodSecurity \"restricted"), "{error}");
}

/// Parses the objects of a stream of YAML documents.
fn parse_objects(yaml: &str) -> Vec<Value> {
    yaml.split("\n---\n").map(|document| serde_yaml::from_str(document).unwrap()).collect()
}
