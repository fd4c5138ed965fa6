//! The health that Flux (kstatus) and Argo CD (the script of `manifests/argocd/`) compute from evenkeel's statuses.

use std::path::Path;
use std::process::Stdio;

use serde::Deserialize;
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;

use crate::rig::{FakeHttpServer, Script};
use crate::support::{
    Cluster, Evenkeel, ManifestsCopy, apply_crds, eventually, gitops_health_program, server_yaml,
};

#[derive(Debug, Deserialize)]
struct Verdict {
    kstatus: String,
    argo: Health,
}

impl Verdict {
    fn summary(&self) -> String {
        format!("{} {}", self.kstatus, self.argo.status)
    }
}

#[derive(Debug, Deserialize)]
struct Health {
    status: String,
    message: String,
}

/// An object, its condition, the expected health by kstatus and by Argo CD, and a part of Argo CD's message.
const STATES: [(&str, &str, &str, &str); 13] = [
    ("mcpserver/ready", "Ready=True/Attached", "Current Healthy", "attached over http"),
    ("mcpserver/connecting", "Ready=False/Connecting", "InProgress Progressing", "connecting, attempt 1"),
    (
        "mcpserver/failing",
        "Reconciling=True/ProgressingWithRetry",
        "InProgress Progressing",
        "ConnectFailed: ",
    ),
    (
        "mcpserver/unresolved",
        "ResolvedRefs=False/SecretNotFound",
        "InProgress Progressing",
        "SecretNotFound: ",
    ),
    ("mcpserver/stalled", "Stalled=True/CommandNotFound", "Failed Degraded", "CommandNotFound: "),
    ("mcpserver/invalid", "Stalled=True/InvalidSpec", "Failed Degraded", "InvalidSpec: "),
    ("mcpserver/denied", "Stalled=True/PolicyDenied", "Failed Degraded", "PolicyDenied: "),
    ("mcpserver/suspended", "Ready=False/Suspended", "InProgress Suspended", "spec.suspend"),
    ("mcpserver/replaced", "Attached=True/ServingPreviousGeneration", "InProgress Progressing", "Connect"),
    ("skill/ready", "Ready=True/Available", "Current Healthy", ""),
    (
        "skill/waiting",
        "ResolvedRefs=False/ConfigMapNotFound",
        "InProgress Progressing",
        "ConfigMapNotFound: ",
    ),
    ("skill/stalled", "Stalled=True/InvalidSpec", "Failed Degraded", "InvalidSpec: "),
    ("skill/suspended", "Ready=False/Suspended", "InProgress Suspended", "spec.suspend"),
];

#[tokio::test]
#[cfg_attr(without_go, ignore = "needs Go")]
async fn kstatus_and_argo_cd_read_every_state_as_intended() {
    let program = gitops_health_program();
    let cluster = Cluster::shared().await;
    apply_crds(cluster).await;
    let namespace = cluster.namespace("judged").await;
    ManifestsCopy::new().apply_namespace_overlay(cluster, &namespace).await;
    let kubeconfig = cluster.kubeconfig_for(&namespace, "evenkeel").await;
    let flags = ["-n", &namespace, "--lease-namespace", &namespace];
    let allowed = ["--allow-stdio=sleep 600", "--allow-stdio=no-such-command"];
    let mut evenkeel = Evenkeel::run_in_cluster(&kubeconfig, &[&flags[..], &allowed].concat()).await;

    let (good, replaced) =
        (FakeHttpServer::start(Script::default()).await, FakeHttpServer::start(Script::default()).await);
    let closed = "http: { url: \"http://127.0.0.1:9/mcp\" }\nretry: { initial: 1h, max: 1h }";
    let secret = "{ secretKeyRef: { name: absent, key: token } }";
    let text = |name: &str| {
        format!("\n  inline: |\n    ---\n    name: {name}\n    description: Does something.\n    ---\n")
    };
    for object in [
        server_yaml("replaced", &replaced.spec()),
        server_yaml("ready", &good.spec()),
        server_yaml("connecting", "stdio: { command: sleep, args: [\"600\"] }\ntimeouts: { connect: 10m }"),
        server_yaml("failing", closed),
        server_yaml(
            "unresolved",
            &format!(
                "http: {{ url: \"http://127.0.0.1:9\", headers: [{{ name: A, valueFrom: {secret} }}] }}"
            ),
        ),
        server_yaml("stalled", "stdio: { command: no-such-command }"),
        server_yaml("invalid", "stdio: { command: sleep, args: [\"600\"], cwd: /tmp }"),
        server_yaml("denied", "stdio: { command: sh }"),
        server_yaml("suspended", &format!("{}\nsuspend: true", good.spec())),
        skill_yaml("ready", &text("ready")),
        skill_yaml("waiting", "{ configMapRef: { name: absent } }"),
        skill_yaml("stalled", "{ inline: \"---\" }"),
        skill_yaml("suspended", &(text("suspended") + "  suspend: true\n")),
    ] {
        cluster.apply(&namespace, &object).await;
    }
    let get = async |name: &str| -> Value {
        let object = cluster.kubectl(&["get", name, "-n", &namespace, "-o", "json"]).await;
        serde_json::from_str(&object).unwrap()
    };
    let wait_for_condition = async |name: &str, condition: &str| {
        let description = format!("{name}: {condition}");
        eventually(&description, async || {
            Some(get(name).await).filter(|object| has_condition(object, condition))
        })
        .await
    };
    wait_for_condition("mcpserver/replaced", "Ready=True/Attached").await;
    cluster.apply(&namespace, &server_yaml("replaced", closed)).await;
    let mut objects = Vec::new();
    for (name, condition, ..) in STATES {
        objects.push(wait_for_condition(name, condition).await);
    }
    // Edited while no instance runs: the generation is not observed.
    evenkeel.terminate().await;
    for (name, edit) in [
        ("mcpserver/ready", "{\"spec\":{\"expose\":{\"prefix\":\"other\"}}}"),
        ("skill/ready", "{\"spec\":{\"serverRefs\":[{\"name\":\"ready\"}]}}"),
    ] {
        cluster.kubectl(&["patch", name, "-n", &namespace, "--type=merge", "-p", edit]).await;
        objects.push(get(name).await);
    }

    let verdicts = evaluate(&program, &objects).await;
    for ((name, _, expected, message_part), verdict) in STATES.iter().zip(&verdicts) {
        assert_eq!(verdict.summary(), *expected, "{name}: {verdict:?}");
        assert!(verdict.argo.message.contains(message_part), "{name}: {verdict:?}");
    }
    for edited in &verdicts[STATES.len()..] {
        assert_eq!(edited.summary(), "InProgress Progressing", "{edited:?}");
    }
}

/// Returns true if an object has the condition `TYPE=STATUS/REASON`.
fn has_condition(object: &Value, expected: &str) -> bool {
    let conditions = object["status"]["conditions"].as_array().into_iter().flatten();
    let text = |condition: &Value, key: &str| condition[key].as_str().unwrap_or_default().to_owned();
    conditions.into_iter().any(|condition| {
        let [condition_type, status, reason] = ["type", "status", "reason"].map(|key| text(condition, key));
        format!("{condition_type}={status}/{reason}") == expected
    })
}

fn skill_yaml(name: &str, spec: &str) -> String {
    format!("apiVersion: evenkeel.dev/v1alpha1\nkind: Skill\nmetadata: {{ name: {name} }}\nspec: {spec}\n")
}

#[tokio::test]
#[cfg_attr(without_go, ignore = "needs Go")]
async fn object_without_status_is_in_progress() {
    let program = gitops_health_program();
    let cluster = Cluster::shared().await;
    apply_crds(cluster).await;
    let namespace = cluster.namespace("unseen").await;
    let kinds = [("McpServer", "stdio: { command: c }"), ("Skill", "inline: text")];
    let mut objects = Vec::new();
    for (kind, spec) in kinds {
        let object = format!(
            "{{ apiVersion: evenkeel.dev/v1alpha1, kind: {kind}, metadata: {{ name: new }}, spec: {{ {spec} }} }}"
        );
        cluster.apply(&namespace, &object).await;
        let object = cluster.kubectl(&["get", kind, "new", "-n", &namespace, "-o", "json"]).await;
        objects.push(serde_json::from_str(&object).unwrap());
    }
    for verdict in evaluate(&program, &objects).await {
        assert_eq!(verdict.summary(), "InProgress Progressing", "{verdict:?}");
    }
}

async fn evaluate(program: &Path, objects: &[Value]) -> Vec<Verdict> {
    let patch = Path::new(env!("CARGO_MANIFEST_DIR")).join("manifests/argocd/health.yaml");
    let patch: Value = serde_yaml::from_str(&std::fs::read_to_string(patch).unwrap()).unwrap();
    let requests: Vec<Value> = objects
        .iter()
        .map(|object| {
            let key =
                format!("resource.customizations.health.evenkeel.dev_{}", object["kind"].as_str().unwrap());
            json!({ "object": object, "script": patch["data"][key] })
        })
        .collect();
    let mut child = tokio::process::Command::new(program)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let requests = serde_json::to_vec(&requests).unwrap();
    child.stdin.take().unwrap().write_all(&requests).await.unwrap();
    let output = child.wait_with_output().await.unwrap();
    assert!(output.status.success());
    serde_json::from_slice(&output.stdout).unwrap()
}
