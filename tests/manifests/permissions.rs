//! What the manifests permit evenkeel to do: this, and nothing more.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use crate::support::{Cluster, ManifestsCopy, eventually};

/// Where it runs, whatever it serves.
const HOME_RULES: [&str; 4] = [
    "create coordination.k8s.io/leases",
    "get coordination.k8s.io/leases/evenkeel",
    "update coordination.k8s.io/leases/evenkeel",
    "get secrets/evenkeel-session-key",
];

/// In each namespace that it serves.
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

/// Waits until the account of the manifests in `home` may do this in a namespace, beyond what every account may: the API
/// server takes up roles a moment after they were applied.
async fn wait_for_exact_rules(cluster: &Cluster, home: &str, namespace: &str, expected: &BTreeSet<String>) {
    cluster.kubectl(&["create", "serviceaccount", "nobody", "-n", namespace]).await;
    let what = format!("the account of {home} may do this in {namespace}, and nothing more: {expected:#?}");
    eventually(&what, async || {
        let nobody = account_rules(cluster, namespace, "nobody", namespace).await;
        let evenkeel = account_rules(cluster, home, "evenkeel", namespace).await;
        let is_so = nobody.is_subset(&evenkeel)
            && evenkeel.difference(&nobody).cloned().collect::<BTreeSet<_>>() == *expected;
        is_so.then_some(())
    })
    .await;
}

/// `VERB GROUP/RESOURCE[/NAME]` of all that an account may do in a namespace.
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
    let answer: Value = client.request(request).await.unwrap();
    assert_eq!(answer["status"]["incomplete"], false, "{answer}");
    array_items(&answer["status"]["resourceRules"]).into_iter().flat_map(|rule| rule_strings(&rule)).collect()
}

fn rule_strings(rule: &Value) -> Vec<String> {
    let words =
        |key: &str| array_items(&rule[key]).iter().map(|word| word.as_str().unwrap().to_owned()).collect();
    let [verbs, groups, resources, names]: [Vec<String>; 4] =
        ["verbs", "apiGroups", "resources", "resourceNames"].map(words);
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
