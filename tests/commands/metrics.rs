//! Tests that every metric is documented, every documented metric exists, and Prometheus accepts them.

use std::collections::BTreeSet;
use std::io::Write;
use std::process::{Command, Stdio as Pipe};

use crate::rig::{FakeStdioServer, Script};
use crate::support::{Agent, Era, eventually, http, promtool};
use crate::test_instance::TestInstance;

/// Metrics without a value before their first event.
const EVENT_DRIVEN_METRICS: [&str; 3] =
    ["evenkeel_items_left_out", "evenkeel_server_sessions", "evenkeel_watch_restarts_total"];

async fn scrape() -> String {
    let server = FakeStdioServer::new(Script::default());
    let instance = TestInstance::start(&[("a", &server.spec(""))]).await;
    instance.evenkeel.wait_until_attached("a").await;
    let agent = Agent::connect(Era::Modern, &instance.evenkeel.url()).await;
    agent.call("a_echo", "{}").await.unwrap();
    eventually("everything has been counted", async || {
        let text = http::get(&instance.evenkeel.admin("/metrics")).await.unwrap();
        text.contains("evenkeel_audit_records_total 2").then_some(text)
    })
    .await
}

/// Returns the names of metric families as scraped: a counter ends in `_total`.
fn family_names(text: &str) -> BTreeSet<String> {
    let types = text.lines().filter_map(|line| line.strip_prefix("# TYPE "));
    types
        .map(|line| {
            let (name, kind) = line.split_once(' ').unwrap();
            if kind == "counter" { format!("{name}_total") } else { name.to_owned() }
        })
        .collect()
}

#[tokio::test]
async fn every_metric_is_documented() {
    let text = scrape().await;
    let page = include_str!("../../docs/metrics.md");
    let rows = page.lines().filter_map(|line| line.strip_prefix("| `")?.split_once('`'));
    // Other tables of the page describe labels.
    let metrics = rows.map(|(name, _)| name.to_owned()).filter(|name| name.starts_with("evenkeel_"));
    let documented: BTreeSet<String> = metrics.collect();
    let mut found = family_names(&text);
    found.extend(EVENT_DRIVEN_METRICS.map(String::from));
    assert_eq!(found, documented, "{text}");
}

#[tokio::test]
#[cfg_attr(without_promtool, ignore = "needs promtool, or apt-get to fetch it")]
async fn promtool_accepts_the_metrics() {
    let text = scrape().await;
    let promtool = promtool();
    let mut child = Command::new(promtool)
        .args(["check", "metrics"])
        .stdin(Pipe::piped())
        .stdout(Pipe::piped())
        .stderr(Pipe::piped())
        .spawn()
        .unwrap();
    // promtool reads the older text format, where a counter has its suffix in the metadata and there is no EOF line.
    let counters =
        family_names(&text).into_iter().filter_map(|name| name.strip_suffix("_total").map(str::to_owned));
    let text = counters.fold(text.replace("# EOF\n", ""), |text, name| {
        ["HELP", "TYPE"].iter().fold(text, |text, word| {
            text.replace(&format!("# {word} {name} "), &format!("# {word} {name}_total "))
        })
    });
    child.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    let promtool_output =
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && promtool_output.trim().is_empty(), "{promtool_output}\n{text}");
}
