//! An API server that answers late, in part, or not at all. Whatever it does is told and tried again, nothing is
//! detached, and calls are answered meanwhile.

use std::time::Duration;

use hyper::Uri;
use serde_json::json;

use crate::proxy::{ApiProxy, ProxyAction};
use crate::rig::{FakeHttpServer, Script, ServerEra};
use crate::support::{Agent, Era, Evenkeel, eventually, http};
use crate::test_namespace::TestNamespace;

/// The refusal of an API server that no longer knows a version or a place in a list.
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

/// What a watch is answered.
type ActionFn = Box<dyn Fn() -> ProxyAction + Send + Sync>;

/// The value of a parameter of a path.
fn query_parameter<'a>(uri: &'a Uri, name: &str) -> Option<&'a str> {
    uri.query()?.split('&').find_map(|pair| pair.strip_prefix(name)?.strip_prefix('='))
}

async fn start_server() -> FakeHttpServer {
    FakeHttpServer::start(Script::new("a", ServerEra::Legacy).tools(&["echo"])).await
}

/// Waits until evenkeel tells what is wrong with the API server in these words.
async fn wait_for_source_message(evenkeel: &Evenkeel, words: &str) {
    let sources = evenkeel.admin("/apis/evenkeel.dev/v1alpha1/sources");
    eventually(words, async || http::get(&sources).await.ok()?.contains(words).then_some(())).await;
}

/// Waits until nothing is wrong with it.
async fn wait_until_healthy(evenkeel: &Evenkeel) {
    eventually("nothing is wrong any more", async || {
        let metrics = http::get(&evenkeel.admin("/metrics")).await.ok()?;
        metrics.contains("evenkeel_source_faults 0").then_some(())
    })
    .await;
}

/// How often watches of servers began anew, and for which reason.
async fn watch_restarts(evenkeel: &Evenkeel, reason: &str) -> u64 {
    let metrics = http::get(&evenkeel.admin("/metrics")).await.unwrap();
    let name = format!("evenkeel_watch_restarts_total{{kind=\"mcpservers\",reason=\"{reason}\"}} ");
    metrics.lines().find_map(|line| line.strip_prefix(&name)).map_or(0, |count| count.parse().unwrap())
}

#[tokio::test]
#[cfg_attr(without_api_server, ignore = "needs Go, for a Kubernetes API server")]
async fn failed_watches_are_reported_and_connections_are_kept() {
    let site = TestNamespace::create_shared().await;
    let (peer, late) = (start_server().await, start_server().await);
    let proxy = ApiProxy::start(&site).await;
    let evenkeel = site.run_with_kubeconfig(&proxy.kubeconfig, &[]).await;
    site.apply_http_server("peer", &peer).await;
    site.wait_until_attached("peer").await;
    let agent = Agent::connect(Era::Legacy, &evenkeel.url()).await;

    let whole = |status, text: &str| {
        let text = text.to_owned();
        move || ProxyAction::Respond(status, Vec::new(), text.clone())
    };
    let event = format!("{{\"type\":\"ERROR\",\"object\":{}}}\n", expired_status());
    let half = || ProxyAction::BreakMidBody("{\"type\":\"ADDED\",\"object\":{\"kind\":\"McpSer".into());
    let table: [(&str, &str, ActionFn); 6] = [
        ("the watch of mcpservers", "gone", Box::new(whole(410, &expired_status()))),
        ("the watch of mcpservers", "gone", Box::new(whole(200, &event))),
        ("boom (HTTP 500)", "server_error", Box::new(whole(500, "boom"))),
        ("rejects evenkeel's credentials", "denied", Box::new(whole(401, "Unauthorized"))),
        ("ended before it was complete", "connection", Box::new(half)),
        ("within 10 s", "silent", Box::new(|| ProxyAction::NeverRespond)),
    ];
    for (index, (words, reason, fate)) in table.into_iter().enumerate() {
        let before = watch_restarts(&evenkeel, reason).await;
        proxy.set_rule(move |_, uri| if is_server_watch(uri) { fate() } else { ProxyAction::Pass });
        wait_for_source_message(&evenkeel, words).await;
        agent.call_text("peer_echo", "{}").await;
        assert!(watch_restarts(&evenkeel, reason).await > before, "{words}");
        assert_eq!(http::get(&evenkeel.admin("/readyz")).await.unwrap(), "ok\n");
        proxy.pass_all();
        site.apply_http_server(&format!("late{index}"), &late).await;
        site.wait_until_attached(&format!("late{index}")).await;
        wait_until_healthy(&evenkeel).await;
        assert_eq!(agent.tool_names().await.len(), index + 2, "{words}");
    }
    assert_eq!(peer.counters().initializes(), 1);
    assert_eq!(late.counters().initializes(), 6, "no list that began anew attached anything again");
}

#[tokio::test]
#[cfg_attr(without_api_server, ignore = "needs Go, for a Kubernetes API server")]
async fn retry_after_of_the_api_server_is_honored() {
    let site = TestNamespace::create_shared().await;
    let rig = start_server().await;
    let proxy = ApiProxy::start(&site).await;
    let evenkeel = site.run_with_kubeconfig(&proxy.kubeconfig, &[]).await;
    site.apply_http_server("a", &rig).await;
    site.wait_until_attached("a").await;
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
        "please try again later.; it is asked again, after the 3 s that it asks for",
    )
    .await;
    eventually("it is asked again", async || (proxy.intercepted().len() >= 3).then_some(())).await;
    let asked = proxy.intercepted();
    for pair in asked.windows(2) {
        assert!(pair[1] - pair[0] >= Duration::from_secs(3), "{asked:?}");
    }
    assert!(watch_restarts(&evenkeel, "throttled").await >= 2);

    // A status is written as soon as it may be.
    // Events are counted on by PATCH too, ten seconds after they were created.
    let is_status = |method: &str, uri: &Uri| method == "PATCH" && uri.path().ends_with("/status");
    proxy.set_rule(move |method, uri| if is_status(method, uri) { busy() } else { ProxyAction::Pass });
    site.kubectl(&["patch", "mcps", "a", "--type=merge", "-p", "{\"spec\":{\"suspend\":true}}"]).await;
    eventually("a write is refused twice", async || (proxy.intercepted().len() >= 2).then_some(())).await;
    let asked = proxy.intercepted();
    assert!(asked[1] - asked[0] >= Duration::from_secs(3), "{asked:?}");
    proxy.pass_all();
    site.wait_for("a", "Ready", "False", "Suspended").await;
}

#[tokio::test]
#[cfg_attr(without_api_server, ignore = "needs Go, for a Kubernetes API server")]
async fn watches_that_end_at_once_are_retried_with_backoff() {
    let site = TestNamespace::create_shared().await;
    let rig = start_server().await;
    let proxy = ApiProxy::start(&site).await;
    let evenkeel = site.run_with_kubeconfig(&proxy.kubeconfig, &[]).await;
    site.apply_http_server("a", &rig).await;
    site.wait_until_attached("a").await;
    wait_until_healthy(&evenkeel).await;
    let ends = || ProxyAction::Respond(200, Vec::new(), String::new());
    proxy.set_rule(move |_, uri| if is_server_watch(uri) { ends() } else { ProxyAction::Pass });
    wait_for_source_message(&evenkeel, "ends watches right after their start").await;
    assert!(!evenkeel.stderr().contains("cannot be reached"), "{}", evenkeel.stderr());
    assert!(watch_restarts(&evenkeel, "brief").await > 0);
    eventually("it is asked for again", async || (proxy.intercepted().len() >= 4).then_some(())).await;
    let asked = proxy.intercepted();
    assert!(asked[3] - asked[0] >= Duration::from_secs(2), "{asked:?}");
    proxy.pass_all();
    site.apply_http_server("b", &rig).await;
    site.wait_until_attached("b").await;
    assert_eq!(rig.counters().initializes(), 2);
}

#[tokio::test]
#[cfg_attr(without_api_server, ignore = "needs Go, for a Kubernetes API server")]
async fn incomplete_paged_list_is_discarded() {
    let site = TestNamespace::create_shared().await;
    let rig = start_server().await;
    let proxy = ApiProxy::start(&site).await;
    // An API server that does not know streaming lists, and whose pages hold one object.
    let old = |uri: &Uri| {
        if query_parameter(uri, "sendInitialEvents").is_some() {
            return ProxyAction::Respond(400, Vec::new(), "unknown parameter".into());
        }
        ProxyAction::PassWithUri(uri.to_string().replace("limit=500", "limit=1"))
    };
    proxy.set_rule(move |_, uri| old(uri));
    for name in ["a", "b", "c"] {
        site.apply_http_server(name, &rig).await;
    }
    let evenkeel = site.run_with_kubeconfig(&proxy.kubeconfig, &[]).await;
    let agent = Agent::connect(Era::Modern, &evenkeel.url()).await;
    let all = ["a_echo", "b_echo", "c_echo"];
    eventually("all pages are read", async || (agent.tool_names().await == all).then_some(())).await;
    assert_eq!(rig.counters().initializes(), 3);

    for (words, fate) in [
        (
            "the watch of mcpservers",
            (|| ProxyAction::Respond(410, Vec::new(), expired_status())) as fn() -> ProxyAction,
        ),
        ("within 10 s", || ProxyAction::StallAfterHeaders),
    ] {
        proxy.set_rule(move |_, uri| match uri {
            // So that it is listed anew.
            uri if is_server_watch(uri) && query_parameter(uri, "sendInitialEvents").is_none() => {
                ProxyAction::Respond(410, Vec::new(), expired_status())
            }
            uri if uri.path().ends_with("/mcpservers") && query_parameter(uri, "continue").is_some() => {
                fate()
            }
            uri => old(uri),
        });
        wait_for_source_message(&evenkeel, words).await;
        // A list has failed in its middle.
        eventually("it is tried again", async || (proxy.intercepted().len() >= 4).then_some(())).await;
        assert_eq!(agent.tool_names().await, all, "{words}");
        agent.call_text("b_echo", "{}").await;
        proxy.set_rule(move |_, uri| old(uri));
        wait_until_healthy(&evenkeel).await;
    }
    site.kubectl(&["delete", "mcps", "b"]).await;
    eventually("what is gone goes", async || {
        (agent.tool_names().await == ["a_echo", "c_echo"]).then_some(())
    })
    .await;
    assert_eq!(rig.counters().initializes(), 3);
}
