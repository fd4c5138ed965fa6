//! The fixture of these tests: a namespace of an API server, in which evenkeel runs with its own account.

use std::path::{Path, PathBuf};
use std::time::Duration;

use evenkeel::resource::crds;
use kube::Api;
use kube::api::{Patch, PatchParams};
use kube::core::{ApiResource, DynamicObject, GroupVersionKind};
use serde_json::Value;
use tokio::sync::OnceCell;

use crate::rig::FakeHttpServer;
use crate::support::{Cluster, Evenkeel, ManifestsCopy, eventually};

/// A namespace with evenkeel's account and its permissions.
pub struct TestNamespace<'a> {
    pub cluster: &'a Cluster,
    pub name: String,
    /// The kubeconfig of evenkeel's account.
    pub kubeconfig: PathBuf,
    servers: Api<DynamicObject>,
}

/// Returns the status, reason and message of a condition.
pub fn condition(object: &Value, condition_type: &str) -> Option<(String, String, String)> {
    let conditions = object["status"]["conditions"].as_array()?;
    let found = conditions.iter().find(|condition| condition["type"] == condition_type)?;
    let text = |key: &str| found[key].as_str().unwrap_or_default().to_owned();
    Some((text("status"), text("reason"), text("message")))
}

/// Installs the CRDs and waits until they are served.
pub async fn install_crds(cluster: &Cluster) {
    for (_, yaml) in crds().unwrap() {
        cluster.apply("default", &yaml).await;
    }
    for name in ["mcpservers.evenkeel.dev", "skills.evenkeel.dev"] {
        let crd = format!("crd/{name}");
        cluster.kubectl(&["wait", "--for=condition=Established", &crd, "--timeout=60s"]).await;
    }
}

/// Returns the YAML of one server. `spec` is the lines under `spec:`.
pub fn server_yaml(name: &str, spec: &str) -> String {
    let spec = spec.replace('\n', "\n  ");
    format!(
        "apiVersion: evenkeel.dev/v1alpha1\nkind: McpServer\nmetadata: {{ name: {name} }}\nspec:\n  {spec}\n---\n"
    )
}

impl TestNamespace<'static> {
    /// Creates a namespace in the API server that all tests share.
    pub async fn create_shared() -> Self {
        static CRDS_INSTALLED: OnceCell<()> = OnceCell::const_new();
        let cluster = Cluster::shared().await;
        CRDS_INSTALLED.get_or_init(|| install_crds(cluster)).await;
        Self::create_in(cluster).await
    }
}

impl<'a> TestNamespace<'a> {
    /// Creates a namespace in this API server.
    pub async fn create_in(cluster: &'a Cluster) -> Self {
        let namespace = cluster.namespace("site").await;
        ManifestsCopy::new().apply_namespace_overlay(cluster, &namespace).await;
        let kubeconfig = cluster.kubeconfig_for(&namespace, "evenkeel").await;
        let kind = GroupVersionKind::gvk("evenkeel.dev", "v1alpha1", "McpServer");
        let resource = ApiResource::from_gvk_with_plural(&kind, "mcpservers");
        let servers = Api::namespaced_with(cluster.admin_client().await, &namespace, &resource);
        Self { cluster, name: namespace, kubeconfig, servers }
    }

    /// Runs evenkeel with the permissions of the manifests.
    pub async fn run(&self, flags: &[&str]) -> Evenkeel {
        self.run_with_kubeconfig(&self.kubeconfig, flags).await
    }

    /// Runs evenkeel with another kubeconfig.
    pub async fn run_with_kubeconfig(&self, kubeconfig: &Path, flags: &[&str]) -> Evenkeel {
        let mut all = vec!["-n", &self.name, "--lease-namespace", &self.name];
        all.extend(flags);
        Evenkeel::run_in_cluster(kubeconfig, &all).await
    }

    pub async fn apply(&self, yaml: &str) {
        self.cluster.apply(&self.name, yaml).await;
    }

    /// Applies objects. Returns false if they are rejected.
    pub async fn try_apply(&self, yaml: &str) -> bool {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), yaml).unwrap();
        let path = file.path().to_str().unwrap();
        let args = ["apply", "--server-side", "--validate=strict", "-n", &self.name, "-f", path];
        self.cluster.kubectl_command(&args).output().await.unwrap().status.success()
    }

    /// Declares a fake HTTP server, without health checks.
    pub async fn apply_http_server(&self, name: &str, rig: &FakeHttpServer) {
        // Health checks would count as handshakes.
        self.apply(&server_yaml(name, &format!("{}\nhealth: {{ interval: 0s }}", rig.spec()))).await;
    }

    pub async fn kubectl(&self, args: &[&str]) -> String {
        let mut all = vec!["-n", self.name.as_str()];
        all.extend(args);
        self.cluster.kubectl(&all).await
    }

    pub async fn create_secret(&self, name: &str, value: &str) {
        self.kubectl(&["create", "secret", "generic", name, &format!("--from-literal=key={value}")]).await;
    }

    /// Returns a server from the API server.
    pub async fn get_server(&self, name: &str) -> Option<Value> {
        let found = self.servers.get_opt(name).await.ok()??;
        Some(serde_json::to_value(found).unwrap())
    }

    /// Waits until a condition has this status and reason for the latest generation, and returns its message.
    pub async fn wait_for(&self, name: &str, condition_type: &str, status: &str, reason: &str) -> String {
        eventually(&format!("{name}: {condition_type}={status}/{reason}"), async || {
            let object = self.get_server(name).await?;
            let current = object["status"]["observedGeneration"] == object["metadata"]["generation"];
            let (actual_status, actual_reason, message) = condition(&object, condition_type)?;
            (current && actual_status == status && actual_reason == reason).then_some(message)
        })
        .await
    }

    /// Patches a server as the administrator.
    pub async fn patch_server(&self, name: &str, merge: &Value) {
        self.servers.patch(name, &PatchParams::default(), &Patch::Merge(merge)).await.unwrap();
    }

    pub async fn wait_until_attached(&self, name: &str) {
        self.wait_for(name, "Ready", "True", "Attached").await;
    }

    /// Replaces the rules of evenkeel's role, and waits until they apply. `secrets` is true if the rules permit to
    /// watch Secrets.
    pub async fn set_role_rules(&self, rules: &[&Value], secrets: bool) {
        let patch = serde_json::json!({ "rules": rules }).to_string();
        self.kubectl(&["patch", "role", "evenkeel", "--type=merge", "-p", &patch]).await;
        let account = format!("{}:evenkeel", self.name);
        self.cluster.wait_for_permission(&account, "watch", "secrets", &self.name, secrets).await;
    }

    /// Returns the number of status writes in this namespace, from the audit log of the API server: for one server, or
    /// for all with an empty name.
    pub fn status_writes(&self, name: &str) -> usize {
        let path = format!("/namespaces/{}/mcpservers/{name}", self.name);
        let is_status_write = |request: &&Value| {
            let uri = request["requestURI"].as_str().unwrap_or_default();
            let by_evenkeel =
                request["userAgent"].as_str().is_some_and(|agent| agent.starts_with("evenkeel/"));
            by_evenkeel && request["verb"] == "patch" && uri.contains(&path) && uri.contains("/status")
        };
        self.cluster.audit_events().iter().filter(is_status_write).count()
    }

    /// Returns the number of status writes once it no longer changes: a written object is visible before the audit log
    /// has the request.
    pub async fn settled_status_writes(&self, name: &str) -> usize {
        let mut before = self.status_writes(name);
        eventually("no status is being written", async || {
            tokio::time::sleep(Duration::from_secs(1)).await;
            let now = self.status_writes(name);
            (std::mem::replace(&mut before, now) == now).then_some(now)
        })
        .await
    }

    /// Returns the number of Event writes in this namespace.
    pub fn event_writes(&self) -> usize {
        let path = format!("/apis/events.k8s.io/v1/namespaces/{}/events", self.name);
        let is_event_write = |request: &&Value| {
            let uri = request["requestURI"].as_str().unwrap_or_default();
            uri.starts_with(&path) && ["create", "patch"].map(Value::from).contains(&request["verb"])
        };
        self.cluster.audit_events().iter().filter(is_event_write).count()
    }

    /// Returns the events about a server, as `REASON note`.
    pub async fn events(&self, name: &str) -> Vec<String> {
        let field = format!("--field-selector=involvedObject.name={name}");
        let path = "-o=jsonpath={range .items[*]}{.reason} {.message}{\"\\n\"}{end}";
        self.kubectl(&["get", "events", &field, path]).await.lines().map(ToOwned::to_owned).collect()
    }
}
