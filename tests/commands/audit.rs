//! The audit log: a record of every change of state, and none where nothing changed.

use std::fs;
use std::path::PathBuf;

use serde_json::{Value, json};

use crate::rig::{FakeStdioServer, Script};
use crate::support::{Evenkeel, TestDirectory, eventually, git};
use crate::test_instance::{TestInstance, parse_json_lines};

fn records(stage: &TestInstance) -> Vec<Value> {
    let text = fs::read_to_string(audit_dir(stage).join("audit.jsonl")).unwrap_or_default();
    parse_json_lines(&text)
}

fn audit_dir(stage: &TestInstance) -> PathBuf {
    stage.evenkeel.state_dir().join("audit")
}

/// Waits for a record about a server.
async fn wait_for_record(stage: &TestInstance, name: &str, reason: &str) -> Value {
    eventually(&format!("{name}: {reason}"), async || {
        records(stage)
            .into_iter()
            .find(|record| record["object"]["name"] == name && record["reason"] == reason)
    })
    .await
}

#[tokio::test]
async fn every_state_change_is_recorded_once() {
    let server = FakeStdioServer::new(Script::default());
    let stage = TestInstance::start(&[("a", &server.spec("")), ("b", &server.spec(""))]).await;
    stage.evenkeel.wait_until_attached("a").await;
    stage.evenkeel.wait_until_attached("b").await;
    let created = wait_for_record(&stage, "a", "Created").await;
    let digest = created["specDigest"].clone();
    assert_eq!((&created["action"], &created["oldSpecDigest"]), (&json!("create"), &Value::Null));
    assert_eq!(
        (&created["actor"]["source"], &created["object"]["generation"]),
        (&json!("directory"), &json!(1))
    );
    let attached = wait_for_record(&stage, "a", "Attached").await;
    assert_eq!((&attached["action"], &attached["outcome"]), (&json!("reconcile"), &json!("success")));
    wait_for_record(&stage, "b", "Attached").await;

    // The same once more: no record, which one that follows proves.
    let count = records(&stage).len();
    stage.declared.write_server("a", &server.spec(""));
    stage.declared.write_server("b", "stdio: { command: no-such-program-anywhere }");
    let failed = wait_for_record(&stage, "b", "CommandNotFound").await;
    assert_eq!(failed["outcome"], "failure");
    let updated = wait_for_record(&stage, "b", "Updated").await;
    assert_eq!(updated["action"], "update");
    assert!(updated["oldSpecDigest"] != updated["specDigest"], "{updated}");
    let later = records(&stage).split_off(count);
    assert!(later.iter().all(|record| record["object"]["name"] != "a"), "{later:?}");

    stage.declared.remove("a.yaml");
    let removed = wait_for_record(&stage, "a", "Removed").await;
    assert_eq!((&removed["action"], &removed["oldSpecDigest"]), (&json!("delete"), &digest));
}

#[tokio::test]
async fn changes_while_stopped_are_recorded() {
    let server = FakeStdioServer::new(Script::default());
    let mut stage = TestInstance::start(&[
        ("a", &server.spec("")),
        ("b", &server.spec("")),
        ("c", "stdio: { command: none }"),
    ])
    .await;
    stage.evenkeel.wait_until_attached("a").await;
    stage.evenkeel.wait_until_attached("b").await;
    let before = wait_for_record(&stage, "b", "Created").await["specDigest"].clone();
    wait_for_record(&stage, "c", "CommandNotFound").await;
    let declarations = |records: Vec<Value>| -> Vec<Value> {
        records.into_iter().filter(|record| record["action"] != "reconcile").collect()
    };
    assert_eq!(declarations(records(&stage)).len(), 3);

    // Nothing changed: nothing is written of it, nor an event.
    stage.evenkeel.terminate().await;
    stage.evenkeel.restart().await;
    stage.evenkeel.wait_until_attached("a").await;
    stage.evenkeel.wait_until_attached("b").await;
    assert_eq!(declarations(records(&stage)).len(), 3);
    let events = stage.run_ok(&["events"]).await;
    assert!(!["Created", "Updated", "Removed"].iter().any(|word| events.contains(word)), "{events}");

    // Killed, so that it had no time to prepare.
    stage.evenkeel.kill();
    stage.declared.write_server("b", &format!("{}\nsuspend: true", server.spec("")));
    stage.declared.remove("c.yaml");
    stage.declared.write_server("d", &server.spec(""));
    stage.evenkeel.restart().await;
    let updated = wait_for_record(&stage, "b", "Updated").await;
    assert_eq!((&updated["action"], &updated["oldSpecDigest"]), (&json!("update"), &before));
    assert!(updated["specDigest"] != before && updated["object"]["generation"] == 2, "{updated}");
    let removed = wait_for_record(&stage, "c", "Removed").await;
    assert!(removed["oldSpecDigest"].is_string() && removed["specDigest"].is_null(), "{removed}");
    stage.evenkeel.wait_until_attached("a").await;
    stage.evenkeel.wait_until_attached("d").await;
    let all = declarations(records(&stage));
    let later: Vec<String> =
        all[3..].iter().map(|record| format!("{} {}", record["object"]["name"], record["reason"])).collect();
    let mut sorted = later.clone();
    sorted.sort();
    assert_eq!(sorted, [r#""b" "Updated""#, r#""c" "Removed""#, r#""d" "Created""#], "{later:?}");
}

#[tokio::test]
async fn unwritable_audit_log_does_not_stop_the_fleet() {
    let server = FakeStdioServer::new(Script::default());
    let mut stage = TestInstance::start(&[]).await;
    stage.evenkeel.terminate().await;
    // A file where the folder must be: nothing can be written there, even by root.
    let _ = fs::remove_dir_all(audit_dir(&stage));
    fs::write(audit_dir(&stage), "").unwrap();
    stage.declared.write_server("a", &server.spec(""));
    stage.evenkeel.restart().await;
    stage.evenkeel.wait_until_attached("a").await;
    let lost = eventually("it is counted", async || {
        let text = crate::support::http::get(&stage.evenkeel.admin("/metrics")).await.unwrap();
        let line = text.lines().find(|line| line.starts_with("evenkeel_audit_records_lost_total "))?;
        line.split_once(' ')?.1.parse::<u64>().ok().filter(|lost| *lost > 0)
    })
    .await;
    assert!(lost >= 1);
    let said = stage.evenkeel.stderr();
    assert_eq!(said.matches("the audit log cannot be written").count(), 1, "told once: {said}");
}

#[tokio::test]
async fn records_name_the_commit_author_or_the_status_api() {
    let server = FakeStdioServer::new(Script::default());
    let declared = TestDirectory::new();
    for name in ["a", "b", "c"] {
        declared.write_server(name, &server.spec(""));
    }
    for args in [&["init", "-q"][..], &["add", "-A"], &["commit", "-q", "-m", "Three servers"]] {
        git(declared.path(), "Ann", args);
    }
    let evenkeel = Evenkeel::run(declared.path()).await;
    let mut stage = TestInstance { declared, evenkeel };
    let created = wait_for_record(&stage, "a", "Created").await;
    assert_eq!(created["actor"]["commit"]["author"], "Ann <ann@example.com>", "{created}");
    for name in ["a", "b", "c"] {
        stage.evenkeel.wait_until_attached(name).await;
    }
    stage.run_ok(&["mcp", "reload", "a"]).await;
    let asked = wait_for_record(&stage, "a", "Updated").await;
    let actor = &asked["actor"];
    assert_eq!((&asked["action"], &actor["source"]), (&json!("request"), &json!("statusApi")), "{asked}");
    assert!(actor["commit"].is_null(), "Ann did not ask: {asked}");

    // Bob says first that it goes, so that what is seen is what is committed.
    let removes = |stage: &TestInstance, name: &str| {
        let file = format!("{name}.yaml");
        git(stage.path(), "Bob", &["rm", "-q", "--cached", &file]);
        git(stage.path(), "Bob", &["commit", "-q", "-m", &format!("No more {name}")]);
        stage.declared.remove(&file);
        git(stage.path(), "Bob", &["rev-parse", "HEAD"])
    };
    let commit = removes(&stage, "b");
    let removed = wait_for_record(&stage, "b", "Removed").await;
    let actor = &removed["actor"];
    assert_eq!((&removed["action"], &actor["revision"]), (&json!("delete"), &json!(commit)), "{removed}");
    assert_eq!(actor["commit"]["author"], "Bob <bob@example.com>", "{removed}");
    assert_eq!((&actor["commit"]["id"], &actor["commit"]["subject"]), (&json!(commit), &json!("No more b")));

    // The same while evenkeel is down.
    stage.evenkeel.terminate().await;
    let commit = removes(&stage, "c");
    stage.evenkeel.restart().await;
    let removed = wait_for_record(&stage, "c", "Removed").await;
    assert_eq!(removed["actor"]["commit"]["id"], json!(commit), "{removed}");

    // What nobody has committed is nobody's.
    stage.declared.write_server("d", &server.spec(""));
    stage.evenkeel.wait_until_attached("d").await;
    stage.declared.remove("a.yaml");
    let removed = wait_for_record(&stage, "a", "Removed").await;
    assert!(removed["actor"]["commit"].is_null(), "{removed}");
}
