//! The audit log: a record of every change of state, and none where nothing changed.

use std::fs;
use std::path::PathBuf;

use serde_json::{Value, json};

use crate::rig::{Script, Stdio};
use crate::stage::{Stage, json_lines};
use crate::support::{Declared, Evenkeel, eventually, git};

fn records(stage: &Stage) -> Vec<Value> {
    let text = fs::read_to_string(folder(stage).join("audit.jsonl")).unwrap_or_default();
    json_lines(&text)
}

fn folder(stage: &Stage) -> PathBuf {
    stage.evenkeel.state().join("audit")
}

/// Waits for a record about a server.
async fn record(stage: &Stage, name: &str, reason: &str) -> Value {
    eventually(&format!("{name}: {reason}"), async || {
        records(stage)
            .into_iter()
            .find(|record| record["object"]["name"] == name && record["reason"] == reason)
    })
    .await
}

#[tokio::test]
async fn every_change_is_written_and_nothing_else() {
    let server = Stdio::new(Script::default());
    let stage = Stage::start(&[("a", &server.spec("")), ("b", &server.spec(""))]).await;
    stage.evenkeel.attached("a").await;
    stage.evenkeel.attached("b").await;
    let created = record(&stage, "a", "Created").await;
    let digest = created["specDigest"].clone();
    assert_eq!((&created["action"], &created["oldSpecDigest"]), (&json!("create"), &Value::Null));
    assert_eq!(
        (&created["actor"]["source"], &created["object"]["generation"]),
        (&json!("directory"), &json!(1))
    );
    let attached = record(&stage, "a", "Attached").await;
    assert_eq!((&attached["action"], &attached["outcome"]), (&json!("reconcile"), &json!("asExpected")));
    record(&stage, "b", "Attached").await;

    // The same once more: no record, which one that follows proves.
    let count = records(&stage).len();
    stage.declared.server("a", &server.spec(""));
    stage.declared.server("b", "stdio: { command: no-such-program-anywhere }");
    let failed = record(&stage, "b", "CommandNotFound").await;
    assert_eq!(failed["outcome"], "trouble");
    let updated = record(&stage, "b", "Updated").await;
    assert_eq!(updated["action"], "update");
    assert!(updated["oldSpecDigest"] != updated["specDigest"], "{updated}");
    let later = records(&stage).split_off(count);
    assert!(later.iter().all(|record| record["object"]["name"] != "a"), "{later:?}");

    stage.declared.remove("a.yaml");
    let removed = record(&stage, "a", "Removed").await;
    assert_eq!((&removed["action"], &removed["oldSpecDigest"]), (&json!("delete"), &digest));
}

#[tokio::test]
async fn what_changed_while_evenkeel_was_down_is_written_too() {
    let server = Stdio::new(Script::default());
    let mut stage =
        Stage::start(&[("a", &server.spec("")), ("b", &server.spec("")), ("c", "stdio: { command: none }")])
            .await;
    stage.evenkeel.attached("a").await;
    stage.evenkeel.attached("b").await;
    let before = record(&stage, "b", "Created").await["specDigest"].clone();
    record(&stage, "c", "CommandNotFound").await;
    let declarations = |records: Vec<Value>| -> Vec<Value> {
        records.into_iter().filter(|record| record["action"] != "reconcile").collect()
    };
    assert_eq!(declarations(records(&stage)).len(), 3);

    // Nothing changed: nothing is written of it, nor an event.
    stage.evenkeel.terminate().await;
    stage.evenkeel.start_again().await;
    stage.evenkeel.attached("a").await;
    stage.evenkeel.attached("b").await;
    assert_eq!(declarations(records(&stage)).len(), 3);
    let events = stage.ok(&["events"]).await;
    assert!(!["Created", "Updated", "Removed"].iter().any(|word| events.contains(word)), "{events}");

    // Killed, so that it had no time to prepare.
    stage.evenkeel.kill();
    stage.declared.server("b", &format!("{}\nsuspend: true", server.spec("")));
    stage.declared.remove("c.yaml");
    stage.declared.server("d", &server.spec(""));
    stage.evenkeel.start_again().await;
    let updated = record(&stage, "b", "Updated").await;
    assert_eq!((&updated["action"], &updated["oldSpecDigest"]), (&json!("update"), &before));
    assert!(updated["specDigest"] != before && updated["object"]["generation"] == 2, "{updated}");
    let removed = record(&stage, "c", "Removed").await;
    assert!(removed["oldSpecDigest"].is_string() && removed["specDigest"].is_null(), "{removed}");
    stage.evenkeel.attached("a").await;
    stage.evenkeel.attached("d").await;
    let all = declarations(records(&stage));
    let later: Vec<String> =
        all[3..].iter().map(|record| format!("{} {}", record["object"]["name"], record["reason"])).collect();
    let mut sorted = later.clone();
    sorted.sort();
    assert_eq!(sorted, [r#""b" "Updated""#, r#""c" "Removed""#, r#""d" "Created""#], "{later:?}");
}

#[tokio::test]
async fn a_disk_that_takes_nothing_stops_nothing() {
    let server = Stdio::new(Script::default());
    let mut stage = Stage::start(&[]).await;
    stage.evenkeel.terminate().await;
    // A file where the folder must be: nothing can be written there, even by root.
    let _ = fs::remove_dir_all(folder(&stage));
    fs::write(folder(&stage), "").unwrap();
    stage.declared.server("a", &server.spec(""));
    stage.evenkeel.start_again().await;
    stage.evenkeel.attached("a").await;
    let lost = eventually("it is counted", async || {
        let text = crate::support::http::get(&stage.evenkeel.admin("/metrics")).await.unwrap();
        let line = text.lines().find(|line| line.starts_with("evenkeel_audit_records_lost_total "))?;
        line.split_once(' ')?.1.parse::<u64>().ok().filter(|lost| *lost > 0)
    })
    .await;
    assert!(lost >= 1);
    let said = stage.evenkeel.said();
    assert_eq!(said.matches("the audit log cannot be written").count(), 1, "told once: {said}");
}

#[tokio::test]
async fn who_wrote_a_file_who_took_it_away_and_who_asked_are_told_apart() {
    let server = Stdio::new(Script::default());
    let declared = Declared::new();
    for name in ["a", "b", "c"] {
        declared.server(name, &server.spec(""));
    }
    for args in [&["init", "-q"][..], &["add", "-A"], &["commit", "-q", "-m", "Three servers"]] {
        git(declared.path(), "Ann", args);
    }
    let evenkeel = Evenkeel::run(declared.path()).await;
    let mut stage = Stage { declared, evenkeel };
    let created = record(&stage, "a", "Created").await;
    assert_eq!(created["actor"]["commit"]["author"], "Ann <ann@example.com>", "{created}");
    for name in ["a", "b", "c"] {
        stage.evenkeel.attached(name).await;
    }
    stage.ok(&["mcp", "reload", "a"]).await;
    let asked = record(&stage, "a", "Updated").await;
    let actor = &asked["actor"];
    assert_eq!((&asked["action"], &actor["source"]), (&json!("request"), &json!("statusApi")), "{asked}");
    assert!(actor["commit"].is_null(), "Ann did not ask: {asked}");

    // Bob says first that it goes, so that what is seen is what is committed.
    let removes = |stage: &Stage, name: &str| {
        let file = format!("{name}.yaml");
        git(stage.path(), "Bob", &["rm", "-q", "--cached", &file]);
        git(stage.path(), "Bob", &["commit", "-q", "-m", &format!("No more {name}")]);
        stage.declared.remove(&file);
        git(stage.path(), "Bob", &["rev-parse", "HEAD"])
    };
    let commit = removes(&stage, "b");
    let removed = record(&stage, "b", "Removed").await;
    let actor = &removed["actor"];
    assert_eq!((&removed["action"], &actor["revision"]), (&json!("delete"), &json!(commit)), "{removed}");
    assert_eq!(actor["commit"]["author"], "Bob <bob@example.com>", "{removed}");
    assert_eq!((&actor["commit"]["id"], &actor["commit"]["subject"]), (&json!(commit), &json!("No more b")));

    // The same while evenkeel is down.
    stage.evenkeel.terminate().await;
    let commit = removes(&stage, "c");
    stage.evenkeel.start_again().await;
    let removed = record(&stage, "c", "Removed").await;
    assert_eq!(removed["actor"]["commit"]["id"], json!(commit), "{removed}");

    // What nobody has committed is nobody's.
    stage.declared.server("d", &server.spec(""));
    stage.evenkeel.attached("d").await;
    stage.declared.remove("a.yaml");
    let removed = record(&stage, "a", "Removed").await;
    assert!(removed["actor"]["commit"].is_null(), "{removed}");
}
