//! Metrics: every name is documented, every documented name is there, and Prometheus reads them.

use std::collections::BTreeSet;
use std::io::Write;
use std::process::{Command, Stdio as Pipe};

use crate::rig::{FakeStdioServer, Script};
use crate::support::{Agent, Era, eventually, http, promtool};
use crate::test_instance::TestInstance;

/// Not written before there is something to count.
const EVENT_DRIVEN_METRICS: [&str; 1] = ["evenkeel_watch_restarts_total"];

async fn scrape() -> String {
    let server = FakeStdioServer::new(Script::default());
    let stage = TestInstance::start(&[("a", &server.spec(""))]).await;
    stage.evenkeel.wait_until_attached("a").await;
    let agent = Agent::connect(Era::Modern, &stage.evenkeel.url()).await;
    agent.call("a_echo", "{}").await.unwrap();
    eventually("everything has been counted", async || {
        let text = http::get(&stage.evenkeel.admin("/metrics")).await.unwrap();
        text.contains("evenkeel_audit_records_total 2").then_some(text)
    })
    .await
}

/// The names of families as they are scraped: a counter ends in `_total`.
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
    // Other tables explain labels.
    let metrics = rows.map(|(name, _)| name.to_owned()).filter(|name| name.starts_with("evenkeel_"));
    let documented: BTreeSet<String> = metrics.collect();
    let mut told = family_names(&text);
    told.extend(EVENT_DRIVEN_METRICS.map(String::from));
    assert_eq!(told, documented, "{text}");
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
    // It reads the older text format, where a counter is named with its ending and there is no end mark.
    let counters =
        family_names(&text).into_iter().filter_map(|name| name.strip_suffix("_total").map(str::to_owned));
    let text = counters.fold(text.replace("# EOF\n", ""), |text, name| {
        ["HELP", "TYPE"].iter().fold(text, |text, word| {
            text.replace(&format!("# {word} {name} "), &format!("# {word} {name}_total "))
        })
    });
    child.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    let said =
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && said.trim().is_empty(), "{said}\n{text}");
}
