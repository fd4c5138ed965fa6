//! Skills, and the ConfigMaps that hold them.

use serde_json::Value;
use tempfile::TempDir;

use crate::rig::{FakeHttpServer, Script, ServerEra};
use crate::support::eventually;
use crate::test_namespace::{TestNamespace, condition};

fn skill_yaml(name: &str, spec: &str) -> String {
    format!(
        "apiVersion: evenkeel.dev/v1alpha1\nkind: Skill\nmetadata: {{ name: {name} }}\nspec: {{ {spec} }}\n---\n"
    )
}

fn config_map_yaml(name: &str, description: &str) -> String {
    format!(
        "apiVersion: v1\nkind: ConfigMap\nmetadata: {{ name: {name} }}\ndata:\n  more.txt: more\n  SKILL.md: |\n    ---\n    \
         name: {name}\n    description: {description}\n    ---\nbinaryData:\n  logo.png: iVBORw==\n---\n"
    )
}

async fn get_skill(ns: &TestNamespace<'_>, name: &str) -> Value {
    serde_json::from_str(&ns.kubectl(&["get", "skill", name, "-o", "json"]).await).unwrap()
}

/// Waits until a condition has this status and reason, and returns its message.
async fn wait_for_condition(
    ns: &TestNamespace<'_>,
    name: &str,
    condition_type: &str,
    status: &str,
    reason: &str,
) -> String {
    eventually(&format!("{name}: {condition_type}={status}/{reason}"), async || {
        let (actual_status, actual_reason, message) = condition(&get_skill(ns, name).await, condition_type)?;
        (actual_status == status && actual_reason == reason).then_some(message)
    })
    .await
}

#[tokio::test]
#[cfg_attr(without_api_server, ignore = "needs Go, for a Kubernetes API server")]
async fn config_map_changes_update_the_skill_and_keep_connections() {
    let ns = TestNamespace::create_shared().await;
    let rig = FakeHttpServer::start(Script::new("healthy", ServerEra::Legacy).tools(&["echo"])).await;
    let agents = TempDir::with_prefix("agents").unwrap();
    let sync = agents.path().join("skills");
    let read = |file: &str| std::fs::read(sync.join(file)).ok();
    let evenkeel = ns.run(&["--sync-skills", sync.to_str().unwrap()]).await;
    ns.apply_http_server("healthy", &rig).await;
    ns.wait_until_attached("healthy").await;
    let connections = rig.counters().connections;

    ns.apply(
        &(skill_yaml("notes", "configMapRef: { name: notes }") + &skill_yaml("text", "inline: \"---\"")),
    )
    .await;
    let message = wait_for_condition(&ns, "notes", "ResolvedRefs", "False", "ConfigMapNotFound").await;
    assert!(message.contains("ConfigMap \"notes\" is not in namespace"), "{message}");
    assert!(
        condition(&get_skill(&ns, "notes").await, "Stalled").is_none(),
        "the ConfigMap may follow in the same apply"
    );
    wait_for_condition(&ns, "text", "Accepted", "False", "InvalidSpec").await;

    ns.apply(&config_map_yaml("notes", "Write notes.")).await;
    wait_for_condition(&ns, "notes", "Ready", "True", "Available").await;
    assert_eq!(get_skill(&ns, "notes").await["status"]["files"], 3);
    eventually("the skill is written", async || read("notes/SKILL.md").map(drop)).await;
    assert_eq!(read("notes/logo.png").unwrap(), b"\x89PNG");
    assert_eq!(read("notes/more.txt").unwrap(), b"more");

    let text = get_skill(&ns, "text").await["metadata"]["resourceVersion"].clone();
    ns.apply(&config_map_yaml("notes", "Write better notes.")).await;
    let synced_text_contains = |part: &'static str| {
        read("notes/SKILL.md").is_some_and(|bytes| String::from_utf8_lossy(&bytes).contains(part))
    };
    eventually("the edit is written", async || synced_text_contains("better").then_some(())).await;
    let status_updated = async || {
        let skill = get_skill(&ns, "notes").await;
        (skill["status"]["description"] == "Write better notes.").then_some(())
    };
    eventually("the edit is in the status", status_updated).await;

    // Without the key, and without the ConfigMap, the last good content is kept.
    ns.kubectl(&[
        "patch",
        "configmap",
        "notes",
        "--type=json",
        "-p",
        "[{\"op\":\"remove\",\"path\":\"/data/SKILL.md\"}]",
    ])
    .await;
    let message = wait_for_condition(&ns, "notes", "ResolvedRefs", "False", "ConfigMapNotFound").await;
    assert!(message.contains("has no key SKILL.md"), "{message}");
    ns.kubectl(&["delete", "configmap", "notes"]).await;
    eventually("the missing ConfigMap is reported", async || {
        let (_, _, message) = condition(&get_skill(&ns, "notes").await, "ResolvedRefs")?;
        message.contains("is not in namespace").then_some(())
    })
    .await;
    let (ready, reason, _) = condition(&get_skill(&ns, "notes").await, "Ready").unwrap();
    assert_eq!((&*ready, &*reason), ("True", "Available"));
    assert!(synced_text_contains("better"));
    ns.kubectl(&["delete", "skill", "notes"]).await;
    eventually("the skill is removed", async || read("notes/SKILL.md").is_none().then_some(())).await;

    assert_eq!(
        get_skill(&ns, "text").await["metadata"]["resourceVersion"],
        text,
        "a change of one skill writes no other status"
    );
    assert_eq!((rig.counters().connections, rig.counters().initializes()), (connections, 1));
    assert!(!evenkeel.stderr().contains("panicked"), "{}", evenkeel.stderr());
}

#[tokio::test]
#[cfg_attr(without_api_server, ignore = "needs Go, for a Kubernetes API server")]
async fn skill_waits_for_its_server_and_restart_writes_no_status() {
    let ns = TestNamespace::create_shared().await;
    let rig = FakeHttpServer::start(Script::new("needed", ServerEra::Legacy).tools(&["echo"])).await;
    let agents = TempDir::with_prefix("agents").unwrap();
    let sync = agents.path().join("skills");
    let mut evenkeel = ns.run(&["--sync-skills", sync.to_str().unwrap()]).await;
    ns.apply(&config_map_yaml("notes", "Write notes.")).await;
    ns.apply(&skill_yaml("notes", "configMapRef: { name: notes }, serverRefs: [{ name: needed }]")).await;
    let message = wait_for_condition(&ns, "notes", "ResolvedRefs", "False", "ServerNotFound").await;
    assert!(message.contains("server \"needed\" is not declared"), "{message}");
    ns.apply_http_server("needed", &rig).await;
    wait_for_condition(&ns, "notes", "Ready", "True", "Available").await;
    wait_for_condition(&ns, "notes", "ResolvedRefs", "True", "ResolvedRefs").await;

    let version = get_skill(&ns, "notes").await["metadata"]["resourceVersion"].clone();
    evenkeel.terminate().await;
    evenkeel.restart().await;
    eventually("the server is attached again", async || (rig.counters().initializes() == 2).then_some(()))
        .await;
    // A later write: an earlier one of this skill would be done by then.
    ns.apply(&skill_yaml("marker", "inline: \"---\"")).await;
    wait_for_condition(&ns, "marker", "Accepted", "False", "InvalidSpec").await;
    tokio::time::sleep(std::time::Duration::from_secs(2)).await;
    assert_eq!(
        get_skill(&ns, "notes").await["metadata"]["resourceVersion"],
        version,
        "the status did not change"
    );
}
