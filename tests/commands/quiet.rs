//! A busy fleet in which nothing changes writes nothing: no status, no event, no record, no file.

use std::collections::BTreeMap;
use std::fs::{self, OpenOptions};
use std::io::Write;
use std::path::Path;
use std::time::SystemTime;

use serde_json::Value;

use crate::rig::{Era as Speaks, Http, Script, Stdio};
use crate::stage::Stage;
use crate::support::{Agent, Declared, Era, Evenkeel, eventually, http};

/// Everything that is written down, as it is now.
#[derive(Debug, PartialEq)]
struct Written {
    /// The lists with their own versions, of which each change of any object makes another, and all events.
    told: Vec<Value>,
    /// The files of the state directory with their times and sizes, the audit log among them.
    files: BTreeMap<String, (SystemTime, u64)>,
    records: String,
}

async fn written(stage: &Stage) -> Written {
    let group = "/apis/evenkeel.dev/v1alpha1";
    let mut told = Vec::new();
    for path in [&format!("{group}/mcpservers"), &format!("{group}/sources"), "/apis/events.k8s.io/v1/events"]
    {
        let text = http::get(&stage.evenkeel.admin(path)).await.unwrap();
        told.push(serde_json::from_str(&text).unwrap());
    }
    let metrics = http::get(&stage.evenkeel.admin("/metrics")).await.unwrap();
    let records = metrics.lines().find(|line| line.starts_with("evenkeel_audit_records_total")).unwrap();
    let mut files = BTreeMap::new();
    list(&stage.evenkeel.state(), &mut files);
    Written { told, files, records: records.to_owned() }
}

fn list(folder: &Path, files: &mut BTreeMap<String, (SystemTime, u64)>) {
    for entry in fs::read_dir(folder).unwrap() {
        let entry = entry.unwrap();
        let told = entry.metadata().unwrap();
        if told.is_dir() {
            list(&entry.path(), files);
        } else {
            files.insert(entry.path().display().to_string(), (told.modified().unwrap(), told.len()));
        }
    }
}

/// More than a busy minute brings, in less time: the directory is looked at every half second, and each of two
/// health checks comes after five.
#[tokio::test]
async fn a_busy_fleet_in_which_nothing_changes_writes_nothing() {
    let busy = Stdio::new(Script::default());
    let watched = Http::start(Script::new("watched", Speaks::Legacy)).await;
    let declared = Declared::new();
    declared.server("busy", &busy.spec(""));
    declared.server("watched", &format!("{}\nhealth: {{ interval: 5s }}", watched.spec()));
    declared.server("missing", "stdio: { command: no-such-program-anywhere }");
    let evenkeel = Evenkeel::run_with(declared.path(), &["--poll", "500ms"]).await;
    let stage = Stage { declared, evenkeel };
    for name in ["busy", "watched"] {
        stage.evenkeel.attached(name).await;
    }
    stage.evenkeel.wait_for("missing", "Stalled", "True", "CommandNotFound").await;
    let url = stage.evenkeel.url();
    let agents = [Agent::open(Era::Legacy, &url).await, Agent::open(Era::Modern, &url).await];
    // What was learned of the servers is written a moment after they were attached.
    let mut before = written(&stage).await;
    eventually("the start has been written down", async || {
        tokio::time::sleep(std::time::Duration::from_secs(1)).await;
        let now = written(&stage).await;
        let quiet = now == before && now.records.ends_with(" 6");
        before = now;
        quiet.then_some(())
    })
    .await;

    let checks = watched.counters().of("ping");
    let mut rounds = 0;
    while rounds < 60 || watched.counters().of("ping") < checks + 2 {
        for agent in &agents {
            agent.call("busy_echo", "{}").await.unwrap();
            agent.tools().await;
        }
        // The same text in another file of the name, and once more in the same file, which is never cut.
        let path = stage.path().join("busy.yaml");
        let text = fs::read_to_string(&path).unwrap();
        stage.declared.write("busy.yaml", &text);
        OpenOptions::new().write(true).open(&path).unwrap().write_all(text.as_bytes()).unwrap();
        stage.declared.write("notes.txt", &format!("{rounds}"));
        written(&stage).await;
        stage.evenkeel.server("missing").await.unwrap();
        rounds += 1;
    }
    let after = written(&stage).await;
    assert_eq!(after.files, before.files);
    assert_eq!(after.records, before.records);
    for (after, before) in after.told.iter().zip(&before.told) {
        assert_eq!(after, before);
    }
    assert_eq!(busy.processes().len(), 1);

    // The test can fail: a change is written.
    stage.declared.remove("missing.yaml");
    eventually("a change is written", async || (written(&stage).await != before).then_some(())).await;
}
