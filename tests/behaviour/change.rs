//! A file is saved under running sessions: they see what changed, and nothing else is disturbed.

use std::time::{Duration, Instant};

use crate::peers::{self, Peers};
use crate::rig::{Era as RigEra, Http, Process, Script, Stdio};
use crate::stage::{Stage, Watcher, told};
use crate::support::{eventually, within};

/// Running sessions of both eras, peers, and a server `subject` over stdio.
struct Scene {
    stage: Stage,
    peers: Peers,
    watchers: [Watcher; 2],
    subject: Stdio,
}

impl Scene {
    async fn open() -> Self {
        let stage = Stage::start(&[]).await;
        let peers = Peers::attach(&stage).await;
        let subject = Stdio::new(Script::new("subject", RigEra::Dual));
        let watchers = stage.watchers(&peers::TOOLS).await;
        let mut scene = Self { stage, peers, watchers, subject };
        // The first change that the sessions see is the first file.
        scene.declare("", "").await;
        scene.see(&["subject_echo", "subject_report"]).await;
        scene
    }

    /// Declares the subject with more metadata and more lines of spec.
    async fn declare(&self, metadata: &str, more: &str) {
        self.declare_with(metadata, "", more);
        if metadata.is_empty() && more.is_empty() {
            self.stage.evenkeel.attached("subject").await;
        }
    }

    fn declare_with(&self, metadata: &str, stdio: &str, more: &str) {
        self.stage.declared.write("subject.yaml", &self.yaml(metadata, stdio, more));
    }

    fn yaml(&self, metadata: &str, stdio: &str, more: &str) -> String {
        format!(
            "apiVersion: evenkeel.dev/v1alpha1\nkind: McpServer\nmetadata: {{ name: subject{metadata} }}\nspec:\n  {}\n{more}",
            self.subject.spec(stdio)
        )
    }

    /// Waits until every session was led by a notice to the peers' tools and these.
    async fn see(&mut self, tools: &[&str]) {
        let all: Vec<_> = peers::TOOLS.iter().chain(tools).copied().collect();
        for watcher in &mut self.watchers {
            within("a notice and the new list", watcher.sees(&all)).await;
        }
    }

    /// Calls the subject from every session; the value of a variable in its environment.
    async fn variable(&self, name: &str) -> Option<String> {
        let mut found = None;
        for watcher in &self.watchers {
            let report = watcher.agent.text("subject_report", "{}").await;
            let report: serde_json::Value = serde_json::from_str(&report).unwrap();
            found = report["env"][name].as_str().map(ToOwned::to_owned);
        }
        found
    }

    /// What the legacy session was told that led to nothing.
    fn heard(&mut self) -> Vec<String> {
        self.watchers[0].heard()
    }

    fn pids(&self) -> Vec<u32> {
        self.subject.processes().iter().map(Process::pid).collect()
    }

    async fn uid(&self) -> String {
        self.stage.server("subject").await["metadata"]["uid"].as_str().unwrap().to_owned()
    }
}

#[tokio::test]
async fn a_file_added_and_deleted_changes_running_sessions_and_nothing_else() {
    let mut scene = Scene::open().await;
    scene.peers.are_untouched(&scene.stage).await;
    assert_eq!(scene.variable("ABSENT").await, None);

    scene.stage.declared.remove("subject.yaml");
    scene.see(&[]).await;
    for process in scene.subject.processes() {
        within("the process of a deleted server ends", process.gone()).await;
    }
    for watcher in &scene.watchers {
        let text = told(&watcher.agent.call("subject_echo", "{}").await.unwrap());
        assert!(text.contains("default/subject") && text.contains("Do not call it again"), "{text}");
    }
    eventually("a deleted server has no status", async || {
        scene.stage.evenkeel.server("subject").await.is_none().then_some(())
    })
    .await;
    scene.peers.are_untouched(&scene.stage).await;

    scene.declare("", "").await;
    scene.see(&["subject_echo", "subject_report"]).await;
    assert_eq!(scene.subject.alive().len(), 1);
    scene.peers.are_untouched(&scene.stage).await;
}

#[tokio::test]
async fn an_edited_environment_replaces_that_one_process() {
    let mut scene = Scene::open().await;
    let before = scene.subject.alive().pop().unwrap();
    scene.declare_with("", ", env: [{ name: COLOUR, value: green }]", "");
    scene.stage.generation_attached("subject", 2).await;
    within("the process before ends", before.gone()).await;
    assert_eq!(scene.variable("COLOUR").await.as_deref(), Some("green"));
    assert_eq!(scene.subject.processes().len(), 2);
    assert_eq!(scene.heard(), Vec::<String>::new(), "the list is the same: there is nothing to tell");
    scene.peers.are_untouched(&scene.stage).await;
}

#[tokio::test]
async fn other_words_for_the_same_connection_leave_it_alone() {
    let scene = Scene::open().await;
    let env = |first: &str, second: &str| format!(", env: [{first}, {second}]");
    let (red, big) = ("{ name: COLOUR, value: red }", "{ name: SIZE, value: big }");
    scene.declare_with("", &env(red, big), "");
    scene.stage.generation_attached("subject", 2).await;
    let pids = scene.pids();
    let rig = Http::start(Script::new("web", RigEra::Legacy).tools(&["echo"])).await;
    let http = |host: &str, headers: &str| {
        format!("http: {{ url: \"http://{host}:{}/mcp\", headers: [{headers}] }}", rig.address().port())
    };
    let (one, two) = ("{ name: X-One, value: a }", "{ name: X-Two, value: b }");
    scene.stage.attach("web", &http("localhost", &format!("{one}, {two}"))).await;
    let sessions = rig.counters().sessions_opened;

    scene.declare_with("", &env(big, red), "");
    scene.stage.generation_attached("subject", 3).await;
    scene.stage.declared.server("web", &http("LOCALHOST", &format!("{}, {one}", two.to_lowercase())));
    scene.stage.generation_attached("web", 2).await;
    assert_eq!(scene.pids(), pids);
    assert_eq!(rig.counters().sessions_opened, sessions);
    assert_eq!(scene.variable("COLOUR").await.as_deref(), Some("red"));
    scene.peers.are_untouched(&scene.stage).await;
}

#[tokio::test]
async fn a_burst_of_half_written_edits_is_one_replacement_with_the_last_content() {
    let scene = Scene::open().await;
    let text = |colour| scene.yaml("", &format!(", env: [{{ name: COLOUR, value: {colour} }}]"), "");
    let mut processes = 1;
    for last in ["blue", "white", "violet", "brown", "black"] {
        let begun = Instant::now();
        for text in
            [String::new(), text("red"), String::new(), text("green"), text(last)[..90].into(), text(last)]
        {
            scene.stage.declared.overwrite("subject.yaml", &text);
        }
        let is_burst = begun.elapsed() < Duration::from_millis(100);
        eventually("the last content is live", async || {
            (scene.variable("COLOUR").await.as_deref() == Some(last)).then_some(())
        })
        .await;
        let before = std::mem::replace(&mut processes, scene.subject.processes().len());
        // What takes longer is more than one edit to whoever watches: the machine stood still.
        if is_burst {
            assert_eq!(processes, before + 1, "one process before, one after");
            scene.peers.are_untouched(&scene.stage).await;
            return;
        }
    }
    panic!("this machine is too slow for a burst of edits");
}

#[tokio::test]
async fn labels_filters_and_prefixes_apply_to_the_live_connection() {
    let mut scene = Scene::open().await;
    let pids = scene.pids();
    let lists = scene.subject.alive()[0].counters().await.lists();

    scene.declare(", labels: { area: code }", "").await;
    eventually("the label is told", async || {
        (scene.stage.server("subject").await["metadata"]["labels"]["area"] == "code").then_some(())
    })
    .await;
    assert_eq!(scene.heard(), Vec::<String>::new(), "a label is nothing to agents");

    scene.declare("", "  expose: { tools: { deny: [\"rep*\"] } }\n").await;
    scene.see(&["subject_echo"]).await;
    scene.declare("", "  expose: { prefix: zebra }\n").await;
    scene.see(&["zebra_echo", "zebra_report"]).await;
    scene.declare("", "  expose: { prefix: zebra }\n  timeouts: { call: 5m }\n  gracePeriod: 10s\n").await;
    scene.stage.generation_attached("subject", 4).await;
    assert_eq!(scene.heard(), Vec::<String>::new(), "a timeout is nothing to agents");

    assert_eq!(scene.pids(), pids);
    let after = scene.subject.alive()[0].counters().await;
    assert_eq!((after.lists(), after.initializes()), (lists, 0));
    scene.peers.are_untouched(&scene.stage).await;
}

#[tokio::test]
async fn a_renamed_file_holds_the_same_object() {
    let mut scene = Scene::open().await;
    let (pids, uid) = (scene.pids(), scene.uid().await);
    let marker = Stdio::new(Script::new("marker", RigEra::Dual).tools(&["echo"]));
    scene.stage.declared.rename("subject.yaml", "other.yaml");
    // What is seen after the rename was looked at after it, and what is taken away was looked at twice.
    scene.stage.attach("zmarker", &marker.spec("")).await;
    scene.see(&["subject_echo", "subject_report", "zmarker_echo"]).await;
    scene.stage.declared.remove("zmarker.yaml");
    scene.see(&["subject_echo", "subject_report"]).await;

    assert_eq!((scene.pids(), scene.uid().await), (pids, uid));
    assert_eq!(scene.stage.server("subject").await["metadata"]["generation"], 1);
    // It is the new file that counts now.
    scene.stage.declared.remove("other.yaml");
    scene.see(&[]).await;
    scene.peers.are_untouched(&scene.stage).await;
}

#[tokio::test]
async fn a_broken_file_keeps_what_it_declared_and_says_where_it_is_wrong() {
    let mut scene = Scene::open().await;
    let pids = scene.pids();
    let broken = scene.yaml("", "", "  expose: { prefix: [\n");
    scene.stage.declared.overwrite("subject.yaml", &broken);
    let accepted = scene.stage.evenkeel.wait_for("subject", "Accepted", "False", "ParseError").await;
    assert!(accepted.message.contains("subject.yaml:"), "{accepted:?}");
    let lines = 6..=7;
    assert!(
        lines.clone().any(|line| accepted.message.contains(&format!("subject.yaml:{line}"))),
        "{accepted:?}"
    );
    assert!(accepted.message.contains("stays in force"), "{accepted:?}");
    scene.stage.evenkeel.wait_for("subject", "Attached", "True", "ServingPreviousGeneration").await;
    assert_eq!(scene.variable("ABSENT").await, None);
    assert_eq!(scene.heard(), Vec::<String>::new());

    // Other files are applied all the same.
    let late = Stdio::new(Script::new("late", RigEra::Dual).tools(&["echo"]));
    scene.stage.attach("zlate", &late.spec("")).await;
    scene.see(&["subject_echo", "subject_report", "zlate_echo"]).await;

    scene.stage.declared.overwrite("subject.yaml", &scene.yaml("", "", "  expose: { prefix: mended }\n"));
    scene.stage.evenkeel.wait_for("subject", "Accepted", "True", "Accepted").await;
    eventually("the mended file counts", async || {
        let tools = scene.watchers[0].agent.tools().await;
        tools.contains(&"mended_echo".to_owned()).then_some(())
    })
    .await;
    assert_eq!(scene.pids(), pids);
    scene.peers.are_untouched(&scene.stage).await;
}
