//! Connections to the API server that are cut repeatedly, or on which no data arrives any more.

use std::path::PathBuf;
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

use crate::rig::{FakeHttpServer, Script, ServerEra};
use crate::support::{Agent, Era, eventually};
use crate::test_namespace::{TestNamespace, server_yaml};

#[tokio::test]
#[cfg_attr(without_api_server, ignore = "needs Go, for a Kubernetes API server")]
async fn repeatedly_cut_watches_miss_no_change() {
    let ns = TestNamespace::create_shared().await;
    let start_server =
        |name: &'static str| FakeHttpServer::start(Script::new(name, ServerEra::Legacy).tools(&["echo"]));
    let (peer, other) = (start_server("peer").await, start_server("other").await);
    let proxy = TcpProxy::start(&ns, |mut client, mut server| async move {
        let copy = tokio::io::copy_bidirectional(&mut client, &mut server);
        let _ = tokio::time::timeout(Duration::from_secs(1), copy).await;
    })
    .await;
    let evenkeel = ns.run_with_kubeconfig(&proxy.kubeconfig, &[]).await;
    ns.apply_http_server("peer", &peer).await;
    ns.wait_until_attached("peer").await;
    let agent = Agent::connect(Era::Legacy, &evenkeel.url()).await;
    for round in 0..5 {
        ns.apply_http_server(&format!("a{round}"), &other).await;
        if round > 0 {
            ns.kubectl(&["delete", "mcps", &format!("a{}", round - 1)]).await;
        }
        tokio::time::sleep(Duration::from_millis(700)).await;
        agent.call_text("peer_echo", "{}").await;
    }
    eventually("the last state is reached", async || {
        (agent.tool_names().await == ["a4_echo", "peer_echo"]).then_some(())
    })
    .await;
    ns.apply(&server_yaml("denied", "stdio: { command: sh }")).await;
    ns.wait_for("denied", "Stalled", "True", "PolicyDenied").await;
    assert_eq!(peer.counters().initializes(), 1);
}

/// The connection is dead but not closed, as after a lost route or an expired NAT entry.
#[tokio::test]
#[cfg_attr(without_api_server, ignore = "needs Go, for a Kubernetes API server")]
async fn silent_watches_are_detected_and_restarted() {
    let ns = TestNamespace::create_shared().await;
    let rig = FakeHttpServer::start(Script::new("a", ServerEra::Legacy).tools(&["echo"])).await;
    let (frozen, freeze) = watch::channel(false);
    let proxy = TcpProxy::start(&ns, move |mut client, mut server| {
        let mut freeze = freeze.clone();
        async move {
            // Connections that are opened later work.
            let opened_frozen = *freeze.borrow_and_update();
            tokio::select! {
                _ = tokio::io::copy_bidirectional(&mut client, &mut server) => {}
                () = async { drop(freeze.wait_for(|frozen| *frozen && !opened_frozen).await) } => {
                    std::future::pending::<()>().await;
                }
            }
        }
    })
    .await;
    let evenkeel = ns.run_with_kubeconfig(&proxy.kubeconfig, &[]).await;
    let secret = "{ secretKeyRef: { name: ours, key: key } }";
    let waiting_spec = format!(
        "http: {{ url: \"{}\", headers: [{{ name: x-key, valueFrom: {secret} }}] }}\nhealth: {{ interval: 0s }}",
        rig.url()
    );
    ns.apply(&server_yaml("waits", &waiting_spec)).await;
    ns.apply_http_server("before", &rig).await;
    ns.wait_until_attached("before").await;
    ns.wait_for("waits", "ResolvedRefs", "False", "SecretNotFound").await;

    frozen.send_replace(true);
    ns.apply_http_server("after", &rig).await;
    ns.create_secret("ours", "hunter2").await;
    let agent = Agent::connect(Era::Modern, &evenkeel.url()).await;
    // Longer than the usual test timeout: a watch of one Secret lasts up to a minute.
    let all = ["after_echo", "before_echo", "waits_echo"];
    tokio::time::timeout(Duration::from_mins(2), async {
        while agent.tool_names().await != all {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    })
    .await
    .expect("changes during the outage are applied");
    assert_eq!(rig.counters().initializes(), 3, "no server is attached a second time");
}

/// A TCP proxy in front of the API server.
struct TcpProxy {
    kubeconfig: PathBuf,
    _home: tempfile::TempDir,
    task: tokio::task::JoinHandle<()>,
}

impl TcpProxy {
    /// Starts a proxy. `forward` copies bytes between evenkeel and the API server for one connection.
    async fn start<F: Future<Output = ()> + Send + 'static>(
        ns: &TestNamespace<'_>,
        forward: impl Fn(TcpStream, TcpStream) -> F + Send + 'static,
    ) -> Self {
        let server = ns.cluster.url().trim_start_matches("https://").to_owned();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let proxy_address = listener.local_addr().unwrap().to_string();
        let text = std::fs::read_to_string(&ns.kubeconfig).unwrap();
        assert!(text.contains(&server), "{text}");
        let home = tempfile::tempdir().unwrap();
        let kubeconfig = home.path().join("kubeconfig");
        std::fs::write(&kubeconfig, text.replace(&server, &proxy_address)).unwrap();
        let task = tokio::spawn(async move {
            loop {
                let (client, _) = listener.accept().await.unwrap();
                let server = TcpStream::connect(&server).await.unwrap();
                tokio::spawn(forward(client, server));
            }
        });
        Self { kubeconfig, _home: home, task }
    }
}

impl Drop for TcpProxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}
