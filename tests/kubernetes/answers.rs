//! An API server that answers late, in part, or not at all. Whatever it does is told and tried again, nothing is
//! detached, and calls are answered meanwhile.

use std::time::Duration;

use hyper::Uri;
use serde_json::json;

use crate::proxy::{Fate, Proxy};
use crate::rig::{Era as RigEra, Http, Script};
use crate::site::Site;
use crate::support::{Agent, Era, Evenkeel, eventually, http};

/// The refusal of an API server that no longer knows a version or a place in a list.
fn gone() -> String {
    let status = json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
        "message": "too old resource version", "reason": "Expired", "code": 410,
    });
    status.to_string()
}

fn is_watch(uri: &Uri) -> bool {
    uri.path().ends_with("/mcpservers") && uri.query().is_some_and(|query| query.contains("watch="))
}

/// What a watch is answered.
type Fault = Box<dyn Fn() -> Fate + Send + Sync>;

/// The value of a parameter of a path.
fn parameter<'a>(uri: &'a Uri, name: &str) -> Option<&'a str> {
    uri.query()?.split('&').find_map(|pair| pair.strip_prefix(name)?.strip_prefix('='))
}

async fn rig() -> Http {
    Http::start(Script::new("a", RigEra::Legacy).tools(&["echo"])).await
}

/// Waits until evenkeel tells what is wrong with the API server in these words.
async fn told(evenkeel: &Evenkeel, words: &str) {
    let sources = evenkeel.admin("/apis/evenkeel.dev/v1alpha1/sources");
    eventually(words, async || http::get(&sources).await.ok()?.contains(words).then_some(())).await;
}

/// Waits until nothing is wrong with it.
async fn healed(evenkeel: &Evenkeel) {
    eventually("nothing is wrong any more", async || {
        let metrics = http::get(&evenkeel.admin("/metrics")).await.ok()?;
        metrics.contains("evenkeel_source_faults 0").then_some(())
    })
    .await;
}

/// How often watches of servers began anew, and for which reason.
async fn restarts(evenkeel: &Evenkeel, reason: &str) -> u64 {
    let metrics = http::get(&evenkeel.admin("/metrics")).await.unwrap();
    let name = format!("evenkeel_watch_restarts_total{{kind=\"mcpservers\",reason=\"{reason}\"}} ");
    metrics.lines().find_map(|line| line.strip_prefix(&name)).map_or(0, |count| count.parse().unwrap())
}

#[tokio::test]
#[cfg_attr(without_api_server, ignore = "needs Go, for a Kubernetes API server")]
async fn every_bad_answer_to_a_watch_is_told_and_disturbs_nobody() {
    let site = Site::open().await;
    let (peer, late) = (rig().await, rig().await);
    let proxy = Proxy::start(&site).await;
    let evenkeel = site.run_by(&proxy.kubeconfig, &[]).await;
    site.serve("peer", &peer).await;
    site.attached("peer").await;
    let agent = Agent::open(Era::Legacy, &evenkeel.url()).await;

    let whole = |status, text: &str| {
        let text = text.to_owned();
        move || Fate::Answer(status, Vec::new(), text.clone())
    };
    let event = format!("{{\"type\":\"ERROR\",\"object\":{}}}\n", gone());
    let half = || Fate::Half("{\"type\":\"ADDED\",\"object\":{\"kind\":\"McpSer".into());
    let table: [(&str, &str, Fault); 6] = [
        ("no longer knows what mcpservers", "gone", Box::new(whole(410, &gone()))),
        ("no longer knows what mcpservers", "gone", Box::new(whole(200, &event))),
        ("boom (HTTP 500)", "server_error", Box::new(whole(500, "boom"))),
        ("does not accept evenkeel's credentials", "denied", Box::new(whole(401, "Unauthorized"))),
        ("ended before it was whole", "connection", Box::new(half)),
        ("no answer within 10 s", "silent", Box::new(|| Fate::Nothing)),
    ];
    for (index, (words, reason, fate)) in table.into_iter().enumerate() {
        let before = restarts(&evenkeel, reason).await;
        proxy.rule(move |_, uri| if is_watch(uri) { fate() } else { Fate::Pass });
        told(&evenkeel, words).await;
        agent.text("peer_echo", "{}").await;
        assert!(restarts(&evenkeel, reason).await > before, "{words}");
        assert_eq!(http::get(&evenkeel.admin("/readyz")).await.unwrap(), "ok\n");
        proxy.pass();
        site.serve(&format!("late{index}"), &late).await;
        site.attached(&format!("late{index}")).await;
        healed(&evenkeel).await;
        assert_eq!(agent.tools().await.len(), index + 2, "{words}");
    }
    assert_eq!(peer.counters().initializes(), 1);
    assert_eq!(late.counters().initializes(), 6, "no list that began anew attached anything again");
}

#[tokio::test]
#[cfg_attr(without_api_server, ignore = "needs Go, for a Kubernetes API server")]
async fn an_api_server_that_asks_for_patience_gets_it() {
    let site = Site::open().await;
    let rig = rig().await;
    let proxy = Proxy::start(&site).await;
    let evenkeel = site.run_by(&proxy.kubeconfig, &[]).await;
    site.serve("a", &rig).await;
    site.attached("a").await;
    let busy = || {
        Fate::Answer(429, vec![("retry-after", "3")], "Too many requests, please try again later.\n".into())
    };
    proxy.rule(move |_, uri| if is_watch(uri) { busy() } else { Fate::Pass });
    told(&evenkeel, "please try again later.; it is asked again, after the 3 s that it asks for").await;
    eventually("it is asked again", async || (proxy.stopped().len() >= 3).then_some(())).await;
    let asked = proxy.stopped();
    for pair in asked.windows(2) {
        assert!(pair[1] - pair[0] >= Duration::from_secs(3), "{asked:?}");
    }
    assert!(restarts(&evenkeel, "throttled").await >= 2);

    // A status is written as soon as it may be.
    // Events are counted on by PATCH too, ten seconds after they were created.
    let is_status = |method: &str, uri: &Uri| method == "PATCH" && uri.path().ends_with("/status");
    proxy.rule(move |method, uri| if is_status(method, uri) { busy() } else { Fate::Pass });
    site.kubectl(&["patch", "mcps", "a", "--type=merge", "-p", "{\"spec\":{\"suspend\":true}}"]).await;
    eventually("a write is refused twice", async || (proxy.stopped().len() >= 2).then_some(())).await;
    let asked = proxy.stopped();
    assert!(asked[1] - asked[0] >= Duration::from_secs(3), "{asked:?}");
    proxy.pass();
    site.wait_for("a", "Ready", "False", "Suspended").await;
}

#[tokio::test]
#[cfg_attr(without_api_server, ignore = "needs Go, for a Kubernetes API server")]
async fn watches_that_end_as_they_begin_are_not_asked_for_in_a_circle() {
    let site = Site::open().await;
    let rig = rig().await;
    let proxy = Proxy::start(&site).await;
    let evenkeel = site.run_by(&proxy.kubeconfig, &[]).await;
    site.serve("a", &rig).await;
    site.attached("a").await;
    healed(&evenkeel).await;
    let ends = || Fate::Answer(200, Vec::new(), String::new());
    proxy.rule(move |_, uri| if is_watch(uri) { ends() } else { Fate::Pass });
    told(&evenkeel, "watches end as soon as they have begun").await;
    assert!(!evenkeel.said().contains("cannot be reached"), "{}", evenkeel.said());
    assert!(restarts(&evenkeel, "brief").await > 0);
    eventually("it is asked for again", async || (proxy.stopped().len() >= 4).then_some(())).await;
    let asked = proxy.stopped();
    assert!(asked[3] - asked[0] >= Duration::from_secs(2), "{asked:?}");
    proxy.pass();
    site.serve("b", &rig).await;
    site.attached("b").await;
    assert_eq!(rig.counters().initializes(), 2);
}

#[tokio::test]
#[cfg_attr(without_api_server, ignore = "needs Go, for a Kubernetes API server")]
async fn a_list_in_pages_is_whole_or_it_is_nothing() {
    let site = Site::open().await;
    let rig = rig().await;
    let proxy = Proxy::start(&site).await;
    // An API server that does not know streaming lists, and whose pages hold one object.
    let old = |uri: &Uri| {
        if parameter(uri, "sendInitialEvents").is_some() {
            return Fate::Answer(400, Vec::new(), "unknown parameter".into());
        }
        Fate::PassAs(uri.to_string().replace("limit=500", "limit=1"))
    };
    proxy.rule(move |_, uri| old(uri));
    for name in ["a", "b", "c"] {
        site.serve(name, &rig).await;
    }
    let evenkeel = site.run_by(&proxy.kubeconfig, &[]).await;
    let agent = Agent::open(Era::Modern, &evenkeel.url()).await;
    let all = ["a_echo", "b_echo", "c_echo"];
    eventually("all pages are read", async || (agent.tools().await == all).then_some(())).await;
    assert_eq!(rig.counters().initializes(), 3);

    for (words, fate) in [
        ("no longer knows what mcpservers", (|| Fate::Answer(410, Vec::new(), gone())) as fn() -> Fate),
        ("no answer within 10 s", || Fate::Silence),
    ] {
        proxy.rule(move |_, uri| match uri {
            // So that it is listed anew.
            uri if is_watch(uri) && parameter(uri, "sendInitialEvents").is_none() => {
                Fate::Answer(410, Vec::new(), gone())
            }
            uri if uri.path().ends_with("/mcpservers") && parameter(uri, "continue").is_some() => fate(),
            uri => old(uri),
        });
        told(&evenkeel, words).await;
        // A list has failed in its middle.
        eventually("it is tried again", async || (proxy.stopped().len() >= 4).then_some(())).await;
        assert_eq!(agent.tools().await, all, "{words}");
        agent.text("b_echo", "{}").await;
        proxy.rule(move |_, uri| old(uri));
        healed(&evenkeel).await;
    }
    site.kubectl(&["delete", "mcps", "b"]).await;
    eventually("what is gone goes", async || (agent.tools().await == ["a_echo", "c_echo"]).then_some(()))
        .await;
    assert_eq!(rig.counters().initializes(), 3);
}
