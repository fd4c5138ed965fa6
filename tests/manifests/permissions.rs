//! The manifests grant exactly the expected permissions.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use crate::support::{Cluster, ManifestsCopy, eventually};

/// The expected permissions in the namespace in which evenkeel runs.
const HOME_RULES: [&str; 4] = [
    "create coordination.k8s.io/leases",
    "get coordination.k8s.io/leases/evenkeel",
    "update coordination.k8s.io/leases/evenkeel",
    "get secrets/evenkeel-session-key",
];

/// The expected permissions in each namespace that evenkeel serves.
const SERVED_NAMESPACE_RULES: [&str; 16] = [
    "get evenkeel.dev/mcpservers",
    "list evenkeel.dev/mcpservers",
    "watch evenkeel.dev/mcpservers",
    "get evenkeel.dev/skills",
    "list evenkeel.dev/skills",
    "watch evenkeel.dev/skills",
    "patch evenkeel.dev/mcpservers/status",
    "patch evenkeel.dev/skills/status",
    "create events.k8s.io/events",
    "patch events.k8s.io/events",
    "get secrets",
    "list secrets",
    "watch secrets",
    "get configmaps",
    "list configmaps",
    "watch configmaps",
];

#[tokio::test]
#[cfg_attr(without_api_server, ignore = "needs Go, for a Kubernetes API server")]
async fn namespace_overlay_grants_exactly_the_expected_rules() {
    let cluster = Cluster::shared().await;
    let (home, other) = (cluster.namespace("home").await, cluster.namespace("other").await);
    ManifestsCopy::new().apply_namespace_overlay(cluster, &home).await;
    wait_for_exact_rules(cluster, &home, &home, &rule_set(&[&HOME_RULES[..], &SERVED_NAMESPACE_RULES])).await;
    wait_for_exact_rules(cluster, &home, &other, &rule_set(&[])).await;
}

#[tokio::test]
#[cfg_attr(without_api_server, ignore = "needs Go, for a Kubernetes API server")]
async fn cluster_overlay_grants_exactly_the_expected_rules() {
    let cluster = Cluster::shared().await;
    ManifestsCopy::new().apply_cluster_overlay(cluster).await;
    wait_for_exact_rules(
        cluster,
        "evenkeel",
        "evenkeel",
        &rule_set(&[&HOME_RULES[..], &SERVED_NAMESPACE_RULES]),
    )
    .await;
    wait_for_exact_rules(cluster, "evenkeel", "default", &rule_set(&[&SERVED_NAMESPACE_RULES[..]])).await;
}

fn rule_set(lists: &[&[&str]]) -> BTreeSet<String> {
    lists.iter().copied().flatten().map(ToString::to_string).collect()
}

/// Waits until the account of the manifests in `home` has exactly the expected permissions in a namespace, besides
/// those of every account. The API server applies roles a moment after they are created.
async fn wait_for_exact_rules(cluster: &Cluster, home: &str, namespace: &str, expected: &BTreeSet<String>) {
    cluster.kubectl(&["create", "serviceaccount", "unprivileged", "-n", namespace]).await;
    let description =
        format!("the account of {home} has exactly these permissions in {namespace}: {expected:#?}");
    eventually(&description, async || {
        let baseline = account_rules(cluster, namespace, "unprivileged", namespace).await;
        let granted = account_rules(cluster, home, "evenkeel", namespace).await;
        let exact = baseline.is_subset(&granted)
            && granted.difference(&baseline).cloned().collect::<BTreeSet<_>>() == *expected;
        exact.then_some(())
    })
    .await;
}

/// Returns all permissions of an account in a namespace, as `VERB GROUP/RESOURCE[/NAME]`.
async fn account_rules(cluster: &Cluster, home: &str, account: &str, namespace: &str) -> BTreeSet<String> {
    let review = json!({
        "apiVersion": "authorization.k8s.io/v1",
        "kind": "SelfSubjectRulesReview",
        "spec": { "namespace": namespace },
    });
    let kubeconfig = cluster.kubeconfig_for(home, account).await;
    let client = cluster.client_for(&kubeconfig).await;
    let request = http::Request::post("/apis/authorization.k8s.io/v1/selfsubjectrulesreviews")
        .header("Content-Type", "application/json")
        .body(review.to_string().into_bytes())
        .unwrap();
    let response: Value = client.request(request).await.unwrap();
    assert_eq!(response["status"]["incomplete"], false, "{response}");
    array_items(&response["status"]["resourceRules"])
        .into_iter()
        .flat_map(|rule| rule_strings(&rule))
        .collect()
}

fn rule_strings(rule: &Value) -> Vec<String> {
    let strings = |key: &str| {
        array_items(&rule[key]).iter().map(|string| string.as_str().unwrap().to_owned()).collect()
    };
    let [verbs, groups, resources, names]: [Vec<String>; 4] =
        ["verbs", "apiGroups", "resources", "resourceNames"].map(strings);
    let names = if names.is_empty() { vec![String::new()] } else { names };
    let mut all = Vec::new();
    for verb in &verbs {
        for group in &groups {
            for resource in &resources {
                for name in &names {
                    let path: Vec<&str> = [group, resource, name]
                        .into_iter()
                        .map(String::as_str)
                        .filter(|part| !part.is_empty())
                        .collect();
                    all.push(format!("{verb} {}", path.join("/")));
                }
            }
        }
    }
    all
}

fn array_items(value: &Value) -> Vec<Value> {
    value.as_array().cloned().unwrap_or_default()
}
