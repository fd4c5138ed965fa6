//! What Flux (kstatus) and Argo CD (the script of `manifests/argocd/`) make of the statuses that evenkeel writes.

use std::path::Path;
use std::process::Stdio;

use serde::Deserialize;
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;

use crate::rig::{Http, Script};
use crate::support::{Cluster, Declared, Evenkeel, judges, kinds};

#[derive(Debug, Deserialize)]
struct Verdict {
    kstatus: String,
    argo: Health,
}

impl Verdict {
    fn both(&self) -> String {
        format!("{} {}", self.kstatus, self.argo.status)
    }
}

#[derive(Debug, Deserialize)]
struct Health {
    status: String,
    message: String,
}

/// A server, the condition that tells of its state, what kstatus and Argo CD make of it, and words of the latter.
const STATES: [(&str, &str, &str, &str); 8] = [
    ("ready", "Ready=True/Attached", "Current Healthy", "attached over http"),
    ("connecting", "Ready=False/Connecting", "InProgress Progressing", "Connecting: connecting, attempt 1"),
    ("failing", "Reconciling=True/ProgressingWithRetry", "InProgress Progressing", "ConnectFailed: "),
    ("unresolved", "ResolvedRefs=False/SecretNotFound", "InProgress Progressing", "SecretNotFound: "),
    ("stalled", "Stalled=True/CommandNotFound", "Failed Degraded", "CommandNotFound: "),
    ("invalid", "Stalled=True/InvalidSpec", "Failed Degraded", "InvalidSpec: "),
    ("suspended", "Ready=False/Suspended", "InProgress Suspended", "spec.suspend"),
    ("replaced", "Attached=True/ServingPreviousGeneration", "InProgress Progressing", "Connect"),
];

#[tokio::test]
async fn every_state_is_read_as_it_is_meant() {
    let Some(judges) = judges() else { return };
    let (good, replaced) = (Http::start(Script::default()).await, Http::start(Script::default()).await);
    let closed = "http: { url: \"http://127.0.0.1:9/mcp\" }\nretry: { initial: 1h, max: 1h }";
    let declared = Declared::new();
    declared.server("ready", &good.spec());
    declared.server("connecting", "stdio: { command: sleep, args: [\"600\"] }\ntimeouts: { connect: 10m }");
    declared.server("failing", closed);
    declared.server(
        "unresolved",
        "http:\n  url: \"http://127.0.0.1:9/mcp\"\n  headers:\n    - name: Authorization\n      \
         valueFrom: { secretKeyRef: { name: absent, key: token } }",
    );
    declared.server("stalled", "stdio: { command: no-such-command }");
    declared.server("invalid", "suspend: false");
    declared.server("suspended", &format!("{}\nsuspend: true", good.spec()));
    declared.server("replaced", &replaced.spec());
    let evenkeel = Evenkeel::run(declared.path()).await;
    evenkeel.attached("replaced").await;
    declared.server("replaced", closed);

    let mut objects = Vec::new();
    for (name, told, ..) in STATES {
        let (kind, verdict) = told.split_once('=').unwrap();
        let (status, reason) = verdict.split_once('/').unwrap();
        evenkeel.wait_for(name, kind, status, reason).await;
        objects.push(evenkeel.server(name).await.unwrap());
    }
    let mut edited = objects[0].clone();
    edited["metadata"]["generation"] = json!(2);
    objects.push(edited);

    let verdicts = judge(&judges, &objects).await;
    for ((name, _, read, words), verdict) in STATES.iter().zip(&verdicts) {
        assert_eq!(verdict.both(), *read, "{name}: {verdict:?}");
        assert!(verdict.argo.message.contains(words), "{name}: {verdict:?}");
    }
    let edited = verdicts.last().unwrap();
    assert_eq!(edited.both(), "InProgress Progressing", "{edited:?}");
}

#[tokio::test]
async fn what_nobody_has_looked_at_is_not_ready() {
    let Some(judges) = judges() else { return };
    let Some(cluster) = Cluster::shared().await else { return };
    kinds(cluster).await;
    let namespace = cluster.namespace("unseen").await;
    let kinds = [("McpServer", "stdio: { command: c }"), ("Skill", "inline: text")];
    let mut objects = Vec::new();
    for (kind, spec) in kinds {
        let object = format!(
            "{{ apiVersion: evenkeel.dev/v1alpha1, kind: {kind}, metadata: {{ name: new }}, spec: {{ {spec} }} }}"
        );
        cluster.apply(&namespace, &object).await;
        let told = cluster.kubectl(&["get", kind, "new", "-n", &namespace, "-o", "json"]).await;
        objects.push(serde_json::from_str(&told).unwrap());
    }
    for verdict in judge(&judges, &objects).await {
        assert_eq!(verdict.both(), "InProgress Progressing", "{verdict:?}");
    }
}

async fn judge(judges: &Path, objects: &[Value]) -> Vec<Verdict> {
    let patch = Path::new(env!("CARGO_MANIFEST_DIR")).join("manifests/argocd/health.yaml");
    let patch: Value = serde_yaml::from_str(&std::fs::read_to_string(patch).unwrap()).unwrap();
    let questions: Vec<Value> = objects
        .iter()
        .map(|object| {
            let key =
                format!("resource.customizations.health.evenkeel.dev_{}", object["kind"].as_str().unwrap());
            json!({ "object": object, "script": patch["data"][key] })
        })
        .collect();
    let mut child = tokio::process::Command::new(judges)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let questions = serde_json::to_vec(&questions).unwrap();
    child.stdin.take().unwrap().write_all(&questions).await.unwrap();
    let output = child.wait_with_output().await.unwrap();
    assert!(output.status.success());
    serde_json::from_slice(&output.stdout).unwrap()
}
