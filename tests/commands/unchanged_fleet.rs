//! Tests that a fleet under load writes nothing while nothing changes: no status, no event, no audit record, no file.

use std::collections::BTreeMap;
use std::fs::{self, OpenOptions};
use std::io::Write;
use std::path::Path;
use std::time::SystemTime;

use serde_json::Value;

use crate::rig::{FakeHttpServer, FakeStdioServer, Script, ServerEra as Speaks};
use crate::support::{Agent, Era, Evenkeel, TestDirectory, eventually, http};
use crate::test_instance::TestInstance;

/// Everything that an instance persists or serves, at one instant.
#[derive(Debug, PartialEq)]
struct PersistedState {
    /// The lists with their resource versions, which increase with each change of any object, and all events.
    api_responses: Vec<Value>,
    /// The files of the state directory, including the audit log, with their times and sizes.
    files: BTreeMap<String, (SystemTime, u64)>,
    records: String,
}

async fn persisted_state(instance: &TestInstance) -> PersistedState {
    let group = "/apis/evenkeel.dev/v1alpha1";
    let mut api_responses = Vec::new();
    for path in [&format!("{group}/mcpservers"), &format!("{group}/sources"), "/apis/events.k8s.io/v1/events"]
    {
        let text = http::get(&instance.evenkeel.admin(path)).await.unwrap();
        api_responses.push(serde_json::from_str(&text).unwrap());
    }
    let metrics = http::get(&instance.evenkeel.admin("/metrics")).await.unwrap();
    let records = metrics.lines().find(|line| line.starts_with("evenkeel_audit_records_total")).unwrap();
    let mut files = BTreeMap::new();
    list_files(&instance.evenkeel.state_dir(), &mut files);
    PersistedState { api_responses, files, records: records.to_owned() }
}

fn list_files(folder: &Path, files: &mut BTreeMap<String, (SystemTime, u64)>) {
    for entry in fs::read_dir(folder).unwrap() {
        let entry = entry.unwrap();
        let metadata = entry.metadata().unwrap();
        if metadata.is_dir() {
            list_files(&entry.path(), files);
        } else {
            files.insert(entry.path().display().to_string(), (metadata.modified().unwrap(), metadata.len()));
        }
    }
}

/// Compresses more than a busy minute: the directory is polled every 500 ms, and two health checks follow at 5 s
/// intervals.
#[tokio::test]
async fn unchanged_fleet_under_load_writes_nothing() {
    let busy = FakeStdioServer::new(Script::default());
    let watched = FakeHttpServer::start(Script::new("watched", Speaks::Legacy)).await;
    let declared = TestDirectory::new();
    declared.write_server("busy", &busy.spec(""));
    declared.write_server("watched", &format!("{}\nhealth: {{ interval: 5s }}", watched.spec()));
    declared.write_server("missing", "stdio: { command: no-such-program-anywhere }");
    let evenkeel = Evenkeel::run_with(declared.path(), &["--poll", "500ms"]).await;
    let instance = TestInstance { declared, evenkeel };
    for name in ["busy", "watched"] {
        instance.evenkeel.wait_until_attached(name).await;
    }
    instance.evenkeel.wait_for("missing", "Stalled", "True", "CommandNotFound").await;
    let url = instance.evenkeel.url();
    let agents = [Agent::connect(Era::Legacy, &url).await, Agent::connect(Era::Modern, &url).await];
    // The server cache is written a moment after the servers are attached.
    let mut before = persisted_state(&instance).await;
    eventually("the writes of startup are complete", async || {
        tokio::time::sleep(std::time::Duration::from_secs(1)).await;
        let now = persisted_state(&instance).await;
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
        // Replace the file by one with the same text, then overwrite it in place with the same text.
        let path = instance.path().join("busy.yaml");
        let text = fs::read_to_string(&path).unwrap();
        instance.declared.write("busy.yaml", &text);
        OpenOptions::new().write(true).open(&path).unwrap().write_all(text.as_bytes()).unwrap();
        instance.declared.write("notes.txt", &format!("{rounds}"));
        persisted_state(&instance).await;
        instance.evenkeel.get_server("missing").await.unwrap();
        rounds += 1;
    }
    let after = persisted_state(&instance).await;
    assert_eq!(after.files, before.files);
    assert_eq!(after.records, before.records);
    for (after, before) in after.api_responses.iter().zip(&before.api_responses) {
        assert_eq!(after, before);
    }
    assert_eq!(busy.processes().len(), 1);

    // Proves that the test can fail: a change is written.
    instance.declared.remove("missing.yaml");
    eventually("a change is written", async || (persisted_state(&instance).await != before).then_some(()))
        .await;
}
