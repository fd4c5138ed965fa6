//! An API server that responds late, incompletely or not at all. Each failure is reported and retried, no server is
//! detached, and calls succeed in the meantime.

use std::time::Duration;

use hyper::Uri;
use serde_json::json;

use crate::proxy::{ApiProxy, ProxyAction};
use crate::rig::{FakeHttpServer, Script, ServerEra};
use crate::support::{Agent, Era, Evenkeel, eventually, http};
use crate::test_namespace::TestNamespace;

/// Returns the error of an API server for an expired resourceVersion or continue token.
fn expired_status() -> String {
    let status = json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
        "message": "too old resource version", "reason": "Expired", "code": 410,
    });
    status.to_string()
}

fn is_server_watch(uri: &Uri) -> bool {
    uri.path().ends_with("/mcpservers") && uri.query().is_some_and(|query| query.contains("watch="))
}

/// Returns the response to a watch request.
type ActionFn = Box<dyn Fn() -> ProxyAction + Send + Sync>;

/// Returns the value of a query parameter.
fn query_parameter<'a>(uri: &'a Uri, name: &str) -> Option<&'a str> {
    uri.query()?.split('&').find_map(|pair| pair.strip_prefix(name)?.strip_prefix('='))
}

async fn start_server() -> FakeHttpServer {
    FakeHttpServer::start(Script::new("a", ServerEra::Legacy).tools(&["echo"])).await
}

/// Waits until the source status of evenkeel contains this text.
async fn wait_for_source_message(evenkeel: &Evenkeel, text: &str) {
    let sources = evenkeel.admin("/apis/evenkeel.dev/v1alpha1/sources");
    eventually(text, async || http::get(&sources).await.ok()?.contains(text).then_some(())).await;
}

/// Waits until no source has a fault.
async fn wait_until_healthy(evenkeel: &Evenkeel) {
    eventually("no source has a fault", async || {
        let metrics = http::get(&evenkeel.admin("/metrics")).await.ok()?;
        metrics.contains("evenkeel_source_faults 0").then_some(())
    })
    .await;
}

/// Returns how often watches of servers were restarted for a reason.
async fn watch_restarts(evenkeel: &Evenkeel, reason: &str) -> u64 {
    let metrics = http::get(&evenkeel.admin("/metrics")).await.unwrap();
    let name = format!("evenkeel_watch_restarts_total{{kind=\"mcpservers\",reason=\"{reason}\"}} ");
    metrics.lines().find_map(|line| line.strip_prefix(&name)).map_or(0, |count| count.parse().unwrap())
}

#[tokio::test]
#[cfg_attr(without_api_server, ignore = "needs Go, for a Kubernetes API server")]
async fn failed_watches_are_reported_and_connections_are_kept() {
    let ns = TestNamespace::create_shared().await;
    let (peer, later) = (start_server().await, start_server().await);
    let proxy = ApiProxy::start(&ns).await;
    let evenkeel = ns.run_with_kubeconfig(&proxy.kubeconfig, &[]).await;
    ns.apply_http_server("peer", &peer).await;
    ns.wait_until_attached("peer").await;
    let agent = Agent::connect(Era::Legacy, &evenkeel.url()).await;

    let respond = |status, text: &str| {
        let text = text.to_owned();
        move || ProxyAction::Respond(status, Vec::new(), text.clone())
    };
    let event = format!("{{\"type\":\"ERROR\",\"object\":{}}}\n", expired_status());
    let break_mid_body =
        || ProxyAction::BreakMidBody("{\"type\":\"ADDED\",\"object\":{\"kind\":\"McpSer".into());
    let cases: [(&str, &str, ActionFn); 6] = [
        ("the watch of mcpservers", "gone", Box::new(respond(410, &expired_status()))),
        ("the watch of mcpservers", "gone", Box::new(respond(200, &event))),
        ("boom (HTTP 500)", "server_error", Box::new(respond(500, "boom"))),
        ("rejects evenkeel's credentials", "denied", Box::new(respond(401, "Unauthorized"))),
        ("ended before it was complete", "connection", Box::new(break_mid_body)),
        ("within 10 s", "silent", Box::new(|| ProxyAction::NeverRespond)),
    ];
    for (index, (message, reason, action)) in cases.into_iter().enumerate() {
        let before = watch_restarts(&evenkeel, reason).await;
        proxy.set_rule(move |_, uri| if is_server_watch(uri) { action() } else { ProxyAction::Pass });
        wait_for_source_message(&evenkeel, message).await;
        agent.call_text("peer_echo", "{}").await;
        assert!(watch_restarts(&evenkeel, reason).await > before, "{message}");
        assert_eq!(http::get(&evenkeel.admin("/readyz")).await.unwrap(), "ok\n");
        proxy.pass_all();
        ns.apply_http_server(&format!("late{index}"), &later).await;
        ns.wait_until_attached(&format!("late{index}")).await;
        wait_until_healthy(&evenkeel).await;
        assert_eq!(agent.tool_names().await.len(), index + 2, "{message}");
    }
    assert_eq!(peer.counters().initializes(), 1);
    assert_eq!(
        later.counters().initializes(),
        6,
        "a list that starts again attaches no server a second time"
    );
}

#[tokio::test]
#[cfg_attr(without_api_server, ignore = "needs Go, for a Kubernetes API server")]
async fn retry_after_of_the_api_server_is_honored() {
    let ns = TestNamespace::create_shared().await;
    let rig = start_server().await;
    let proxy = ApiProxy::start(&ns).await;
    let evenkeel = ns.run_with_kubeconfig(&proxy.kubeconfig, &[]).await;
    ns.apply_http_server("a", &rig).await;
    ns.wait_until_attached("a").await;
    let busy = || {
        ProxyAction::Respond(
            429,
            vec![("retry-after", "3")],
            "Too many requests, please try again later.\n".into(),
        )
    };
    proxy.set_rule(move |_, uri| if is_server_watch(uri) { busy() } else { ProxyAction::Pass });
    wait_for_source_message(
        &evenkeel,
        "please try again later.; the request is retried after the requested 3 s",
    )
    .await;
    eventually("the watch is retried", async || (proxy.intercepted().len() >= 3).then_some(())).await;
    let attempts = proxy.intercepted();
    for pair in attempts.windows(2) {
        assert!(pair[1] - pair[0] >= Duration::from_secs(3), "{attempts:?}");
    }
    assert!(watch_restarts(&evenkeel, "throttled").await >= 2);

    // A status is written as soon as Retry-After permits. The rule excludes the PATCH of an Event series, ten seconds
    // after the Event was created.
    let is_status = |method: &str, uri: &Uri| method == "PATCH" && uri.path().ends_with("/status");
    proxy.set_rule(move |method, uri| if is_status(method, uri) { busy() } else { ProxyAction::Pass });
    ns.kubectl(&["patch", "mcps", "a", "--type=merge", "-p", "{\"spec\":{\"suspend\":true}}"]).await;
    eventually("two writes are rejected", async || (proxy.intercepted().len() >= 2).then_some(())).await;
    let attempts = proxy.intercepted();
    assert!(attempts[1] - attempts[0] >= Duration::from_secs(3), "{attempts:?}");
    proxy.pass_all();
    ns.wait_for("a", "Ready", "False", "Suspended").await;
}

#[tokio::test]
#[cfg_attr(without_api_server, ignore = "needs Go, for a Kubernetes API server")]
async fn watches_that_end_at_once_are_retried_with_backoff() {
    let ns = TestNamespace::create_shared().await;
    let rig = start_server().await;
    let proxy = ApiProxy::start(&ns).await;
    let evenkeel = ns.run_with_kubeconfig(&proxy.kubeconfig, &[]).await;
    ns.apply_http_server("a", &rig).await;
    ns.wait_until_attached("a").await;
    wait_until_healthy(&evenkeel).await;
    let empty_response = || ProxyAction::Respond(200, Vec::new(), String::new());
    proxy.set_rule(move |_, uri| if is_server_watch(uri) { empty_response() } else { ProxyAction::Pass });
    wait_for_source_message(&evenkeel, "ends watches right after their start").await;
    assert!(!evenkeel.stderr().contains("cannot be reached"), "{}", evenkeel.stderr());
    assert!(watch_restarts(&evenkeel, "brief").await > 0);
    eventually("the watch is retried", async || (proxy.intercepted().len() >= 4).then_some(())).await;
    let attempts = proxy.intercepted();
    assert!(attempts[3] - attempts[0] >= Duration::from_secs(2), "{attempts:?}");
    proxy.pass_all();
    ns.apply_http_server("b", &rig).await;
    ns.wait_until_attached("b").await;
    assert_eq!(rig.counters().initializes(), 2);
}

#[tokio::test]
#[cfg_attr(without_api_server, ignore = "needs Go, for a Kubernetes API server")]
async fn incomplete_paged_list_is_discarded() {
    let ns = TestNamespace::create_shared().await;
    let rig = start_server().await;
    let proxy = ApiProxy::start(&ns).await;
    // An API server without streaming lists, with one object per page.
    let without_streaming_lists = |uri: &Uri| {
        if query_parameter(uri, "sendInitialEvents").is_some() {
            return ProxyAction::Respond(400, Vec::new(), "unknown parameter".into());
        }
        ProxyAction::PassWithUri(uri.to_string().replace("limit=500", "limit=1"))
    };
    proxy.set_rule(move |_, uri| without_streaming_lists(uri));
    for name in ["a", "b", "c"] {
        ns.apply_http_server(name, &rig).await;
    }
    let evenkeel = ns.run_with_kubeconfig(&proxy.kubeconfig, &[]).await;
    let agent = Agent::connect(Era::Modern, &evenkeel.url()).await;
    let all = ["a_echo", "b_echo", "c_echo"];
    eventually("all pages are read", async || (agent.tool_names().await == all).then_some(())).await;
    assert_eq!(rig.counters().initializes(), 3);

    for (message, action) in [
        (
            "the watch of mcpservers",
            (|| ProxyAction::Respond(410, Vec::new(), expired_status())) as fn() -> ProxyAction,
        ),
        ("within 10 s", || ProxyAction::StallAfterHeaders),
    ] {
        proxy.set_rule(move |_, uri| match uri {
            // Forces a new list.
            uri if is_server_watch(uri) && query_parameter(uri, "sendInitialEvents").is_none() => {
                ProxyAction::Respond(410, Vec::new(), expired_status())
            }
            uri if uri.path().ends_with("/mcpservers") && query_parameter(uri, "continue").is_some() => {
                action()
            }
            uri => without_streaming_lists(uri),
        });
        wait_for_source_message(&evenkeel, message).await;
        // The list fails after its first page.
        eventually("the list is retried", async || (proxy.intercepted().len() >= 4).then_some(())).await;
        assert_eq!(agent.tool_names().await, all, "{message}");
        agent.call_text("b_echo", "{}").await;
        proxy.set_rule(move |_, uri| without_streaming_lists(uri));
        wait_until_healthy(&evenkeel).await;
    }
    ns.kubectl(&["delete", "mcps", "b"]).await;
    eventually("the deleted server is withdrawn", async || {
        (agent.tool_names().await == ["a_echo", "c_echo"]).then_some(())
    })
    .await;
    assert_eq!(rig.counters().initializes(), 3);
}
