//! Several replicas: all serve, one writes, and a session is at home on each.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use hyper::Method;
use tokio::net::{TcpListener, TcpStream};
use tokio::process::Command;

use crate::rig::{FakeHttpServer, FakeStdioServer, Script, ServerEra};
use crate::support::{Agent, Era, Evenkeel, eventually, http};
use crate::test_namespace::{TestNamespace, server_yaml};

async fn start_server() -> FakeHttpServer {
    FakeHttpServer::start(Script::new("a", ServerEra::Legacy).tools(&["echo"])).await
}

/// Waits until one of them holds the lease, which says so in its log; gives its place.
async fn wait_for_leader(replicas: &[&Evenkeel]) -> usize {
    eventually("one holds the lease", async || {
        replicas.iter().position(|replica| replica.stderr().contains("holds the lease"))
    })
    .await
}

#[tokio::test]
#[cfg_attr(without_api_server, ignore = "needs Go, for a Kubernetes API server")]
async fn another_replica_takes_over_status_writes_without_extra_writes() {
    let site = TestNamespace::create_shared().await;
    let rig = start_server().await;
    let mut first = site.run(&[]).await;
    assert_eq!(wait_for_leader(&[&first]).await, 0);
    let second = site.run(&[]).await;
    site.apply_http_server("a", &rig).await;
    site.wait_until_attached("a").await;
    let agent = Agent::connect(Era::Legacy, &second.url()).await;
    eventually("the other serves it too", async || (agent.tool_names().await == ["a_echo"]).then_some(()))
        .await;
    let openings = rig.counters().initializes();
    assert_eq!(openings, 2);
    let written = site.settled_status_writes("a").await;

    first.kill();
    wait_for_leader(&[&second]).await;
    agent.call_text("a_echo", "{}").await;
    // A write that is due after one of the other would be.
    site.apply(&server_yaml("marker", "stdio: { command: sh }")).await;
    site.wait_for("marker", "Accepted", "False", "PolicyDenied").await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(site.status_writes("a"), written, "nothing is different, so nothing is written");
    site.kubectl(&["patch", "mcps", "a", "--type=merge", "-p", "{\"spec\":{\"suspend\":true}}"]).await;
    site.wait_for("a", "Ready", "False", "Suspended").await;

    // One that ends gives the lease back: no need to wait until it runs out.
    let mut second = second;
    let third = site.run(&[]).await;
    let holder =
        async || site.kubectl(&["get", "lease", "evenkeel", "-o=jsonpath={.spec.holderIdentity}"]).await;
    let before = holder().await;
    assert!(!before.is_empty());
    second.terminate().await;
    assert_ne!(holder().await, before);
    wait_for_leader(&[&third]).await;
    assert_eq!(rig.counters().initializes(), openings, "losing and gaining the lease disturbed nothing");
}

#[tokio::test]
#[cfg_attr(without_api_server, ignore = "needs Go, for a Kubernetes API server")]
async fn two_installations_in_one_namespace_are_reported_and_stop_writing() {
    let site = TestNamespace::create_shared().await;
    let rig = FakeStdioServer::new(Script::new("s", ServerEra::Legacy));
    let (program, file) = rig.command();
    let allowed = format!("--allow-stdio={} {}", program.display(), file.display());
    let one = site.run(&[&allowed]).await;
    site.apply(&server_yaml("s", &rig.spec(""))).await;
    site.wait_until_attached("s").await;
    // They disagree about what may run.
    let other = site.run_with_kubeconfig(&site.cluster.kubeconfig(), &["--lease=other"]).await;
    let told = |replica: &Evenkeel| replica.stderr().matches("somebody else writes the status").count();
    eventually("it is told", async || (told(&one) + told(&other) > 0).then_some(())).await;
    let written = site.status_writes("s");
    tokio::time::sleep(Duration::from_secs(6)).await;
    // Without an end of it there would be six in a second.
    assert!(site.status_writes("s") - written <= 10, "{}", site.status_writes("s") - written);
    assert!(told(&one) <= 1 && told(&other) <= 1, "once is enough");
}

#[tokio::test]
#[cfg_attr(without_api_server, ignore = "needs Go, for a Kubernetes API server")]
async fn session_is_accepted_by_every_replica() {
    let site = TestNamespace::create_shared().await;
    let rig = start_server().await;
    site.kubectl(&[
        "create",
        "secret",
        "generic",
        "evenkeel-session-key",
        "--from-literal=key=0123456789abcdef0123456789abcdef",
    ])
    .await;
    let flags = ["--session-key-secret", "evenkeel-session-key"];
    let (one, two) = (site.run(&flags).await, site.run(&flags).await);
    site.apply_http_server("a", &rig).await;
    for replica in [&one, &two] {
        let agent = Agent::connect(Era::Modern, &replica.url()).await;
        eventually("each serves it", async || (agent.tool_names().await == ["a_echo"]).then_some(())).await;
    }
    let proxy = RoundRobinProxy::start([&one, &two].map(Evenkeel::url).to_vec()).await;
    let agent = Agent::connect(Era::Legacy, &proxy.url).await;
    for _ in 0..6 {
        agent.call_text("a_echo", "{}").await;
        assert_eq!(agent.tool_names().await, ["a_echo"]);
    }
    let connections =
        proxy.connection_counts.iter().map(|count| count.load(Ordering::Relaxed)).collect::<Vec<_>>();
    assert!(connections.iter().all(|count| *count >= 3), "{connections:?}");
}

#[tokio::test]
#[cfg_attr(without_api_server, ignore = "needs Go, for a Kubernetes API server")]
async fn replica_is_not_ready_without_the_session_key() {
    let site = TestNamespace::create_shared().await;
    let rig = start_server().await;
    let evenkeel = site.run(&["--session-key-secret", "evenkeel-session-key"]).await;
    site.apply_http_server("a", &rig).await;
    site.wait_until_attached("a").await;
    let readyz = evenkeel.admin("/readyz");
    let why = eventually("it says what it waits for", async || {
        let answer = http::send(Method::GET, &readyz, &[], "").await.ok()?;
        let status = answer.status;
        let text = answer.text().await.ok()?;
        (status == 503 && text.contains("not found")).then_some(text)
    })
    .await;
    // What it says to do helps, also where somebody made one that is no good.
    assert!(
        suggested_command(&why).starts_with("kubectl create secret generic evenkeel-session-key "),
        "{why}"
    );
    site.kubectl(&["create", "secret", "generic", "evenkeel-session-key", "--from-literal=key=short"]).await;
    let why = eventually("it says what is wrong", async || {
        let answer = http::send(Method::GET, &readyz, &[], "").await.ok()?;
        answer.text().await.ok().filter(|text| text.contains("it holds 5 bytes"))
    })
    .await;
    assert!(suggested_command(&why).starts_with("kubectl patch secret evenkeel-session-key "), "{why}");
    assert!(!evenkeel.stderr().contains("agents are served now"));
    let kubectl = site.cluster.kubectl_command(&[]).as_std().get_program().to_owned();
    let script = format!("kubectl() {{ {kubectl:?} \"$@\"; }}; {}", suggested_command(&why));
    let shell = Command::new("sh")
        .args(["-c", &script])
        .env("KUBECONFIG", site.cluster.kubeconfig())
        .output()
        .await
        .unwrap();
    assert!(shell.status.success(), "{script}: {}", String::from_utf8_lossy(&shell.stderr));
    eventually("it is ready", async || http::get(&readyz).await.ok()).await;
    assert!(evenkeel.stderr().contains("agents are served now"), "{}", evenkeel.stderr());
    let agent = Agent::connect(Era::Legacy, &evenkeel.url()).await;
    assert_eq!(agent.tool_names().await, ["a_echo"]);
    // For good.
    site.kubectl(&["delete", "secret", "evenkeel-session-key"]).await;
    assert_eq!(http::get(&readyz).await.unwrap(), "ok\n");
}

/// The command that a message tells to run.
fn suggested_command(why: &str) -> &str {
    let start = why.find("kubectl ").unwrap();
    why[start..].trim()
}

/// Gives each connection to the next of several servers.
struct RoundRobinProxy {
    url: String,
    connection_counts: Arc<Vec<AtomicUsize>>,
    task: tokio::task::JoinHandle<()>,
}

impl RoundRobinProxy {
    async fn start(urls: Vec<String>) -> Self {
        let address = |url: &String| url.trim_start_matches("http://").trim_end_matches("/mcp").to_owned();
        let addresses: Vec<_> = urls.iter().map(address).collect();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/mcp", listener.local_addr().unwrap());
        let counts: Arc<Vec<AtomicUsize>> = Arc::new(addresses.iter().map(|_| AtomicUsize::new(0)).collect());
        let counted = counts.clone();
        let task = tokio::spawn(async move {
            for next in (0..addresses.len()).cycle() {
                let (mut client, _) = listener.accept().await.unwrap();
                let mut server = TcpStream::connect(&addresses[next]).await.unwrap();
                counted[next].fetch_add(1, Ordering::Relaxed);
                tokio::spawn(async move {
                    let _ = tokio::io::copy_bidirectional(&mut client, &mut server).await;
                });
            }
        });
        Self { url, connection_counts: counts, task }
    }
}

impl Drop for RoundRobinProxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}
