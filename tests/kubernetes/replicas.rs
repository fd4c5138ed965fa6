//! Several replicas: all serve, one writes status, and each accepts every session.

use std::time::Duration;

use hyper::Method;
use tokio::process::Command;

use crate::replica_set::{RoundRobinProxy, run_replicas, wait_until_served};
use crate::rig::{FakeHttpServer, FakeStdioServer, Script, ServerEra};
use crate::support::{Agent, Era, Evenkeel, eventually, http};
use crate::test_namespace::{TestNamespace, server_yaml};

async fn start_server() -> FakeHttpServer {
    FakeHttpServer::start(Script::new("a", ServerEra::Legacy).tools(&["echo"])).await
}

/// Waits until one of the replicas logs that it holds the lease, and returns its index.
async fn wait_for_leader(replicas: &[&Evenkeel]) -> usize {
    eventually("one replica holds the Lease", async || {
        replicas.iter().position(|replica| replica.stderr().contains("holds the Lease"))
    })
    .await
}

#[tokio::test]
#[cfg_attr(without_api_server, ignore = "needs Go, for a Kubernetes API server")]
async fn another_replica_takes_over_status_writes_without_extra_writes() {
    let ns = TestNamespace::create_shared().await;
    let rig = start_server().await;
    let mut first = ns.run(&[]).await;
    assert_eq!(wait_for_leader(&[&first]).await, 0);
    let second = ns.run(&[]).await;
    ns.apply_http_server("a", &rig).await;
    ns.wait_until_attached("a").await;
    let agent = Agent::connect(Era::Legacy, &second.url()).await;
    eventually("the other replica serves it too", async || {
        (agent.tool_names().await == ["a_echo"]).then_some(())
    })
    .await;
    let openings = rig.counters().initializes();
    assert_eq!(openings, 2);
    let written = ns.settled_status_writes("a").await;

    first.kill();
    wait_for_leader(&[&second]).await;
    agent.call_text("a_echo", "{}").await;
    // A later write of the new leader: its earlier writes are done by then.
    ns.apply(&server_yaml("marker", "stdio: { command: sh }")).await;
    ns.wait_for("marker", "Accepted", "False", "PolicyDenied").await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(ns.status_writes("a"), written, "no status changed, so none is written");
    ns.kubectl(&["patch", "mcps", "a", "--type=merge", "-p", "{\"spec\":{\"suspend\":true}}"]).await;
    ns.wait_for("a", "Ready", "False", "Suspended").await;

    // A replica that ends releases the lease, so that it need not expire.
    let mut second = second;
    let third = ns.run(&[]).await;
    let holder =
        async || ns.kubectl(&["get", "lease", "evenkeel", "-o=jsonpath={.spec.holderIdentity}"]).await;
    let before = holder().await;
    assert!(!before.is_empty());
    second.terminate().await;
    assert_ne!(holder().await, before);
    wait_for_leader(&[&third]).await;
    assert_eq!(rig.counters().initializes(), openings, "a change of the leader keeps all connections");
}

#[tokio::test]
#[cfg_attr(without_api_server, ignore = "needs Go, for a Kubernetes API server")]
async fn two_installations_in_one_namespace_are_reported_and_stop_writing() {
    let ns = TestNamespace::create_shared().await;
    let rig = FakeStdioServer::new(Script::new("s", ServerEra::Legacy));
    let (program, file) = rig.command();
    let allowed = format!("--allow-stdio={} {}", program.display(), file.display());
    let one = ns.run(&[&allowed]).await;
    ns.apply(&server_yaml("s", &rig.spec(""))).await;
    ns.wait_until_attached("s").await;
    // The installations allow different commands.
    let other = ns.run_with_kubeconfig(&ns.cluster.kubeconfig(), &["--lease=other"]).await;
    let reports = |replica: &Evenkeel| replica.stderr().matches("keeps overwriting this status").count();
    eventually("the conflict is reported", async || (reports(&one) + reports(&other) > 0).then_some(()))
        .await;
    let written = ns.status_writes("s");
    tokio::time::sleep(Duration::from_secs(6)).await;
    // Without a limit there would be six writes per second.
    assert!(ns.status_writes("s") - written <= 10, "{}", ns.status_writes("s") - written);
    assert!(reports(&one) <= 1 && reports(&other) <= 1, "each replica reports it at most once");
}

#[tokio::test]
#[cfg_attr(without_api_server, ignore = "needs Go, for a Kubernetes API server")]
async fn session_is_accepted_by_every_replica() {
    let ns = TestNamespace::create_shared().await;
    let rig = start_server().await;
    let replicas = run_replicas(&ns, &[]).await;
    ns.apply_http_server("a", &rig).await;
    wait_until_served(&replicas, &["a_echo"]).await;
    let proxy = RoundRobinProxy::start(&replicas).await;
    let agent = Agent::connect(Era::Legacy, &proxy.url).await;
    for _ in 0..6 {
        agent.call_text("a_echo", "{}").await;
        assert_eq!(agent.tool_names().await, ["a_echo"]);
    }
    let connections = proxy.connection_counts();
    assert!(connections.iter().all(|count| *count >= 3), "{connections:?}");
}

#[tokio::test]
#[cfg_attr(without_api_server, ignore = "needs Go, for a Kubernetes API server")]
async fn replica_is_not_ready_without_the_session_key() {
    let ns = TestNamespace::create_shared().await;
    let rig = start_server().await;
    let evenkeel = ns.run(&["--session-key-secret", "evenkeel-session-key"]).await;
    ns.apply_http_server("a", &rig).await;
    ns.wait_until_attached("a").await;
    let readyz = evenkeel.admin("/readyz");
    let message = eventually("readyz reports the missing Secret", async || {
        let answer = http::send(Method::GET, &readyz, &[], "").await.ok()?;
        let status = answer.status;
        let text = answer.text().await.ok()?;
        (status == 503 && text.contains("not found")).then_some(text)
    })
    .await;
    // The suggested command works, also when the existing Secret is invalid.
    assert!(
        suggested_command(&message).starts_with("kubectl create secret generic evenkeel-session-key "),
        "{message}"
    );
    ns.kubectl(&["create", "secret", "generic", "evenkeel-session-key", "--from-literal=key=short"]).await;
    let message = eventually("readyz reports the invalid key", async || {
        let answer = http::send(Method::GET, &readyz, &[], "").await.ok()?;
        answer.text().await.ok().filter(|text| text.contains("it holds 5 bytes"))
    })
    .await;
    assert!(
        suggested_command(&message).starts_with("kubectl patch secret evenkeel-session-key "),
        "{message}"
    );
    assert!(!evenkeel.stderr().contains("agents are served now"));
    let kubectl = ns.cluster.kubectl_command(&[]).as_std().get_program().to_owned();
    let script = format!("kubectl() {{ {kubectl:?} \"$@\"; }}; {}", suggested_command(&message));
    let shell = Command::new("sh")
        .args(["-c", &script])
        .env("KUBECONFIG", ns.cluster.kubeconfig())
        .output()
        .await
        .unwrap();
    assert!(shell.status.success(), "{script}: {}", String::from_utf8_lossy(&shell.stderr));
    eventually("the replica is ready", async || http::get(&readyz).await.ok()).await;
    evenkeel.wait_for_log(&["agents are served now"]).await;
    let agent = Agent::connect(Era::Legacy, &evenkeel.url()).await;
    assert_eq!(agent.tool_names().await, ["a_echo"]);
    // It stays ready without the Secret.
    ns.kubectl(&["delete", "secret", "evenkeel-session-key"]).await;
    assert_eq!(http::get(&readyz).await.unwrap(), "ok\n");
}

/// Returns the command that a message suggests.
fn suggested_command(message: &str) -> &str {
    let start = message.find("kubectl ").unwrap();
    message[start..].trim()
}
