//! The number of status and Event writes, and a large fleet.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::proxy::{ApiProxy, ProxyAction};
use crate::rig::{FakeHttpServer, Script, ServerEra};
use crate::support::eventually;
use crate::test_namespace::{TestNamespace, condition, server_yaml};

#[tokio::test]
#[cfg_attr(without_api_server, ignore = "needs Go, for a Kubernetes API server")]
async fn status_and_event_writes_are_rate_limited() {
    let ns = TestNamespace::create_shared().await;
    let rig = FakeHttpServer::start(Script::new("a", ServerEra::Legacy).tools(&["echo"])).await;
    let mut evenkeel = ns.run(&[]).await;
    ns.apply_http_server("a", &rig).await;
    ns.apply(&server_yaml("p", "stdio: { command: sh }")).await;
    ns.wait_until_attached("a").await;
    ns.wait_for("p", "Accepted", "False", "PolicyDenied").await;
    let before = ns.settled_status_writes("").await;
    assert!((1..=3).contains(&ns.status_writes("a")), "{}", ns.status_writes("a"));
    assert_eq!(ns.status_writes("p"), 1);
    let version = ns.get_server("a").await.unwrap()["metadata"]["resourceVersion"].clone();

    evenkeel.terminate().await;
    evenkeel.restart().await;
    eventually("the server is attached again", async || (rig.counters().initializes() == 2).then_some(()))
        .await;
    // A later write: all earlier ones are done by then.
    ns.apply(&server_yaml("marker", "stdio: { command: sh }")).await;
    ns.wait_for("marker", "Accepted", "False", "PolicyDenied").await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(ns.status_writes("a") + ns.status_writes("p"), before, "no status changed");
    assert_eq!(ns.get_server("a").await.unwrap()["metadata"]["resourceVersion"], version);

    let before_changes = ns.settled_status_writes("a").await;
    let (events, start) = (ns.event_writes(), Instant::now());
    for round in 0..100 {
        let tools: Vec<String> = (0..=round).map(|tool| format!("t{tool}")).collect();
        let tools: Vec<&str> = tools.iter().map(String::as_str).collect();
        rig.edit_script(|script| *script = script.clone().tools(&tools));
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    eventually("the last change is in the status", async || {
        (ns.get_server("a").await?["status"]["tools"] == 100).then_some(())
    })
    .await;
    // At most one status write per second, and one Event write per ten seconds. The time is that of a hundred changes
    // and of waiting for the last one, which is longer on a slow machine.
    let elapsed_secs = usize::try_from(start.elapsed().as_secs()).unwrap();
    let written = ns.status_writes("a") - before_changes;
    assert!(written <= elapsed_secs.max(18) + 2, "{written} in {elapsed_secs} s");
    let event_writes = ns.event_writes() - events;
    assert!(
        (1..=(elapsed_secs / 10).max(4) + 2).contains(&event_writes),
        "{event_writes} in {elapsed_secs} s"
    );
    let event_notes = ns.events("a").await;
    let changes = event_notes.iter().filter(|event| *event == "Attached the offered items changed").count();
    assert_eq!(changes, 1, "{event_notes:?}");
}

#[tokio::test]
#[cfg_attr(without_api_server, ignore = "needs Go, for a Kubernetes API server")]
async fn deleted_events_are_recreated_and_a_denied_event_is_logged_once() {
    let ns = TestNamespace::create_shared().await;
    let rig = FakeHttpServer::start(Script::new("a", ServerEra::Legacy).tools(&["echo"])).await;
    let evenkeel = ns.run(&[]).await;
    ns.apply_http_server("a", &rig).await;
    let set_tools = |tools: &'static [&str]| rig.edit_script(|script| *script = script.clone().tools(tools));
    let wait_for_change_event = async || {
        eventually("the change is in an event", async || {
            let events = ns.events("a").await;
            events.contains(&"Attached the offered items changed".to_owned()).then_some(())
        })
        .await;
    };
    ns.wait_until_attached("a").await;
    set_tools(&["one", "two"]);
    wait_for_change_event().await;
    ns.kubectl(&["delete", "events", "--all"]).await;
    set_tools(&["one", "two", "three"]);
    wait_for_change_event().await;

    let role = ns.kubectl(&["get", "role", "evenkeel", "-o", "json"]).await;
    let role: Value = serde_json::from_str(&role).unwrap();
    let rules = role["rules"].as_array().unwrap().iter();
    let without_events: Vec<_> = rules.filter(|rule| rule["resources"][0] != "events").collect();
    let patch = json!({ "rules": without_events }).to_string();
    ns.kubectl(&["patch", "role", "evenkeel", "--type=merge", "-p", &patch]).await;
    let denials = || evenkeel.stderr().matches("rejected an event").count();
    eventually("a denied event is logged", async || {
        ns.apply(&server_yaml("p", "stdio: { command: sh }")).await;
        ns.kubectl(&["delete", "mcps", "p"]).await;
        (denials() > 0).then_some(())
    })
    .await;
    for name in ["q", "r"] {
        ns.apply(&server_yaml(name, "stdio: { command: sh }")).await;
        ns.wait_for(name, "Accepted", "False", "PolicyDenied").await;
    }
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(denials(), 1, "{}", evenkeel.stderr());
}

#[tokio::test]
#[cfg_attr(without_api_server, ignore = "needs Go, for a Kubernetes API server")]
async fn repeated_declaration_changes_are_one_event_series() {
    let ns = TestNamespace::create_shared().await;
    let rig = FakeHttpServer::start(Script::new("a", ServerEra::Legacy).tools(&["echo"])).await;
    let _evenkeel = ns.run(&[]).await;
    ns.apply_http_server("a", &rig).await;
    ns.wait_until_attached("a").await;
    let before = ns.event_writes();
    for round in 0..50 {
        ns.patch_server("a", &json!({ "spec": { "expose": { "prefix": format!("p{round}") } } })).await;
    }
    ns.wait_until_attached("a").await;
    let series = eventually("the events are one series", async || {
        let events = ns.kubectl(&["get", "events.v1.events.k8s.io", "-o", "json"]).await;
        let events: Value = serde_json::from_str(&events).unwrap();
        let updated = |event: &&Value| event["reason"] == "Updated";
        let updated: Vec<Value> = events["items"].as_array()?.iter().filter(updated).cloned().collect();
        // Changes in quick succession may be observed as one.
        (updated.first()?["series"]["count"].as_u64()? > 2).then_some(updated)
    })
    .await;
    assert_eq!(series.len(), 1, "{series:?}");
    assert_eq!(series[0]["note"], "the declaration changed");
    // One create, then at most one write every ten seconds, and the events of the connection.
    let event_writes = ns.event_writes() - before;
    assert!(event_writes <= 8, "{event_writes}");
}

#[tokio::test]
#[cfg_attr(without_api_server, ignore = "needs Go, for a Kubernetes API server")]
async fn event_about_the_longest_name_is_accepted() {
    let ns = TestNamespace::create_shared().await;
    let _evenkeel = ns.run(&[]).await;
    let name = "a".repeat(253);
    ns.apply(&server_yaml(&name, "stdio: { command: sh }")).await;
    eventually("an event is written", async || {
        ns.events(&name).await.iter().any(|event| event.starts_with("PolicyDenied ")).then_some(())
    })
    .await;
}

/// No replica holds the Lease yet, so no other replica writes the event.
#[tokio::test]
#[cfg_attr(without_api_server, ignore = "needs Go, for a Kubernetes API server")]
async fn occurrences_before_the_lease_is_held_become_events() {
    let ns = TestNamespace::create_shared().await;
    let proxy = ApiProxy::start(&ns).await;
    proxy.set_rule(|_, uri| {
        if uri.path().contains("/leases") {
            ProxyAction::Respond(500, Vec::new(), "not yet".into())
        } else {
            ProxyAction::Pass
        }
    });
    let evenkeel = ns.run_with_kubeconfig(&proxy.kubeconfig, &[]).await;
    ns.apply(&server_yaml("early", "stdio: { command: sh }")).await;
    evenkeel.wait_for_log(&["resource=McpServer/", "PolicyDenied"]).await;
    assert_eq!(ns.events("early").await, Vec::<String>::new());
    proxy.pass_all();
    eventually("an event is written", async || {
        ns.events("early").await.iter().any(|event| event.starts_with("PolicyDenied ")).then_some(())
    })
    .await;
}

#[tokio::test]
#[cfg_attr(without_api_server, ignore = "needs Go, for a Kubernetes API server")]
async fn thousand_servers_attach_with_few_status_writes() {
    const SERVERS: usize = 1_000;
    let ns = TestNamespace::create_shared().await;
    let rig = FakeHttpServer::start(Script::new("a", ServerEra::Legacy).tools(&["echo"])).await;
    let spec = format!("{}\nhealth: {{ interval: 0s }}\ntimeouts: {{ connect: 10m }}", rig.spec());
    for chunk in 0..4 {
        let names = (0..SERVERS / 4).map(|index| format!("s{:03}", chunk * SERVERS / 4 + index));
        let yaml: String = names.map(|name| server_yaml(&name, &spec)).collect();
        ns.apply(&yaml).await;
    }
    let evenkeel = ns.run(&[]).await;
    let count_attached = async || {
        let table = ns.kubectl(&["get", "mcps", "--no-headers"]).await;
        table.lines().filter(|line| line.contains(" True ")).count()
    };
    // The timeout applies to each step, since the total depends on the machine.
    let mut progress = (0, 0);
    while progress.1 < SERVERS {
        progress = eventually("one more server is attached, or has its status written", async || {
            // The queries themselves load the API server.
            tokio::time::sleep(Duration::from_secs(1)).await;
            let now = (rig.counters().initializes(), count_attached().await);
            (now != progress).then_some(now)
        })
        .await;
    }
    assert_eq!(rig.counters().initializes(), SERVERS as u64);
    let writes = ns.settled_status_writes("").await;
    assert!(writes <= 3 * SERVERS, "{writes}");
    ns.apply(&server_yaml("s000", &format!("{spec}\nexpose: {{ prefix: other }}"))).await;
    ns.wait_until_attached("s000").await;
    assert!(ns.status_writes("") - writes <= 2);
    let first = ns.get_server("s001").await.unwrap();
    assert_eq!(condition(&first, "Ready").unwrap().1, "Attached");
    drop(evenkeel);
}
