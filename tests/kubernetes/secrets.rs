//! Secrets to which servers refer.

use serde_json::json;

use crate::rig::{FakeHttpServer, Script, ServerEra};
use crate::support::{Agent, Era, Evenkeel, eventually, http};
use crate::test_namespace::{TestNamespace, server_yaml};

/// Returns the YAML of a server with a header from a Secret.
fn server_with_secret(name: &str, rig: &FakeHttpServer, secret: &str) -> String {
    let from = format!("{{ secretKeyRef: {{ name: {secret}, key: key }} }}");
    let spec = format!(
        "http: {{ url: \"{}\", headers: [{{ name: x-key, valueFrom: {from} }}] }}\nhealth: {{ interval: 0s }}",
        rig.url()
    );
    server_yaml(name, &spec)
}

async fn start_server(name: &str) -> FakeHttpServer {
    FakeHttpServer::start(Script::new(name, ServerEra::Legacy).tools(&["echo"])).await
}

/// Returns how often watches of Secrets were restarted for a reason.
async fn watch_restarts(evenkeel: &Evenkeel, reason: &str) -> u64 {
    let metrics = http::get(&evenkeel.admin("/metrics")).await.unwrap();
    let name = format!("evenkeel_watch_restarts_total{{kind=\"secrets\",reason=\"{reason}\"}} ");
    metrics.lines().find_map(|line| line.strip_prefix(&name)).map_or(0, |count| count.parse().unwrap())
}

#[tokio::test]
#[cfg_attr(without_api_server, ignore = "needs Go, for a Kubernetes API server")]
async fn secret_changes_affect_only_the_servers_that_refer_to_it() {
    let ns = TestNamespace::create_shared().await;
    let (user, other) = (start_server("user").await, start_server("other").await);
    let evenkeel = ns.run(&[]).await;
    ns.create_secret("theirs", "hunter1").await;
    ns.apply(&(server_with_secret("user", &user, "ours") + &server_with_secret("other", &other, "theirs")))
        .await;
    ns.wait_until_attached("other").await;
    let message = ns.wait_for("user", "ResolvedRefs", "False", "SecretNotFound").await;
    assert!(message.contains("\"ours\"") && message.contains(&ns.name), "{message}");
    let missing = ns.get_server("user").await.unwrap();
    assert!(
        crate::test_namespace::condition(&missing, "Stalled").is_none(),
        "the Secret may follow in the same apply"
    );
    assert_eq!(user.counters().connections, 0, "no attempt is made without it");

    ns.create_secret("ours", "hunter2").await;
    ns.wait_until_attached("user").await;
    assert_eq!(user.counters().initializes(), 1);

    ns.kubectl(&["patch", "secret", "ours", "-p", "{\"stringData\":{\"key\":\"hunter3\"}}"]).await;
    eventually("the server is replaced", async || (user.counters().initializes() == 2).then_some(())).await;
    ns.wait_until_attached("user").await;

    ns.kubectl(&["delete", "secret", "ours"]).await;
    ns.wait_for("user", "ResolvedRefs", "False", "SecretNotFound").await;
    let agent = Agent::connect(Era::Modern, &evenkeel.url()).await;
    agent.call_text("user_echo", "{}").await;
    let (ready, reason, _) =
        crate::test_namespace::condition(&ns.get_server("user").await.unwrap(), "Ready").unwrap();
    assert_eq!((ready.as_str(), reason.as_str()), ("True", "Attached"), "a live connection is kept");

    assert_eq!((user.counters().initializes(), other.counters().initializes()), (2, 1));
    let visible = [evenkeel.stderr(), ns.kubectl(&["get", "mcps,events", "-o", "yaml"]).await].concat();
    assert!(!visible.contains("hunter"), "{visible}");
}

#[tokio::test]
#[cfg_attr(without_api_server, ignore = "needs Go, for a Kubernetes API server")]
async fn missing_secret_permission_is_reported_and_other_servers_attach() {
    let ns = TestNamespace::create_shared().await;
    let (user, other) = (start_server("user").await, start_server("other").await);
    let role = ns.kubectl(&["get", "role", "evenkeel", "-o", "json"]).await;
    let role: serde_json::Value = serde_json::from_str(&role).unwrap();
    let rules = role["rules"].as_array().unwrap();
    let without_secrets: Vec<_> = rules
        .iter()
        .filter(|rule| !rule["resources"].as_array().unwrap().contains(&json!("secrets")))
        .collect();
    assert!(without_secrets.len() < rules.len());
    ns.set_role_rules(&without_secrets, false).await;
    ns.create_secret("ours", "hunter2").await;

    let evenkeel = ns.run(&[]).await;
    ns.apply(&server_with_secret("user", &user, "ours")).await;
    ns.apply_http_server("other", &other).await;
    ns.wait_until_attached("other").await;
    let message = ns.wait_for("user", "ResolvedRefs", "False", "NotPermitted").await;
    assert!(message.contains("list and watch secret ours"), "{message}");
    evenkeel.wait_for_log(&["NotPermitted"]).await;
    // The report stays the same, however often the watch is retried.
    let sources = evenkeel.admin("/apis/evenkeel.dev/v1alpha1/sources");
    let denials = async || watch_restarts(&evenkeel, "denied").await;
    // The retry delay grows to 10 s; each retry gets the full test timeout.
    for _ in 0..4 {
        let before = denials().await;
        eventually("the watch is retried", async || (denials().await > before).then_some(())).await;
    }
    let faults = http::get(&sources).await.unwrap();
    assert!(faults.contains("NotPermitted") && !faults.contains("SourceUnavailable"), "{faults}");
    assert!(!evenkeel.stderr().contains("SourceUnavailable"), "{}", evenkeel.stderr());

    ns.set_role_rules(&rules.iter().collect::<Vec<_>>(), true).await;
    ns.wait_until_attached("user").await;
    assert_eq!(other.counters().initializes(), 1);
}
