//! How much is written, and a large fleet.

use std::time::Duration;

use crate::rig::{Era as RigEra, Http, Script};
use crate::site::{Site, condition, server};
use crate::support::eventually;

#[tokio::test]
async fn an_attach_costs_few_writes_a_restart_none_and_a_busy_catalog_not_many() {
    let Some(site) = Site::open().await else { return };
    let rig = Http::start(Script::new("a", RigEra::Legacy).tools(&["echo"])).await;
    let mut evenkeel = site.run(&[]).await;
    site.serve("a", &rig).await;
    site.apply(&server("p", "stdio: { command: sh }")).await;
    site.attached("a").await;
    site.wait_for("p", "Accepted", "False", "PolicyDenied").await;
    assert!((1..=3).contains(&site.writes("a")), "{}", site.writes("a"));
    assert_eq!(site.writes("p"), 1);
    let version = site.get("a").await.unwrap()["metadata"]["resourceVersion"].clone();

    let before = site.writes("");
    evenkeel.terminate().await;
    evenkeel.start_again().await;
    eventually("it is attached again", async || (rig.counters().initializes() == 2).then_some(())).await;
    // A write of one object that is due after all of these were looked at.
    site.apply(&server("marker", "stdio: { command: sh }")).await;
    site.wait_for("marker", "Accepted", "False", "PolicyDenied").await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(site.writes("a") + site.writes("p"), before, "the outcome is the same");
    assert_eq!(site.get("a").await.unwrap()["metadata"]["resourceVersion"], version);

    let begun = site.writes("a");
    for round in 0..100 {
        let tools: Vec<String> = (0..=round).map(|tool| format!("t{tool}")).collect();
        let tools: Vec<&str> = tools.iter().map(String::as_str).collect();
        rig.edit(|script| *script = script.clone().tools(&tools));
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    eventually("the last is told", async || (site.get("a").await?["status"]["tools"] == 100).then_some(()))
        .await;
    let written = site.writes("a") - begun;
    assert!(written <= 20, "{written}");
}

#[tokio::test]
async fn a_thousand_servers() {
    const ALL: usize = 1_000;
    let Some(site) = Site::open().await else { return };
    let rig = Http::start(Script::new("a", RigEra::Legacy).tools(&["echo"])).await;
    for chunk in 0..4 {
        let names = (0..ALL / 4).map(|index| format!("s{:03}", chunk * ALL / 4 + index));
        let yaml: String =
            names.map(|name| server(&name, &format!("{}\nhealth: {{ interval: 0s }}", rig.spec()))).collect();
        site.apply(&yaml).await;
    }
    let evenkeel = site.run(&[]).await;
    let attached = async || {
        let table = site.kubectl(&["get", "mcps", "--no-headers"]).await;
        table.lines().filter(|line| line.contains(" True ")).count()
    };
    eventually("all are attached and told", async || (attached().await == ALL).then_some(())).await;
    assert_eq!(rig.counters().initializes(), ALL as u64);
    let writes = site.writes("");
    assert!(writes <= 3 * ALL, "{writes}");
    site.apply(&server(
        "s000",
        &format!("{}\nhealth: {{ interval: 0s }}\nexpose: {{ prefix: other }}", rig.spec()),
    ))
    .await;
    site.attached("s000").await;
    assert!(site.writes("") - writes <= 2);
    let first = site.get("s001").await.unwrap();
    assert_eq!(condition(&first, "Ready").unwrap().1, "Attached");
    drop(evenkeel);
}
