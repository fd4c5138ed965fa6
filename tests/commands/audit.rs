//! Tests the audit log: one record for every change of state, and none without a change.

use std::fs;
use std::path::PathBuf;

use serde_json::{Value, json};

use crate::rig::{FakeStdioServer, Script};
use crate::support::{Evenkeel, TestDirectory, eventually, git};
use crate::test_instance::{TestInstance, parse_json_lines};

fn records(instance: &TestInstance) -> Vec<Value> {
    let text = fs::read_to_string(audit_dir(instance).join("audit.jsonl")).unwrap_or_default();
    parse_json_lines(&text)
}

fn audit_dir(instance: &TestInstance) -> PathBuf {
    instance.evenkeel.state_dir().join("audit")
}

/// Waits for a record about a server and returns it.
async fn wait_for_record(instance: &TestInstance, name: &str, reason: &str) -> Value {
    eventually(&format!("{name}: {reason}"), async || {
        records(instance)
            .into_iter()
            .find(|record| record["object"]["name"] == name && record["reason"] == reason)
    })
    .await
}

#[tokio::test]
async fn every_state_change_is_recorded_once() {
    let server = FakeStdioServer::new(Script::default());
    let instance = TestInstance::start(&[("a", &server.spec("")), ("b", &server.spec(""))]).await;
    instance.evenkeel.wait_until_attached("a").await;
    instance.evenkeel.wait_until_attached("b").await;
    let created = wait_for_record(&instance, "a", "Created").await;
    let digest = created["specDigest"].clone();
    assert_eq!((&created["action"], &created["oldSpecDigest"]), (&json!("create"), &Value::Null));
    assert_eq!(
        (&created["actor"]["source"], &created["object"]["generation"]),
        (&json!("directory"), &json!(1))
    );
    let attached = wait_for_record(&instance, "a", "Attached").await;
    assert_eq!((&attached["action"], &attached["outcome"]), (&json!("reconcile"), &json!("success")));
    wait_for_record(&instance, "b", "Attached").await;

    // Writing the same spec again adds no record, as the record that follows proves.
    let count = records(&instance).len();
    instance.declared.write_server("a", &server.spec(""));
    instance.declared.write_server("b", "stdio: { command: no-such-program-anywhere }");
    let failed = wait_for_record(&instance, "b", "CommandNotFound").await;
    assert_eq!(failed["outcome"], "failure");
    let updated = wait_for_record(&instance, "b", "Updated").await;
    assert_eq!(updated["action"], "update");
    assert!(updated["oldSpecDigest"] != updated["specDigest"], "{updated}");
    let later = records(&instance).split_off(count);
    assert!(later.iter().all(|record| record["object"]["name"] != "a"), "{later:?}");

    instance.declared.remove("a.yaml");
    let removed = wait_for_record(&instance, "a", "Removed").await;
    assert_eq!((&removed["action"], &removed["oldSpecDigest"]), (&json!("delete"), &digest));
}

#[tokio::test]
async fn changes_while_stopped_are_recorded() {
    let server = FakeStdioServer::new(Script::default());
    let mut instance = TestInstance::start(&[
        ("a", &server.spec("")),
        ("b", &server.spec("")),
        ("c", "stdio: { command: none }"),
    ])
    .await;
    instance.evenkeel.wait_until_attached("a").await;
    instance.evenkeel.wait_until_attached("b").await;
    let before = wait_for_record(&instance, "b", "Created").await["specDigest"].clone();
    wait_for_record(&instance, "c", "CommandNotFound").await;
    let declarations = |records: Vec<Value>| -> Vec<Value> {
        records.into_iter().filter(|record| record["action"] != "reconcile").collect()
    };
    assert_eq!(declarations(records(&instance)).len(), 3);

    // Nothing changed: no record and no event follows.
    instance.evenkeel.terminate().await;
    instance.evenkeel.restart().await;
    instance.evenkeel.wait_until_attached("a").await;
    instance.evenkeel.wait_until_attached("b").await;
    assert_eq!(declarations(records(&instance)).len(), 3);
    let events = instance.run_ok(&["events"]).await;
    assert!(!["Created", "Updated", "Removed"].iter().any(|word| events.contains(word)), "{events}");

    // Killed, so that it cannot write anything at shutdown.
    instance.evenkeel.kill();
    instance.declared.write_server("b", &format!("{}\nsuspend: true", server.spec("")));
    instance.declared.remove("c.yaml");
    instance.declared.write_server("d", &server.spec(""));
    instance.evenkeel.restart().await;
    let updated = wait_for_record(&instance, "b", "Updated").await;
    assert_eq!((&updated["action"], &updated["oldSpecDigest"]), (&json!("update"), &before));
    assert!(updated["specDigest"] != before && updated["object"]["generation"] == 2, "{updated}");
    let removed = wait_for_record(&instance, "c", "Removed").await;
    assert!(removed["oldSpecDigest"].is_string() && removed["specDigest"].is_null(), "{removed}");
    instance.evenkeel.wait_until_attached("a").await;
    instance.evenkeel.wait_until_attached("d").await;
    let all = declarations(records(&instance));
    let later: Vec<String> =
        all[3..].iter().map(|record| format!("{} {}", record["object"]["name"], record["reason"])).collect();
    let mut sorted = later.clone();
    sorted.sort();
    assert_eq!(sorted, [r#""b" "Updated""#, r#""c" "Removed""#, r#""d" "Created""#], "{later:?}");
}

#[tokio::test]
async fn unwritable_audit_log_does_not_stop_the_fleet() {
    let server = FakeStdioServer::new(Script::default());
    let mut instance = TestInstance::start(&[]).await;
    instance.evenkeel.terminate().await;
    // A file in place of the directory: nothing can be written there, even by root.
    let _ = fs::remove_dir_all(audit_dir(&instance));
    fs::write(audit_dir(&instance), "").unwrap();
    instance.declared.write_server("a", &server.spec(""));
    instance.evenkeel.restart().await;
    instance.evenkeel.wait_until_attached("a").await;
    let lost = eventually("the lost record is counted", async || {
        let text = crate::support::http::get(&instance.evenkeel.admin("/metrics")).await.unwrap();
        let line = text.lines().find(|line| line.starts_with("evenkeel_audit_records_lost_total "))?;
        line.split_once(' ')?.1.parse::<u64>().ok().filter(|lost| *lost > 0)
    })
    .await;
    assert!(lost >= 1);
    instance.evenkeel.wait_for_log(&["the audit log cannot be written"]).await;
    let stderr = instance.evenkeel.stderr();
    assert_eq!(stderr.matches("the audit log cannot be written").count(), 1, "logged once: {stderr}");
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
    let mut instance = TestInstance { declared, evenkeel };
    let created = wait_for_record(&instance, "a", "Created").await;
    assert_eq!(created["actor"]["commit"]["author"], "Ann <ann@example.com>", "{created}");
    for name in ["a", "b", "c"] {
        instance.evenkeel.wait_until_attached(name).await;
    }
    instance.run_ok(&["mcp", "reload", "a"]).await;
    let requested = wait_for_record(&instance, "a", "Updated").await;
    let actor = &requested["actor"];
    assert_eq!(
        (&requested["action"], &actor["source"]),
        (&json!("request"), &json!("statusApi")),
        "{requested}"
    );
    assert!(actor["commit"].is_null(), "Ann did not request it: {requested}");

    // Bob commits the removal first, so that the scan sees the committed state.
    let remove_and_commit = |instance: &TestInstance, name: &str| {
        let file = format!("{name}.yaml");
        git(instance.path(), "Bob", &["rm", "-q", "--cached", &file]);
        git(instance.path(), "Bob", &["commit", "-q", "-m", &format!("No more {name}")]);
        instance.declared.remove(&file);
        git(instance.path(), "Bob", &["rev-parse", "HEAD"])
    };
    let commit = remove_and_commit(&instance, "b");
    let removed = wait_for_record(&instance, "b", "Removed").await;
    let actor = &removed["actor"];
    assert_eq!((&removed["action"], &actor["revision"]), (&json!("delete"), &json!(commit)), "{removed}");
    assert_eq!(actor["commit"]["author"], "Bob <bob@example.com>", "{removed}");
    assert_eq!((&actor["commit"]["id"], &actor["commit"]["subject"]), (&json!(commit), &json!("No more b")));

    // The same while evenkeel is stopped.
    instance.evenkeel.terminate().await;
    let commit = remove_and_commit(&instance, "c");
    instance.evenkeel.restart().await;
    let removed = wait_for_record(&instance, "c", "Removed").await;
    assert_eq!(removed["actor"]["commit"]["id"], json!(commit), "{removed}");

    // An uncommitted change has no author.
    instance.declared.write_server("d", &server.spec(""));
    instance.evenkeel.wait_until_attached("d").await;
    instance.declared.remove("a.yaml");
    let removed = wait_for_record(&instance, "a", "Removed").await;
    assert!(removed["actor"]["commit"].is_null(), "{removed}");
}
