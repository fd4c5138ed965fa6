//! A busy fleet in which nothing changes writes nothing: no status, no event, no record, no file.

use std::collections::BTreeMap;
use std::fs::{self, OpenOptions};
use std::io::Write;
use std::path::Path;
use std::time::SystemTime;

use serde_json::Value;

use crate::rig::{FakeHttpServer, FakeStdioServer, Script, ServerEra as Speaks};
use crate::support::{Agent, Era, Evenkeel, TestDirectory, eventually, http};
use crate::test_instance::TestInstance;

/// Everything that is written down, as it is now.
#[derive(Debug, PartialEq)]
struct PersistedState {
    /// The lists with their own versions, of which each change of any object makes another, and all events.
    api_responses: Vec<Value>,
    /// The files of the state directory with their times and sizes, the audit log among them.
    files: BTreeMap<String, (SystemTime, u64)>,
    records: String,
}

async fn persisted_state(stage: &TestInstance) -> PersistedState {
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
    list_files(&stage.evenkeel.state_dir(), &mut files);
    PersistedState { api_responses: told, files, records: records.to_owned() }
}

fn list_files(folder: &Path, files: &mut BTreeMap<String, (SystemTime, u64)>) {
    for entry in fs::read_dir(folder).unwrap() {
        let entry = entry.unwrap();
        let told = entry.metadata().unwrap();
        if told.is_dir() {
            list_files(&entry.path(), files);
        } else {
            files.insert(entry.path().display().to_string(), (told.modified().unwrap(), told.len()));
        }
    }
}

/// More than a busy minute brings, in less time: the directory is looked at every half second, and each of two
/// health checks comes after five.
#[tokio::test]
async fn unchanged_fleet_under_load_writes_nothing() {
    let busy = FakeStdioServer::new(Script::default());
    let watched = FakeHttpServer::start(Script::new("watched", Speaks::Legacy)).await;
    let declared = TestDirectory::new();
    declared.write_server("busy", &busy.spec(""));
    declared.write_server("watched", &format!("{}\nhealth: {{ interval: 5s }}", watched.spec()));
    declared.write_server("missing", "stdio: { command: no-such-program-anywhere }");
    let evenkeel = Evenkeel::run_with(declared.path(), &["--poll", "500ms"]).await;
    let stage = TestInstance { declared, evenkeel };
    for name in ["busy", "watched"] {
        stage.evenkeel.wait_until_attached(name).await;
    }
    stage.evenkeel.wait_for("missing", "Stalled", "True", "CommandNotFound").await;
    let url = stage.evenkeel.url();
    let agents = [Agent::connect(Era::Legacy, &url).await, Agent::connect(Era::Modern, &url).await];
    // What was learned of the servers is written a moment after they were attached.
    let mut before = persisted_state(&stage).await;
    eventually("the start has been written down", async || {
        tokio::time::sleep(std::time::Duration::from_secs(1)).await;
        let now = persisted_state(&stage).await;
        let quiet = now == before && now.records.ends_with(" 6");
        before = now;
        quiet.then_some(())
    })
    .await;

    let checks = watched.counters().count("ping");
    let mut rounds = 0;
    while rounds < 60 || watched.counters().count("ping") < checks + 2 {
        for agent in &agents {
            agent.call("busy_echo", "{}").await.unwrap();
            agent.tool_names().await;
        }
        // The same text in another file of the name, and once more in the same file, which is never cut.
        let path = stage.path().join("busy.yaml");
        let text = fs::read_to_string(&path).unwrap();
        stage.declared.write("busy.yaml", &text);
        OpenOptions::new().write(true).open(&path).unwrap().write_all(text.as_bytes()).unwrap();
        stage.declared.write("notes.txt", &format!("{rounds}"));
        persisted_state(&stage).await;
        stage.evenkeel.get_server("missing").await.unwrap();
        rounds += 1;
    }
    let after = persisted_state(&stage).await;
    assert_eq!(after.files, before.files);
    assert_eq!(after.records, before.records);
    for (after, before) in after.api_responses.iter().zip(&before.api_responses) {
        assert_eq!(after, before);
    }
    assert_eq!(busy.processes().len(), 1);

    // The test can fail: a change is written.
    stage.declared.remove("missing.yaml");
    eventually("a change is written", async || (persisted_state(&stage).await != before).then_some(())).await;
}
