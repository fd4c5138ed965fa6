//! A real Kubernetes API server: etcd, kube-apiserver with RBAC, and kubectl. There is no controller manager: nothing
//! collects garbage, ends a namespace or makes a default `ServiceAccount`.

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

/// A running cluster of one API server. Ends when dropped, or with the test program.
pub struct Cluster {
    programs: ClusterPrograms,
    port: u16,
    // Processes end before their directory goes.
    api_server: Option<GuardedProcess>,
    _etcd: GuardedProcess,
    dir: TempDir,
}

impl Cluster {
    /// Starts one for a test that disturbs it.
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

    /// The one that the tests of a program share, each in a namespace of its own.
    pub async fn shared() -> &'static Self {
        static SHARED: OnceCell<Cluster> = OnceCell::const_new();
        SHARED.get_or_init(Self::start).await
    }

    /// Where the API server listens.
    pub fn url(&self) -> String {
        format!("https://127.0.0.1:{}", self.port)
    }

    /// Kills the API server with SIGKILL; what it stored stays.
    pub fn kill_api_server(&mut self) {
        self.api_server = None;
    }

    /// Starts the API server again where it was, and waits until it is ready.
    pub async fn restart_api_server(&mut self) {
        self.kill_api_server();
        self.start_api_server();
        assert!(self.wait_until_ready().await, "kube-apiserver does not start again:\n{}", self.log_tail());
    }

    /// A kubeconfig file of the administrator.
    pub fn kubeconfig(&self) -> PathBuf {
        self.write_kubeconfig("admin", ADMIN_TOKEN)
    }

    /// A kubeconfig file of a `ServiceAccount`, with a token as a Pod would get it.
    pub async fn kubeconfig_for(&self, namespace: &str, account: &str) -> PathBuf {
        let token = self.kubectl(&["create", "token", account, "-n", namespace, "--duration=2h"]).await;
        self.write_kubeconfig(&format!("{namespace}.{account}"), token.trim())
    }

    /// A client of the administrator, for the runtime of this test.
    pub async fn admin_client(&self) -> kube::Client {
        self.client_for(&self.kubeconfig()).await
    }

    /// A client of whoever a kubeconfig file speaks for.
    pub async fn client_for(&self, kubeconfig: &Path) -> kube::Client {
        let kubeconfig = Kubeconfig::read_from(kubeconfig).unwrap();
        let mut config =
            kube::Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await.unwrap();
        // A test that kills the API server wants to hear of it.
        config.default_retry = false;
        kube::Client::try_from(config).unwrap()
    }

    /// Makes a namespace that no other test uses.
    pub async fn namespace(&self, prefix: &str) -> String {
        static NEXT_NUMBER: AtomicU32 = AtomicU32::new(1);
        let name = format!("{prefix}-{}", NEXT_NUMBER.fetch_add(1, Ordering::Relaxed));
        self.kubectl(&["create", "namespace", &name]).await;
        name
    }

    /// The real kubectl as the administrator, to be changed before it runs.
    pub fn kubectl_command(&self, args: &[&str]) -> tokio::process::Command {
        let mut command = tokio::process::Command::new(&self.programs.kubectl);
        command
            .env("KUBECONFIG", self.kubeconfig())
            // kubectl keeps what it discovered there.
            .env("HOME", self.dir.path())
            .args(args)
            .stdin(Stdio::null())
            .kill_on_drop(true);
        command
    }

    /// What kubectl prints; the test fails if kubectl does.
    pub async fn kubectl(&self, args: &[&str]) -> String {
        stdout_of_success(args, &self.kubectl_command(args).output().await.unwrap())
    }

    /// What kubectl says when it fails; the test fails if it does not.
    pub async fn kubectl_error(&self, args: &[&str]) -> String {
        stderr_of_failure(args, &self.kubectl_command(args).output().await.unwrap())
    }

    /// Waits until an account is permitted something in a namespace, or is not: the API server takes up a changed role
    /// a moment after it has answered.
    pub async fn wait_for_permission(
        &self,
        account: &str,
        verb: &str,
        resource: &str,
        namespace: &str,
        may: bool,
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
        eventually(&format!("{account} may {verb} {resource} in {namespace}: {may}"), async || {
            let request = http::Request::post("/apis/authorization.k8s.io/v1/subjectaccessreviews")
                .header("Content-Type", "application/json")
                .body(review.to_string().into_bytes())
                .unwrap();
            let answer: Value = client.request(request).await.unwrap();
            (answer["status"]["allowed"] == may).then_some(())
        })
        .await;
    }

    /// Applies objects, server-side and strictly checked; the test fails if that is refused.
    pub async fn apply(&self, namespace: &str, yaml: &str) -> String {
        let args = apply_args(namespace);
        stdout_of_success(&args, &self.kubectl_with_stdin(&args, yaml).await)
    }

    /// Why the API server does not take these objects; the test fails if it does.
    pub async fn apply_error(&self, namespace: &str, yaml: &str) -> String {
        let args = apply_args(namespace);
        stderr_of_failure(&args, &self.kubectl_with_stdin(&args, yaml).await)
    }

    /// What was asked of the API server so far, by anybody: `audit.k8s.io/v1` events of metadata, without objects.
    pub fn audit_events(&self) -> Vec<Value> {
        let text = std::fs::read_to_string(self.dir.path().join("audit.log")).unwrap();
        // The last line may be half written.
        text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
    }

    async fn kubectl_with_stdin(&self, args: &[&str], stdin: &str) -> Output {
        let mut command = self.kubectl_command(args);
        let mut child =
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        // If kubectl does not read it all, its own words tell why.
        let _ = child.stdin.take().unwrap().write_all(stdin.as_bytes()).await;
        child.wait_with_output().await.unwrap()
    }

    fn start_api_server(&mut self) {
        let home = self.dir.path();
        let at = |name: &str| home.join(name).display().to_string();
        let mut command = Command::new(&self.programs.api_server);
        command
            .arg(format!("--etcd-servers=unix://{}", at("etcd.sock")))
            .arg(format!("--cert-dir={}", at("certificates")))
            .arg(format!("--secure-port={}", self.port))
            .arg("--bind-address=127.0.0.1")
            .arg("--service-cluster-ip-range=10.0.0.0/24")
            .arg("--service-account-issuer=https://kubernetes.default.svc")
            .arg(format!("--service-account-key-file={}", at("public.pem")))
            .arg(format!("--service-account-signing-key-file={}", at("private.pem")))
            .arg(format!("--token-auth-file={}", at("tokens.csv")))
            .arg("--authorization-mode=RBAC")
            // It would wait for the controller that makes default accounts.
            .arg("--disable-admission-plugins=ServiceAccount")
            .arg(format!("--audit-policy-file={}", at("audit.yaml")))
            .arg(format!("--audit-log-path={}", at("audit.log")));
        self.api_server = Some(GuardedProcess::start(&mut command, &home.join("log"), home));
    }

    /// Waits until the API server is ready; false if it ends instead. It is the largest program of all that are
    /// started here, so that a busy machine has more patience with it than with others.
    async fn wait_until_ready(&mut self) -> bool {
        let certificate = self.dir.path().join("certificates/apiserver.crt");
        let mut client = None;
        let wait = async {
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
        tokio::time::timeout(TEST_TIMEOUT * 5, wait).await.expect("kube-apiserver is ready")
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
        // Renamed into place, since another test may be reading it.
        let mut half = tempfile::NamedTempFile::new_in(self.dir.path()).unwrap();
        half.write_all(text.to_string().as_bytes()).unwrap();
        half.persist(&file).unwrap();
        file
    }

    fn log_tail(&self) -> String {
        let text = std::fs::read_to_string(self.dir.path().join("log")).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(30)..].join("\n")
    }
}

/// All on Unix sockets, so that no port can be taken. What it advertises must look like an address; nobody asks.
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

fn write_config_files(home: &Path) {
    // What stands before the point of a P-256 public key in DER.
    const P256_PUBLIC_KEY_PREFIX: &[u8] = b"\x30\x59\x30\x13\x06\x07\x2a\x86\x48\xce\x3d\x02\x01\x06\x08\x2a\x86\x48\xce\x3d\x03\x01\x07\x03\x42\x00";
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
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "kubectl {args:?}: {}\n{said}", output.status);
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn stderr_of_failure(args: &[&str], output: &Output) -> String {
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(!output.status.success(), "kubectl {args:?} was not refused:\n{said}");
    String::from_utf8_lossy(&output.stderr).into_owned()
}
