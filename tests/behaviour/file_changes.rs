//! A file is saved under running sessions: they see what changed, and nothing else is disturbed.

use std::time::{Duration, Instant};

use crate::control_servers::{self, ControlServers};
use crate::fixture::{EvenkeelFixture, Watcher, error_text};
use crate::rig::{FakeHttpServer, FakeServerProcess, FakeStdioServer, Script, ServerEra};
use crate::support::{eventually, within};

/// Running sessions of both eras, peers, and a server `subject` over stdio.
struct FileChangeFixture {
    fixture: EvenkeelFixture,
    controls: ControlServers,
    watchers: [Watcher; 2],
    subject: FakeStdioServer,
}

impl FileChangeFixture {
    async fn start() -> Self {
        let stage = EvenkeelFixture::start(&[]).await;
        let peers = ControlServers::attach(&stage).await;
        let subject = FakeStdioServer::new(Script::new("subject", ServerEra::Dual));
        let watchers = stage.watchers(&control_servers::TOOLS).await;
        let mut scene = Self { fixture: stage, controls: peers, watchers, subject };
        // The first change that the sessions see is the first file.
        scene.declare("", "").await;
        scene.wait_for_tools(&["subject_echo", "subject_report"]).await;
        scene
    }

    /// Declares the subject with more metadata and more lines of spec.
    async fn declare(&self, metadata: &str, more: &str) {
        self.declare_with(metadata, "", more);
        if metadata.is_empty() && more.is_empty() {
            self.fixture.evenkeel.wait_until_attached("subject").await;
        }
    }

    fn declare_with(&self, metadata: &str, stdio: &str, more: &str) {
        self.fixture.declared.write("subject.yaml", &self.yaml(metadata, stdio, more));
    }

    fn yaml(&self, metadata: &str, stdio: &str, more: &str) -> String {
        format!(
            "apiVersion: evenkeel.dev/v1alpha1\nkind: McpServer\nmetadata: {{ name: subject{metadata} }}\nspec:\n  {}\n{more}",
            self.subject.spec(stdio)
        )
    }

    /// Waits until every session was led by a notice to the peers' tools and these.
    async fn wait_for_tools(&mut self, tools: &[&str]) {
        let all: Vec<_> = control_servers::TOOLS.iter().chain(tools).copied().collect();
        for watcher in &mut self.watchers {
            within("a notice and the new list", watcher.wait_for_tools(&all)).await;
        }
    }

    /// Calls the subject from every session; the value of a variable in its environment.
    async fn env_var(&self, name: &str) -> Option<String> {
        let mut found = None;
        for watcher in &self.watchers {
            let report = watcher.agent.call_text("subject_report", "{}").await;
            let report: serde_json::Value = serde_json::from_str(&report).unwrap();
            found = report["env"][name].as_str().map(ToOwned::to_owned);
        }
        found
    }

    /// What the legacy session was told that led to nothing.
    fn pending_notifications(&mut self) -> Vec<String> {
        self.watchers[0].pending_notifications()
    }

    fn pids(&self) -> Vec<u32> {
        self.subject.processes().iter().map(FakeServerProcess::pid).collect()
    }

    async fn uid(&self) -> String {
        self.fixture.server("subject").await["metadata"]["uid"].as_str().unwrap().to_owned()
    }
}

#[tokio::test]
async fn added_and_deleted_file_updates_sessions_and_nothing_else() {
    let mut scene = FileChangeFixture::start().await;
    scene.controls.assert_untouched(&scene.fixture).await;
    assert_eq!(scene.env_var("ABSENT").await, None);

    scene.fixture.declared.remove("subject.yaml");
    scene.wait_for_tools(&[]).await;
    for process in scene.subject.processes() {
        within("the process of a deleted server ends", process.wait_for_exit()).await;
    }
    for watcher in &scene.watchers {
        let text = error_text(&watcher.agent.call("subject_echo", "{}").await.unwrap());
        assert!(text.contains("default/subject") && text.contains("Do not call it again"), "{text}");
    }
    eventually("a deleted server has no status", async || {
        scene.fixture.evenkeel.get_server("subject").await.is_none().then_some(())
    })
    .await;
    scene.controls.assert_untouched(&scene.fixture).await;

    scene.declare("", "").await;
    scene.wait_for_tools(&["subject_echo", "subject_report"]).await;
    assert_eq!(scene.subject.live_processes().len(), 1);
    scene.controls.assert_untouched(&scene.fixture).await;
}

#[tokio::test]
async fn edited_env_replaces_only_that_process() {
    let mut scene = FileChangeFixture::start().await;
    let before = scene.subject.live_processes().pop().unwrap();
    scene.declare_with("", ", env: [{ name: COLOUR, value: green }]", "");
    scene.fixture.wait_for_generation("subject", 2).await;
    within("the process before ends", before.wait_for_exit()).await;
    assert_eq!(scene.env_var("COLOUR").await.as_deref(), Some("green"));
    assert_eq!(scene.subject.processes().len(), 2);
    assert_eq!(
        scene.pending_notifications(),
        Vec::<String>::new(),
        "the list is the same: there is nothing to tell"
    );
    scene.controls.assert_untouched(&scene.fixture).await;
}

#[tokio::test]
async fn equivalent_spec_keeps_the_connection() {
    let scene = FileChangeFixture::start().await;
    let env = |first: &str, second: &str| format!(", env: [{first}, {second}]");
    let (red, big) = ("{ name: COLOUR, value: red }", "{ name: SIZE, value: big }");
    scene.declare_with("", &env(red, big), "");
    scene.fixture.wait_for_generation("subject", 2).await;
    let pids = scene.pids();
    let rig = FakeHttpServer::start(Script::new("web", ServerEra::Legacy).tools(&["echo"])).await;
    let http = |host: &str, headers: &str| {
        format!("http: {{ url: \"http://{host}:{}/mcp\", headers: [{headers}] }}", rig.address().port())
    };
    let (one, two) = ("{ name: X-One, value: a }", "{ name: X-Two, value: b }");
    scene.fixture.attach("web", &http("localhost", &format!("{one}, {two}"))).await;
    let sessions = rig.counters().sessions_opened;

    scene.declare_with("", &env(big, red), "");
    scene.fixture.wait_for_generation("subject", 3).await;
    scene.fixture.declared.write_server("web", &http("LOCALHOST", &format!("{}, {one}", two.to_lowercase())));
    scene.fixture.wait_for_generation("web", 2).await;
    assert_eq!(scene.pids(), pids);
    assert_eq!(rig.counters().sessions_opened, sessions);
    assert_eq!(scene.env_var("COLOUR").await.as_deref(), Some("red"));
    scene.controls.assert_untouched(&scene.fixture).await;
}

#[tokio::test]
async fn burst_of_partial_edits_causes_one_replacement() {
    let scene = FileChangeFixture::start().await;
    let text = |colour| scene.yaml("", &format!(", env: [{{ name: COLOUR, value: {colour} }}]"), "");
    let mut processes = 1;
    for last in ["blue", "white", "violet", "brown", "black"] {
        let begun = Instant::now();
        for text in
            [String::new(), text("red"), String::new(), text("green"), text(last)[..90].into(), text(last)]
        {
            scene.fixture.declared.overwrite("subject.yaml", &text);
        }
        let is_burst = begun.elapsed() < Duration::from_millis(100);
        eventually("the last content is live", async || {
            (scene.env_var("COLOUR").await.as_deref() == Some(last)).then_some(())
        })
        .await;
        let before = std::mem::replace(&mut processes, scene.subject.processes().len());
        // What takes longer is more than one edit to whoever watches: the machine stood still.
        if is_burst {
            assert_eq!(processes, before + 1, "one process before, one after");
            scene.controls.assert_untouched(&scene.fixture).await;
            return;
        }
    }
    panic!("this machine is too slow for a burst of edits");
}

#[tokio::test]
async fn labels_filters_and_prefixes_apply_to_the_live_connection() {
    let mut scene = FileChangeFixture::start().await;
    let pids = scene.pids();
    let lists = scene.subject.live_processes()[0].counters().await.tool_lists();

    scene.declare(", labels: { area: code }", "").await;
    eventually("the label is told", async || {
        (scene.fixture.server("subject").await["metadata"]["labels"]["area"] == "code").then_some(())
    })
    .await;
    assert_eq!(scene.pending_notifications(), Vec::<String>::new(), "a label is nothing to agents");

    scene.declare("", "  expose: { tools: { deny: [\"rep*\"] } }\n").await;
    scene.wait_for_tools(&["subject_echo"]).await;
    scene.declare("", "  expose: { prefix: zebra }\n").await;
    scene.wait_for_tools(&["zebra_echo", "zebra_report"]).await;
    scene.declare("", "  expose: { prefix: zebra }\n  timeouts: { call: 5m }\n  gracePeriod: 10s\n").await;
    scene.fixture.wait_for_generation("subject", 4).await;
    assert_eq!(scene.pending_notifications(), Vec::<String>::new(), "a timeout is nothing to agents");

    assert_eq!(scene.pids(), pids);
    let after = scene.subject.live_processes()[0].counters().await;
    assert_eq!((after.tool_lists(), after.initializes()), (lists, 0));
    scene.controls.assert_untouched(&scene.fixture).await;
}

#[tokio::test]
async fn renamed_file_keeps_the_object() {
    let mut scene = FileChangeFixture::start().await;
    let (pids, uid) = (scene.pids(), scene.uid().await);
    let marker = FakeStdioServer::new(Script::new("marker", ServerEra::Dual).tools(&["echo"]));
    scene.fixture.declared.rename("subject.yaml", "other.yaml");
    // What is seen after the rename was looked at after it, and what is taken away was looked at twice.
    scene.fixture.attach("zmarker", &marker.spec("")).await;
    scene.wait_for_tools(&["subject_echo", "subject_report", "zmarker_echo"]).await;
    scene.fixture.declared.remove("zmarker.yaml");
    scene.wait_for_tools(&["subject_echo", "subject_report"]).await;

    assert_eq!((scene.pids(), scene.uid().await), (pids, uid));
    assert_eq!(scene.fixture.server("subject").await["metadata"]["generation"], 1);
    // It is the new file that counts now.
    scene.fixture.declared.remove("other.yaml");
    scene.wait_for_tools(&[]).await;
    scene.controls.assert_untouched(&scene.fixture).await;
}

#[tokio::test]
async fn broken_file_keeps_its_declaration_and_reports_the_line() {
    let mut scene = FileChangeFixture::start().await;
    let pids = scene.pids();
    let broken = scene.yaml("", "", "  expose: { prefix: [\n");
    scene.fixture.declared.overwrite("subject.yaml", &broken);
    let accepted = scene.fixture.evenkeel.wait_for("subject", "Accepted", "False", "ParseError").await;
    assert!(accepted.message.contains("subject.yaml:"), "{accepted:?}");
    let lines = 6..=7;
    assert!(
        lines.clone().any(|line| accepted.message.contains(&format!("subject.yaml:{line}"))),
        "{accepted:?}"
    );
    assert!(accepted.message.contains("stays in force"), "{accepted:?}");
    scene.fixture.evenkeel.wait_for("subject", "Attached", "True", "ServingPreviousGeneration").await;
    assert_eq!(scene.env_var("ABSENT").await, None);
    assert_eq!(scene.pending_notifications(), Vec::<String>::new());

    // Other files are applied all the same.
    let late = FakeStdioServer::new(Script::new("late", ServerEra::Dual).tools(&["echo"]));
    scene.fixture.attach("zlate", &late.spec("")).await;
    scene.wait_for_tools(&["subject_echo", "subject_report", "zlate_echo"]).await;

    scene.fixture.declared.overwrite("subject.yaml", &scene.yaml("", "", "  expose: { prefix: mended }\n"));
    scene.fixture.evenkeel.wait_for("subject", "Accepted", "True", "Accepted").await;
    eventually("the mended file counts", async || {
        let tools = scene.watchers[0].agent.tool_names().await;
        tools.contains(&"mended_echo".to_owned()).then_some(())
    })
    .await;
    assert_eq!(scene.pids(), pids);
    scene.controls.assert_untouched(&scene.fixture).await;
}
