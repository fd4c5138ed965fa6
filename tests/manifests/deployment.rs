//! The container of the Deployment, with the arguments, account and probes of the manifests.

use serde_json::Value;

use crate::rig::{FakeHttpServer, Script};
use crate::support::{
    Agent, Cluster, Era, Evenkeel, ManifestsCopy, apply_crds, eventually, free_port, http, server_yaml,
};

#[tokio::test]
#[cfg_attr(without_api_server, ignore = "needs Go, for a Kubernetes API server")]
async fn container_args_serve_agents_and_probes() {
    let cluster = Cluster::shared().await;
    let namespace = cluster.namespace("deployed").await;
    apply_crds(cluster).await;
    ManifestsCopy::new().apply_namespace_overlay(cluster, &namespace).await;
    let key = "--from-literal=key=0123456789abcdef0123456789abcdef";
    cluster.kubectl(&["create", "secret", "generic", "evenkeel-session-key", "-n", &namespace, key]).await;
    let rig = FakeHttpServer::start(Script::default()).await;
    cluster.apply(&namespace, &server_yaml("search", &rig.spec())).await;

    let container = get_container(cluster, &namespace).await;
    let probes = free_port();
    let flags = resolve_flags(&container, &namespace, probes);
    let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
    let kubeconfig = cluster.kubeconfig_for(&namespace, "evenkeel").await;
    let mut evenkeel = Evenkeel::run_in_cluster(&kubeconfig, &flags).await;
    for probe in ["startupProbe", "livenessProbe", "readinessProbe"] {
        let path = container[probe]["httpGet"]["path"].as_str().unwrap();
        let url = format!("http://127.0.0.1:{probes}{path}");
        eventually(probe, async || http::get(&url).await.ok()).await;
    }
    let ready = ["wait", "mcpserver/search", "-n", &namespace, "--for=condition=Ready", "--timeout=60s"];
    cluster.kubectl(&ready).await;
    let agent = Agent::connect(Era::Modern, &evenkeel.url()).await;
    let tools = agent.tool_names().await;
    assert!(tools.iter().any(|tool| tool.starts_with("search_")), "{tools:?}");

    let status = evenkeel.terminate().await;
    assert!(status.success(), "{status}");
    let holder = ["get", "lease", "evenkeel", "-n", &namespace, "-o", "jsonpath={.spec.holderIdentity}"];
    assert_eq!(cluster.kubectl(&holder).await, "", "the lease is released");
    let account = format!("system:serviceaccount:{namespace}:evenkeel");
    let requests = cluster.audit_events();
    let mut account_requests =
        requests.iter().filter(|request| request["user"]["username"] == account.as_str()).peekable();
    assert!(account_requests.peek().is_some());
    for request in account_requests {
        assert_ne!(request["responseStatus"]["code"], 403, "{request}");
    }
}

/// Returns the container of the Deployment in a namespace.
async fn get_container(cluster: &Cluster, namespace: &str) -> Value {
    let deployment = cluster.kubectl(&["get", "deployment", "evenkeel", "-n", namespace, "-o", "json"]).await;
    let mut deployment: Value = serde_json::from_str(&deployment).unwrap();
    deployment["spec"]["template"]["spec"]["containers"][0].take()
}

/// Returns the flags of the container in a namespace, with the probes on this port.
pub async fn container_flags(cluster: &Cluster, namespace: &str, probes: u16) -> Vec<String> {
    resolve_flags(&get_container(cluster, namespace).await, namespace, probes)
}

/// Returns the flags of the container, without those that the test harness sets: the source and the listen address.
fn resolve_flags(container: &Value, namespace: &str, probes: u16) -> Vec<String> {
    let args = container["args"].as_array().unwrap().iter().map(|arg| arg.as_str().unwrap());
    let (removed, flags): (Vec<_>, Vec<_>) =
        args.partition(|arg| ["run", "--kubernetes", "--listen=[::]:7717"].contains(arg));
    assert_eq!(removed.len(), 3, "{removed:?}");
    // The kubelet replaces $(POD_NAMESPACE) by the namespace of the Pod.
    let lease_namespace = format!("--lease-namespace={namespace}");
    let resolved = flags.iter().map(|flag| {
        flag.replace("$(POD_NAMESPACE)", namespace)
            .replace("$(POD_IP)", "127.0.0.1")
            .replace("[::]:7719", &format!("127.0.0.1:{probes}"))
    });
    resolved.chain([lease_namespace]).collect()
}
