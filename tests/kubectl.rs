//! Tests the status API of a directory with the real kubectl, without a cluster.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::disallowed_methods,
    reason = "tests"
)]

#[path = "rig/mod.rs"]
mod rig;
#[path = "support/mod.rs"]
mod support;

use std::os::unix::fs::PermissionsExt;

use evenkeel::resource::McpServer;
use futures_util::StreamExt;
use kube::ResourceExt;
use kube::api::{Api, ListParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::runtime::watcher;
use rig::{Action, FakeHttpServer, FakeStdioServer, Rule, Script};
use serde_json::Value;
use support::{Agent, Era, Evenkeel, Kubectl, TestDirectory, eventually, http, within};

/// An attached server, one with a label and a missing command, one in another namespace, and a skill.
struct TestFleet {
    declared: TestDirectory,
    good: FakeHttpServer,
    evenkeel: Evenkeel,
}

impl TestFleet {
    async fn start() -> Self {
        let good = FakeHttpServer::start(Script::default()).await;
        let declared = TestDirectory::new();
        // Health checks would be counted as connections.
        declared.write_server("good", &format!("{}\nhealth: {{ interval: 0s }}", good.spec()));
        let bad = "apiVersion: evenkeel.dev/v1alpha1\nkind: McpServer\n\
            metadata: { name: bad, labels: { area: code } }\nspec: { stdio: { command: no-such-program } }\n";
        declared.write("bad.yaml", bad);
        declared.write("elsewhere.yaml", &bad.replace("name: bad", "name: elsewhere, namespace: team"));
        let skill = "---\nname: notes\ndescription: Write notes.\n---\nWrite.";
        let skill = serde_json::json!({
            "apiVersion": "evenkeel.dev/v1alpha1", "kind": "Skill",
            "metadata": { "name": "notes" }, "spec": { "inline": skill },
        });
        declared.write("notes.yaml", &skill.to_string());
        let evenkeel = Evenkeel::run(declared.path()).await;
        evenkeel.wait_until_attached("good").await;
        evenkeel.wait_for("bad", "Ready", "False", "CommandNotFound").await;
        Self { declared, good, evenkeel }
    }

    fn kubectl(&self) -> Kubectl {
        Kubectl::for_instance(&self.evenkeel, self.declared.path())
    }
}

/// Returns the cells of a table by row. Callers ignore ages and values that depend on the machine.
fn table_rows(table: &str) -> Vec<Vec<&str>> {
    table.lines().map(|line| line.split_whitespace().collect()).collect()
}

fn column_values<'a>(rows: &[Vec<&'a str>], column: usize) -> Vec<&'a str> {
    rows.iter().skip(1).map(|row| row[column]).collect()
}

#[tokio::test]
#[cfg_attr(without_kubectl, ignore = "needs kubectl, or Go to build it")]
async fn get_prints_every_format() {
    let fleet = TestFleet::start().await;
    let kubectl = fleet.kubectl();

    let table = kubectl.stdout(&["get", "mcpservers"]).await;
    let table = table_rows(&table);
    assert_eq!(table[0], ["NAME", "READY", "REASON", "TRANSPORT", "TOOLS", "AGE"]);
    assert_eq!(table[1][..4], ["bad", "False", "CommandNotFound", "stdio"]);
    assert_eq!(table[2][..4], ["good", "True", "Attached", "http"]);
    assert_eq!(table.len(), 3, "{table:?}");

    let wide = kubectl.stdout(&["get", "mcps", "-o", "wide"]).await;
    assert_eq!(table_rows(&wide)[0][5..], ["PROTOCOL", "RESTARTS", "MESSAGE", "AGE"]);
    assert!(wide.contains("\"no-such-program\" was not found on PATH"), "{wide}");
    let category = kubectl.stdout(&["get", "mcp"]).await;
    assert!(
        category.contains("mcpserver.evenkeel.dev/good") && category.contains("skill.evenkeel.dev/notes")
    );
    let source = kubectl.stdout(&["get", "src", "-o", "wide"]).await;
    let directory = fleet.declared.path().to_str().unwrap();
    assert!(source.starts_with("NAME ") && source.contains("Available") && source.contains(directory));
    let skills = kubectl.stdout(&["get", "skl"]).await;
    assert_eq!(column_values(&table_rows(&skills), 0), ["notes"]);

    for (args, expected) in [
        (&["get", "mcps", "-o", "name"][..], "mcpserver.evenkeel.dev/bad\nmcpserver.evenkeel.dev/good\n"),
        (&["get", "mcps", "good", "-o", "jsonpath={.status.transport}"], "http"),
        (&["get", "mcps", "-o", "name", "-l", "area=code"], "mcpserver.evenkeel.dev/bad\n"),
        (&["get", "mcps", "-o", "name", "-l", "area notin (code, docs)"], "mcpserver.evenkeel.dev/good\n"),
        (
            &["get", "mcps", "-o", "name", "--field-selector", "metadata.name=good"],
            "mcpserver.evenkeel.dev/good\n",
        ),
        (&["get", "mcps", "-o", "name", "-n", "team"], "mcpserver.evenkeel.dev/elsewhere\n"),
        (&["get", "mcps", "-o", "name", "-n", "nowhere"], ""),
        (
            &["get", "mcps", "-o", "name", "--chunk-size=1"],
            "mcpserver.evenkeel.dev/bad\nmcpserver.evenkeel.dev/good\n",
        ),
        (&["get", "namespaces", "-o", "name"], "namespace/default\nnamespace/team\n"),
    ] {
        assert_eq!(kubectl.stdout(args).await, expected, "{args:?}");
    }
    let all = kubectl.stdout(&["get", "mcpservers", "-A"]).await;
    assert_eq!(column_values(&table_rows(&all), 0), ["default", "default", "team"]);
    assert_eq!(column_values(&table_rows(&all), 1), ["bad", "good", "elsewhere"]);
    let labels = kubectl.stdout(&["get", "mcps", "bad", "--show-labels"]).await;
    assert!(labels.contains("area=code"), "{labels}");
    let sorted = kubectl.stdout(&["get", "mcps", "--sort-by=.status.transport"]).await;
    assert_eq!(column_values(&table_rows(&sorted), 0), ["good", "bad"]);

    let json = kubectl.stdout(&["get", "mcpserver", "good", "-o", "json"]).await;
    let object: Value = serde_json::from_str(&json).unwrap();
    assert_eq!((&object["kind"], &object["status"]["attachedGeneration"]), (&"McpServer".into(), &1.into()));
    let yaml = kubectl.stdout(&["get", "mcpserver", "good", "-o", "yaml"]).await;
    assert!(yaml.starts_with("apiVersion: evenkeel.dev/v1alpha1\nkind: McpServer\n"), "{yaml}");

    let unknown = kubectl.run(&["get", "mcps", "nothing"]).await;
    assert!(
        !unknown.success && unknown.stderr.contains("mcpservers.evenkeel.dev \"nothing\" not found"),
        "{unknown:?}"
    );
}

#[tokio::test]
#[cfg_attr(without_kubectl, ignore = "needs kubectl, or Go to build it")]
async fn describe_events_explain_and_api_resources() {
    let fleet = TestFleet::start().await;
    let kubectl = fleet.kubectl();

    let described = kubectl.stdout(&["describe", "mcps", "bad"]).await;
    let (_, events) = described.split_once("\nEvents:").unwrap();
    assert!(events.contains("Created") && events.contains("declared in bad.yaml:1"), "{described}");
    assert!(events.contains("Warning") && events.contains("CommandNotFound"), "{described}");
    assert!(!events.contains("Attached"), "only events of this server: {described}");

    let events = kubectl.stdout(&["events", "--for", "mcpserver/good"]).await;
    assert!(events.contains("Attached") && !events.contains("bad"), "{events}");
    let table = kubectl.stdout(&["get", "events", "-A"]).await;
    assert_eq!(table_rows(&table)[0], ["NAMESPACE", "LAST", "SEEN", "TYPE", "REASON", "OBJECT", "MESSAGE"]);
    assert!(table.contains("mcpserver/elsewhere"), "{table}");

    let explained = kubectl.stdout(&["explain", "mcpserver.spec.stdio"]).await;
    for text in ["The child process to start", "command\t<string> -required-", "looked up on PATH"] {
        assert!(explained.to_lowercase().contains(&text.to_lowercase()), "{explained}");
    }
    let explained = kubectl.stdout(&["explain", "source.status"]).await;
    assert!(explained.contains("revision\t<string>"), "{explained}");
    let resources = kubectl.stdout(&["api-resources", "--api-group=evenkeel.dev", "--no-headers"]).await;
    let resources = table_rows(&resources);
    assert_eq!(resources[0], ["mcpservers", "mcps", "evenkeel.dev/v1alpha1", "true", "McpServer"]);
    assert_eq!(resources[1], ["skills", "skl", "evenkeel.dev/v1alpha1", "true", "Skill"]);
    assert_eq!(resources[2], ["sources", "src", "evenkeel.dev/v1alpha1", "false", "Source"]);
}

#[tokio::test]
#[cfg_attr(without_kubectl, ignore = "needs kubectl, or Go to build it")]
async fn watch_and_wait_follow_changes() {
    let fleet = TestFleet::start().await;
    let kubectl = fleet.kubectl();

    let watched = kubectl.spawn(&["get", "mcpservers", "-w"]);
    watched.wait_for_line(&["good", "True", "Attached"]).await;
    // A server that does not respond stays in Connecting until its timeout.
    let silent = FakeHttpServer::start(Script::default().on("POST", Rule::always(Action::Hang))).await;
    fleet.declared.write_server("late", &format!("{}\ntimeouts: {{ connect: 10m }}", silent.spec()));
    watched.wait_for_line(&["late", "False", "Connecting"]).await;
    fleet.declared.write_server("late", &fleet.good.spec());
    let lines = watched.wait_for_line(&["late", "True", "Attached"]).await;
    let headers = lines.iter().filter(|line| line.starts_with("NAME")).count();
    assert_eq!(headers, 1, "{lines:?}");

    let ready = kubectl.stdout(&["wait", "--for=condition=Ready", "mcps/late", "--timeout=60s"]).await;
    assert!(ready.contains("mcpserver.evenkeel.dev/late condition met"), "{ready}");
    let never = kubectl.run(&["wait", "--for=condition=Ready", "mcps/bad", "--timeout=100ms"]).await;
    assert!(!never.success && never.stderr.contains("timed out"), "{never:?}");

    // One command waits for a condition, the other for a deletion.
    let mut waits = kubectl.spawn(&["wait", "--for=condition=Ready", "mcps/bad", "--timeout=60s"]);
    let mut deletion = kubectl.spawn(&["wait", "--for=delete", "mcps/late", "--timeout=60s"]);
    let events = kubectl.spawn(&["events", "-w"]);
    events.wait_for_line(&["Attached", "McpServer/late"]).await;
    fleet.declared.write_server("bad", &fleet.good.spec());
    fleet.declared.remove("late.yaml");
    assert!(waits.wait_for_exit().await && deletion.wait_for_exit().await);
    events.wait_for_line(&["Removed", "McpServer/late"]).await;
    events.wait_for_line(&["Updated", "McpServer/bad", "generation 2"]).await;
}

#[tokio::test]
#[cfg_attr(without_kubectl, ignore = "needs kubectl, or Go to build it")]
async fn annotations_relist_or_reconnect_one_server() {
    let fleet = TestFleet::start().await;
    let peer = FakeHttpServer::start(Script::default()).await;
    fleet.declared.write_server("peer", &format!("{}\nhealth: {{ interval: 0s }}", peer.spec()));
    fleet.evenkeel.wait_until_attached("peer").await;
    let kubectl = fleet.kubectl();
    let open = |rig: &FakeHttpServer| rig.counters().streams == 1;
    eventually("both servers have a notification stream", async || {
        (open(&fleet.good) && open(&peer)).then_some(())
    })
    .await;
    let (before, untouched) = (fleet.good.counters(), peer.counters());
    let handshakes = |counters: &rig::Counters| counters.initializes() + counters.discovers();

    let annotate = |annotation: &'static str| {
        let kubectl = &kubectl;
        async move { kubectl.stdout(&["annotate", "--overwrite", "mcps/good", annotation]).await }
    };
    let output = annotate("evenkeel.dev/reconcile-requested-at=one").await;
    assert!(output.contains("mcpserver.evenkeel.dev/good annotated"), "{output}");
    eventually("the lists were read again", async || {
        (fleet.good.counters().tool_lists() > before.tool_lists()).then_some(())
    })
    .await;
    assert_eq!(handshakes(&fleet.good.counters()), handshakes(&before), "the connection was not replaced");
    let server = fleet.evenkeel.get_server("good").await.unwrap();
    assert_eq!(server["metadata"]["annotations"]["evenkeel.dev/reconcile-requested-at"], "one");
    // A change of another object, or of an old version, is rejected.
    let stale = [
        "annotate",
        "--overwrite",
        "--resource-version=1",
        "mcps/good",
        "evenkeel.dev/reconcile-requested-at=x",
    ];
    let output = kubectl.run(&stale).await;
    assert!(
        !output.success && output.stderr.contains("Conflict") && output.stderr.contains("read it again"),
        "{output:?}"
    );
    eventually("the status shows the handled request", async || {
        let server = fleet.evenkeel.get_server("good").await.unwrap();
        (server["status"]["lastHandledReconcileAt"] == "one").then_some(())
    })
    .await;

    annotate("evenkeel.dev/reconnect-requested-at=two").await;
    eventually("the connection was replaced", async || {
        (handshakes(&fleet.good.counters()) > handshakes(&before)).then_some(())
    })
    .await;
    fleet.evenkeel.wait_until_attached("good").await;
    assert_eq!(peer.counters(), untouched);

    // A failed server is retried at once.
    let broken = FakeStdioServer::new(Script::default());
    broken.edit_script(|script| script.stdio.exit_at_start = Some(9));
    let spec = format!("{}\nretry: {{ initial: 1h, max: 1h }}", broken.spec(""));
    fleet.declared.write_server("broken", &spec);
    fleet.evenkeel.wait_for("broken", "Ready", "False", "Exited").await;
    broken.edit_script(|script| script.stdio.exit_at_start = None);
    kubectl.stdout(&["annotate", "mcps/broken", "evenkeel.dev/reconcile-requested-at=now"]).await;
    fleet.evenkeel.wait_until_attached("broken").await;

    // A client without the token of the kubeconfig may only read.
    let path = fleet.evenkeel.admin("/apis/evenkeel.dev/v1alpha1/namespaces/default/mcpservers/good");
    let patch = "{\"metadata\":{\"annotations\":{\"evenkeel.dev/reconcile-requested-at\":\"x\"}}}";
    let kind = ("Content-Type", "application/merge-patch+json");
    for headers in [&[kind][..], &[kind, ("Authorization", "Bearer wrong")]] {
        let response = http::send(hyper::Method::PATCH, &path, headers, patch).await.unwrap();
        assert_eq!(response.status, 401);
    }
}

/// Tests kube-rs: streaming lists, typed objects, waits.
#[tokio::test]
async fn kube_client_lists_watches_and_waits() {
    let fleet = TestFleet::start().await;
    let kubeconfig =
        fleet.evenkeel.command(&["kubeconfig", fleet.declared.path().to_str().unwrap()]).output();
    let kubeconfig = String::from_utf8(kubeconfig.unwrap().stdout).unwrap();
    let mode = std::fs::metadata(kubeconfig.trim_end()).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let kubeconfig = Kubeconfig::read_from(kubeconfig.trim_end()).unwrap();
    let config =
        kube::Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await.unwrap();
    let servers: Api<McpServer> = Api::default_namespaced(kube::Client::try_from(config).unwrap());

    let names = |list: &kube::core::ObjectList<McpServer>| -> Vec<_> {
        list.items.iter().map(ResourceExt::name_any).collect()
    };
    let first = servers.list(&ListParams::default().limit(1)).await.unwrap();
    assert_eq!(names(&first), ["bad"]);
    let next = first.metadata.continue_.clone().unwrap();
    assert_eq!(names(&servers.list(&ListParams::default().continue_token(&next)).await.unwrap()), ["good"]);
    let metadata = servers.list_metadata(&ListParams::default().labels("area in (code)")).await.unwrap();
    assert_eq!(metadata.items.len(), 1);

    for config in [watcher::Config::default(), watcher::Config::default().streaming_lists()] {
        let mut watch = std::pin::pin!(watcher(servers.clone(), config));
        let mut seen = Vec::new();
        loop {
            match within("a list", watch.next()).await.unwrap().unwrap() {
                watcher::Event::InitApply(server) => seen.push(server.name_any()),
                watcher::Event::InitDone => break,
                _ => {}
            }
        }
        seen.sort();
        assert_eq!(seen, ["bad", "good"]);
        fleet.declared.write_server("late", &fleet.good.spec());
        loop {
            if let watcher::Event::Apply(server) = within("a change", watch.next()).await.unwrap().unwrap() {
                assert_eq!(server.name_any(), "late");
                break;
            }
        }
        fleet.declared.remove("late.yaml");
        loop {
            if let watcher::Event::Delete(server) = within("a deletion", watch.next()).await.unwrap().unwrap()
            {
                assert_eq!(server.name_any(), "late");
                break;
            }
        }
    }

    let ready = kube::runtime::wait::await_condition(servers.clone(), "bad", |server: Option<&McpServer>| {
        let conditions = server.and_then(|server| server.status.as_ref()).map(|status| &status.conditions);
        conditions.is_some_and(|all| {
            all.iter().any(|condition| condition.type_ == "Ready" && condition.status == "True")
        })
    });
    fleet.declared.write_server("bad", &fleet.good.spec());
    within("bad is ready", ready).await.unwrap();
}

#[test]
fn kubeconfig_fails_for_a_directory_that_was_never_run() {
    let home = tempfile::tempdir().unwrap();
    let output = std::process::Command::new(env!("CARGO_BIN_EXE_evenkeel"))
        .args(["kubeconfig", "/nowhere"])
        .env("XDG_STATE_HOME", home.path())
        .output()
        .unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert!(stderr.contains("evenkeel run /nowhere"), "{stderr}");
}

#[tokio::test]
#[cfg_attr(without_kubectl, ignore = "needs kubectl, or Go to build it")]
async fn declaration_changes_are_rejected_with_instructions() {
    let fleet = TestFleet::start().await;
    let kubectl = fleet.kubectl();
    let file = fleet.declared.path().join("bad.yaml");
    let other = fleet.declared.path().join("other.txt");
    std::fs::write(&other, std::fs::read_to_string(&file).unwrap().replace("no-such", "another")).unwrap();
    let (file, other) = (file.to_str().unwrap(), other.to_str().unwrap());
    let edit = format!("edit the files in {}", fleet.declared.path().display());
    for args in [
        &["delete", "mcps", "good", "--wait=false"][..],
        &["apply", "-f", other],
        &["apply", "--server-side", "-f", other],
        &["replace", "-f", other],
        &["create", "-f", file],
        &["label", "mcps/good", "a=b"],
        &["annotate", "mcps/good", "a=b"],
        &["annotate", "src/directory", "evenkeel.dev/reconcile-requested-at=1"],
        &["patch", "mcps/good", "--type=json", "-p", "[{\"op\":\"remove\",\"path\":\"/spec/http\"}]"],
    ] {
        let output = kubectl.run(args).await;
        assert!(!output.success && output.stderr.contains(&edit), "{args:?}: {output:?}");
    }
    let output = tokio::process::Command::from({
        let mut command = kubectl.command(&["edit", "mcps/bad"]);
        command.env("EDITOR", "sed -i s/no-such/another/");
        command
    })
    .output()
    .await
    .unwrap();
    assert!(String::from_utf8_lossy(&output.stderr).contains(&edit), "{output:?}");
    fleet.evenkeel.wait_until_attached("good").await;
    assert_eq!(fleet.good.counters().initializes() + fleet.good.counters().discovers(), 1);
}

/// Promise 6: a fleet under load that does not change writes nothing, and status requests send nothing to servers.
#[tokio::test]
async fn status_reads_write_nothing_and_reach_no_server() {
    let fleet = TestFleet::start().await;
    let version = async || {
        let list = http::get(&fleet.evenkeel.admin("/apis/evenkeel.dev/v1alpha1/mcpservers")).await.unwrap();
        let list: Value = serde_json::from_str(&list).unwrap();
        list["metadata"]["resourceVersion"].as_str().unwrap().to_owned()
    };
    let agent = Agent::connect(Era::Modern, &fleet.evenkeel.url()).await;
    agent.call_text("good_echo", "{}").await;
    let before = version().await;
    let counted = fleet.good.counters();
    for call in 0..100 {
        agent.call_text("good_echo", "{}").await;
        if call % 10 == 0 {
            for path in ["mcpservers", "namespaces/default/mcpservers/good", "skills", "sources"] {
                http::get(&fleet.evenkeel.admin(&format!("/apis/evenkeel.dev/v1alpha1/{path}")))
                    .await
                    .unwrap();
            }
            http::get(&fleet.evenkeel.admin("/metrics")).await.unwrap();
            http::get(&fleet.evenkeel.admin("/api/v1/events")).await.unwrap();
        }
    }
    assert_eq!(version().await, before);
    let now = fleet.good.counters();
    assert_eq!(now.calls(), counted.calls() + 100);
    let others = |counters: &rig::Counters| {
        let mut methods = counters.methods.clone();
        methods.remove("tools/call");
        methods
    };
    assert_eq!(others(&now), others(&counted), "no other request was sent");
}
