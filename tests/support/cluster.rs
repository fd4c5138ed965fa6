//! A real Kubernetes API server: etcd, kube-apiserver with RBAC, and kubectl. There is no controller manager: nothing
//! collects garbage, finalizes a namespace or creates a default `ServiceAccount`.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use kube::config::{KubeConfigOptions, Kubeconfig};
use ring::rand::SystemRandom;
use ring::signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, KeyPair};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::AsyncWriteExt;
use tokio::sync::OnceCell;

use super::daemon::free_port;
use super::process::GuardedProcess;
use super::{ClusterPrograms, TEST_TIMEOUT, cluster_programs, eventually};

const ADMIN_TOKEN: &str = "admin-token-of-a-test";

/// A running cluster of one API server. It ends when dropped, or with the test program.
pub struct Cluster {
    programs: ClusterPrograms,
    port: u16,
    // Declared before the directory, since processes must end before it is removed.
    api_server: Option<GuardedProcess>,
    _etcd: GuardedProcess,
    dir: TempDir,
}

impl Cluster {
    /// Starts a cluster of its own, for a test that disturbs it.
    pub async fn start() -> Self {
        let programs = cluster_programs();
        let home = TempDir::with_prefix("cluster").unwrap();
        write_config_files(home.path());
        let etcd = start_etcd(&programs, home.path());
        let mut this = Self { programs, port: 0, api_server: None, _etcd: etcd, dir: home };
        for _ in 0..5 {
            this.port = free_port();
            this.start_api_server();
            if this.wait_until_ready().await {
                return this;
            }
        }
        panic!("kube-apiserver does not start:\n{}", this.log_tail());
    }

    /// Returns the cluster that all tests of a test program share, each in a namespace of its own.
    pub async fn shared() -> &'static Self {
        static SHARED: OnceCell<Cluster> = OnceCell::const_new();
        SHARED.get_or_init(Self::start).await
    }

    /// Returns the URL of the API server.
    pub fn url(&self) -> String {
        format!("https://127.0.0.1:{}", self.port)
    }

    /// Kills the API server with SIGKILL. Its data is kept in etcd.
    pub fn kill_api_server(&mut self) {
        self.api_server = None;
    }

    /// Starts the API server again on the same port, and waits until it is ready.
    pub async fn restart_api_server(&mut self) {
        self.kill_api_server();
        self.start_api_server();
        assert!(self.wait_until_ready().await, "kube-apiserver does not restart:\n{}", self.log_tail());
    }

    /// Returns a kubeconfig file of the administrator.
    pub fn kubeconfig(&self) -> PathBuf {
        self.write_kubeconfig("admin", ADMIN_TOKEN)
    }

    /// Returns a kubeconfig file of a `ServiceAccount`, with a token like that of a Pod.
    pub async fn kubeconfig_for(&self, namespace: &str, account: &str) -> PathBuf {
        let token = self.kubectl(&["create", "token", account, "-n", namespace, "--duration=2h"]).await;
        self.write_kubeconfig(&format!("{namespace}.{account}"), token.trim())
    }

    /// Returns a client of the administrator, for the runtime of this test.
    pub async fn admin_client(&self) -> kube::Client {
        self.client_for(&self.kubeconfig()).await
    }

    /// Returns a client with the credentials of a kubeconfig file.
    pub async fn client_for(&self, kubeconfig: &Path) -> kube::Client {
        let kubeconfig = Kubeconfig::read_from(kubeconfig).unwrap();
        let mut config =
            kube::Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await.unwrap();
        // A test that kills the API server expects requests to fail.
        config.default_retry = false;
        kube::Client::try_from(config).unwrap()
    }

    /// Creates a namespace that no other test uses.
    pub async fn namespace(&self, prefix: &str) -> String {
        static NEXT_NUMBER: AtomicU32 = AtomicU32::new(1);
        let name = format!("{prefix}-{}", NEXT_NUMBER.fetch_add(1, Ordering::Relaxed));
        self.kubectl(&["create", "namespace", &name]).await;
        name
    }

    /// Returns a kubectl command with the administrator's credentials, not started yet.
    pub fn kubectl_command(&self, args: &[&str]) -> tokio::process::Command {
        let mut command = tokio::process::Command::new(&self.programs.kubectl);
        command
            .env("KUBECONFIG", self.kubeconfig())
            // kubectl keeps its discovery cache there.
            .env("HOME", self.dir.path())
            .args(args)
            .stdin(Stdio::null())
            .kill_on_drop(true);
        command
    }

    /// Runs kubectl and returns its stdout. Fails the test if kubectl fails.
    pub async fn kubectl(&self, args: &[&str]) -> String {
        stdout_of_success(args, &self.kubectl_command(args).output().await.unwrap())
    }

    /// Runs kubectl and returns its stderr. Fails the test if kubectl succeeds.
    pub async fn kubectl_error(&self, args: &[&str]) -> String {
        stderr_of_failure(args, &self.kubectl_command(args).output().await.unwrap())
    }

    /// Waits until an account has a permission in a namespace, or no longer has it. The API server applies a changed
    /// role a moment after it has responded.
    pub async fn wait_for_permission(
        &self,
        account: &str,
        verb: &str,
        resource: &str,
        namespace: &str,
        allowed: bool,
    ) {
        let (resource, group) = resource.split_once('.').unwrap_or((resource, ""));
        let attributes =
            json!({ "namespace": namespace, "verb": verb, "group": group, "resource": resource });
        let review = json!({
            "apiVersion": "authorization.k8s.io/v1",
            "kind": "SubjectAccessReview",
            "spec": { "user": format!("system:serviceaccount:{account}"), "resourceAttributes": attributes },
        });
        let client = self.admin_client().await;
        eventually(
            &format!("{account} is allowed to {verb} {resource} in {namespace}: {allowed}"),
            async || {
                let request = http::Request::post("/apis/authorization.k8s.io/v1/subjectaccessreviews")
                    .header("Content-Type", "application/json")
                    .body(review.to_string().into_bytes())
                    .unwrap();
                let response: Value = client.request(request).await.unwrap();
                (response["status"]["allowed"] == allowed).then_some(())
            },
        )
        .await;
    }

    /// Applies objects, server-side and with strict validation. Fails the test if they are rejected.
    pub async fn apply(&self, namespace: &str, yaml: &str) -> String {
        let args = apply_args(namespace);
        stdout_of_success(&args, &self.kubectl_with_stdin(&args, yaml).await)
    }

    /// Applies objects that must be rejected, and returns kubectl's stderr. Fails the test if they are accepted.
    pub async fn apply_error(&self, namespace: &str, yaml: &str) -> String {
        let args = apply_args(namespace);
        stderr_of_failure(&args, &self.kubectl_with_stdin(&args, yaml).await)
    }

    /// Returns all requests to the API server so far, by any client: `audit.k8s.io/v1` events of level Metadata.
    pub fn audit_events(&self) -> Vec<Value> {
        let text = std::fs::read_to_string(self.dir.path().join("audit.log")).unwrap();
        // The last line may be incomplete.
        text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
    }

    async fn kubectl_with_stdin(&self, args: &[&str], stdin: &str) -> Output {
        let mut command = self.kubectl_command(args);
        let mut child =
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        // If kubectl does not read all of it, its stderr has the reason.
        let _ = child.stdin.take().unwrap().write_all(stdin.as_bytes()).await;
        child.wait_with_output().await.unwrap()
    }

    fn start_api_server(&mut self) {
        let home = self.dir.path();
        let path = |name: &str| home.join(name).display().to_string();
        let mut command = Command::new(&self.programs.api_server);
        command
            .arg(format!("--etcd-servers=unix://{}", path("etcd.sock")))
            .arg(format!("--cert-dir={}", path("certificates")))
            .arg(format!("--secure-port={}", self.port))
            .arg("--bind-address=127.0.0.1")
            .arg("--service-cluster-ip-range=10.0.0.0/24")
            .arg("--service-account-issuer=https://kubernetes.default.svc")
            .arg(format!("--service-account-key-file={}", path("public.pem")))
            .arg(format!("--service-account-signing-key-file={}", path("private.pem")))
            .arg(format!("--token-auth-file={}", path("tokens.csv")))
            .arg("--authorization-mode=RBAC")
            // The plugin would wait for the controller that creates default accounts.
            .arg("--disable-admission-plugins=ServiceAccount")
            .arg(format!("--audit-policy-file={}", path("audit.yaml")))
            .arg(format!("--audit-log-path={}", path("audit.log")));
        self.api_server = Some(GuardedProcess::start(&mut command, &home.join("log"), home));
    }

    /// Waits until the API server is ready. Returns false if it ends instead. The timeout is longer than for other
    /// programs, since this is the largest one that tests start.
    async fn wait_until_ready(&mut self) -> bool {
        let certificate = self.dir.path().join("certificates/apiserver.crt");
        let mut client = None;
        let poll = async {
            loop {
                if !self.api_server.as_mut().is_some_and(GuardedProcess::is_running) {
                    return false;
                }
                if client.is_none() && std::fs::metadata(&certificate).is_ok_and(|file| file.len() > 0) {
                    client = Some(self.admin_client().await);
                }
                let ready = http::Request::get("/readyz").body(Vec::new()).unwrap();
                if let Some(client) = &client
                    && client.request_text(ready).await.is_ok()
                {
                    return true;
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(TEST_TIMEOUT * 5, poll).await.expect("kube-apiserver is ready")
    }

    fn write_kubeconfig(&self, name: &str, token: &str) -> PathBuf {
        let file = self.dir.path().join(format!("{name}.kubeconfig"));
        let certificate = std::fs::read(self.dir.path().join("certificates/apiserver.crt")).unwrap();
        let server = json!({ "server": self.url(), "certificate-authority-data": BASE64_STANDARD.encode(certificate) });
        let text = json!({
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{ "name": "test", "cluster": server }],
            "users": [{ "name": name, "user": { "token": token } }],
            "contexts": [{ "name": "test", "context": { "cluster": "test", "user": name } }],
            "current-context": "test",
        });
        // Renamed into place, since another test may be reading the file.
        let mut staged = tempfile::NamedTempFile::new_in(self.dir.path()).unwrap();
        staged.write_all(text.to_string().as_bytes()).unwrap();
        staged.persist(&file).unwrap();
        file
    }

    /// Returns the last 30 lines of the log of etcd and the API server.
    fn log_tail(&self) -> String {
        let text = std::fs::read_to_string(self.dir.path().join("log")).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(30)..].join("\n")
    }
}

/// Starts etcd on Unix sockets, so that no port can be in use. The advertised URLs must be valid but are never used.
fn start_etcd(programs: &ClusterPrograms, home: &Path) -> GuardedProcess {
    const UNUSED_URL: &str = "http://localhost:1";
    let mut command = Command::new(&programs.etcd);
    command
        .arg("--unsafe-no-fsync")
        .arg(format!("--data-dir={}", home.join("etcd").display()))
        .arg(format!("--listen-client-urls=unix://{}", home.join("etcd.sock").display()))
        .arg(format!("--listen-peer-urls=unix://{}", home.join("peers.sock").display()))
        .arg(format!("--advertise-client-urls={UNUSED_URL}"))
        .arg(format!("--initial-advertise-peer-urls={UNUSED_URL}"))
        .arg(format!("--initial-cluster=default={UNUSED_URL}"));
    GuardedProcess::start(&mut command, &home.join("log"), home)
}

/// Writes the keys, tokens and audit policy of the API server.
fn write_config_files(home: &Path) {
    // The DER encoding of a P-256 public key up to its point.
    const P256_PUBLIC_KEY_PREFIX: &[u8] = b"\x30\x59\x30\x13\x06\x07\x2a\x86\x48\xce\x3d\x02\x01\
        \x06\x08\x2a\x86\x48\xce\x3d\x03\x01\x07\x03\x42\x00";
    let random = SystemRandom::new();
    let key = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, &random).unwrap();
    let pair = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, key.as_ref(), &random).unwrap();
    std::fs::write(home.join("private.pem"), pem("PRIVATE KEY", key.as_ref())).unwrap();
    std::fs::write(
        home.join("public.pem"),
        pem("PUBLIC KEY", &[P256_PUBLIC_KEY_PREFIX, pair.public_key().as_ref()].concat()),
    )
    .unwrap();
    std::fs::write(home.join("tokens.csv"), format!("{ADMIN_TOKEN},admin,admin,\"system:masters\"\n"))
        .unwrap();
    let audit = json!({
        "apiVersion": "audit.k8s.io/v1",
        "kind": "Policy",
        "omitStages": ["RequestReceived", "ResponseStarted"],
        "rules": [{ "level": "None", "users": ["system:apiserver"] }, { "level": "Metadata" }],
    });
    std::fs::write(home.join("audit.yaml"), audit.to_string()).unwrap();
}

fn pem(label: &str, der: &[u8]) -> String {
    format!("-----BEGIN {label}-----\n{}\n-----END {label}-----\n", BASE64_STANDARD.encode(der))
}

fn apply_args(namespace: &str) -> [&str; 7] {
    ["apply", "--server-side", "--validate=strict", "-n", namespace, "-f", "-"]
}

fn stdout_of_success(args: &[&str], output: &Output) -> String {
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "kubectl {args:?}: {}\n{stderr}", output.status);
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn stderr_of_failure(args: &[&str], output: &Output) -> String {
    let stdout = String::from_utf8_lossy(&output.stdout);
    assert!(!output.status.success(), "kubectl {args:?} succeeded:\n{stdout}");
    String::from_utf8_lossy(&output.stderr).into_owned()
}
