//! Files change while sessions are open: the sessions get the changes, and no other server is disturbed.

use std::time::{Duration, Instant};

use crate::control_servers::{self, ControlServers};
use crate::fixture::{EvenkeelFixture, Watcher, error_text};
use crate::rig::{FakeHttpServer, FakeServerProcess, FakeStdioServer, Script, ServerEra};
use crate::support::{eventually, within};

/// Open sessions of both eras, control servers, and a server `subject` over stdio.
struct FileChangeFixture {
    fixture: EvenkeelFixture,
    controls: ControlServers,
    watchers: [Watcher; 2],
    subject: FakeStdioServer,
}

impl FileChangeFixture {
    async fn start() -> Self {
        let fixture = EvenkeelFixture::start(&[]).await;
        let controls = ControlServers::attach(&fixture).await;
        let subject = FakeStdioServer::new(Script::new("subject", ServerEra::Dual));
        let watchers = fixture.watchers(&control_servers::TOOLS).await;
        let mut setup = Self { fixture, controls, watchers, subject };
        // The first file is the first change that the sessions get.
        setup.declare("", "").await;
        setup.wait_for_tools(&["subject_echo", "subject_report"]).await;
        setup
    }

    /// Declares the subject with additional metadata and spec lines.
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

    /// Waits until every session got a notification after which it lists the control servers' tools and these.
    async fn wait_for_tools(&mut self, tools: &[&str]) {
        let all: Vec<_> = control_servers::TOOLS.iter().chain(tools).copied().collect();
        for watcher in &mut self.watchers {
            within("a notification and the new list", watcher.wait_for_tools(&all)).await;
        }
    }

    /// Calls the subject from every session, and returns the value of a variable in its environment.
    async fn env_var(&self, name: &str) -> Option<String> {
        let mut value = None;
        for watcher in &self.watchers {
            let report = watcher.agent.call_text("subject_report", "{}").await;
            let report: serde_json::Value = serde_json::from_str(&report).unwrap();
            value = report["env"][name].as_str().map(ToOwned::to_owned);
        }
        value
    }

    /// Returns the notifications that the legacy session received and that no wait consumed.
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
    let mut setup = FileChangeFixture::start().await;
    setup.controls.assert_untouched(&setup.fixture).await;
    assert_eq!(setup.env_var("ABSENT").await, None);

    setup.fixture.declared.remove("subject.yaml");
    setup.wait_for_tools(&[]).await;
    for process in setup.subject.processes() {
        within("the process of a deleted server exits", process.wait_for_exit()).await;
    }
    for watcher in &setup.watchers {
        let text = error_text(&watcher.agent.call("subject_echo", "{}").await.unwrap());
        assert!(text.contains("default/subject") && text.contains("Do not call it again"), "{text}");
    }
    eventually("a deleted server has no status", async || {
        setup.fixture.evenkeel.get_server("subject").await.is_none().then_some(())
    })
    .await;
    setup.controls.assert_untouched(&setup.fixture).await;

    setup.declare("", "").await;
    setup.wait_for_tools(&["subject_echo", "subject_report"]).await;
    assert_eq!(setup.subject.live_processes().len(), 1);
    setup.controls.assert_untouched(&setup.fixture).await;
}

#[tokio::test]
async fn edited_env_replaces_only_that_process() {
    let mut setup = FileChangeFixture::start().await;
    let old_process = setup.subject.live_processes().pop().unwrap();
    setup.declare_with("", ", env: [{ name: COLOUR, value: green }]", "");
    setup.fixture.wait_for_generation("subject", 2).await;
    within("the old process exits", old_process.wait_for_exit()).await;
    assert_eq!(setup.env_var("COLOUR").await.as_deref(), Some("green"));
    assert_eq!(setup.subject.processes().len(), 2);
    assert_eq!(
        setup.pending_notifications(),
        Vec::<String>::new(),
        "the list is unchanged, so no notification is sent"
    );
    setup.controls.assert_untouched(&setup.fixture).await;
}

#[tokio::test]
async fn equivalent_spec_keeps_the_connection() {
    let setup = FileChangeFixture::start().await;
    let env = |first: &str, second: &str| format!(", env: [{first}, {second}]");
    let (red, big) = ("{ name: COLOUR, value: red }", "{ name: SIZE, value: big }");
    setup.declare_with("", &env(red, big), "");
    setup.fixture.wait_for_generation("subject", 2).await;
    let pids = setup.pids();
    let rig = FakeHttpServer::start(Script::new("web", ServerEra::Legacy).tools(&["echo"])).await;
    let http = |host: &str, headers: &str| {
        format!("http: {{ url: \"http://{host}:{}/mcp\", headers: [{headers}] }}", rig.address().port())
    };
    let (one, two) = ("{ name: X-One, value: a }", "{ name: X-Two, value: b }");
    setup.fixture.attach("web", &http("localhost", &format!("{one}, {two}"))).await;
    let sessions = rig.counters().sessions_opened;

    setup.declare_with("", &env(big, red), "");
    setup.fixture.wait_for_generation("subject", 3).await;
    setup.fixture.declared.write_server("web", &http("LOCALHOST", &format!("{}, {one}", two.to_lowercase())));
    setup.fixture.wait_for_generation("web", 2).await;
    assert_eq!(setup.pids(), pids);
    assert_eq!(rig.counters().sessions_opened, sessions);
    assert_eq!(setup.env_var("COLOUR").await.as_deref(), Some("red"));
    setup.controls.assert_untouched(&setup.fixture).await;
}

#[tokio::test]
async fn burst_of_partial_edits_causes_one_replacement() {
    let setup = FileChangeFixture::start().await;
    let text = |colour| setup.yaml("", &format!(", env: [{{ name: COLOUR, value: {colour} }}]"), "");
    let mut processes = 1;
    for last in ["blue", "white", "violet", "brown", "black"] {
        let started_at = Instant::now();
        for text in
            [String::new(), text("red"), String::new(), text("green"), text(last)[..90].into(), text(last)]
        {
            setup.fixture.declared.overwrite("subject.yaml", &text);
        }
        let is_burst = started_at.elapsed() < Duration::from_millis(100);
        eventually("the last content is live", async || {
            (setup.env_var("COLOUR").await.as_deref() == Some(last)).then_some(())
        })
        .await;
        let previous = std::mem::replace(&mut processes, setup.subject.processes().len());
        // A slower series of writes counts as several edits: the machine stalled.
        if is_burst {
            assert_eq!(processes, previous + 1, "one new process for the burst");
            setup.controls.assert_untouched(&setup.fixture).await;
            return;
        }
    }
    panic!("this machine is too slow for a burst of edits");
}

#[tokio::test]
async fn labels_filters_and_prefixes_apply_to_the_live_connection() {
    let mut setup = FileChangeFixture::start().await;
    let pids = setup.pids();
    let lists = setup.subject.live_processes()[0].counters().await.tool_lists();

    setup.declare(", labels: { area: code }", "").await;
    eventually("the label is in the status API", async || {
        (setup.fixture.server("subject").await["metadata"]["labels"]["area"] == "code").then_some(())
    })
    .await;
    assert_eq!(setup.pending_notifications(), Vec::<String>::new(), "a label change sends no notification");

    setup.declare("", "  expose: { tools: { deny: [\"rep*\"] } }\n").await;
    setup.wait_for_tools(&["subject_echo"]).await;
    setup.declare("", "  expose: { prefix: zebra }\n").await;
    setup.wait_for_tools(&["zebra_echo", "zebra_report"]).await;
    setup.declare("", "  expose: { prefix: zebra }\n  timeouts: { call: 5m }\n  gracePeriod: 10s\n").await;
    setup.fixture.wait_for_generation("subject", 4).await;
    assert_eq!(setup.pending_notifications(), Vec::<String>::new(), "a timeout change sends no notification");

    assert_eq!(setup.pids(), pids);
    let after = setup.subject.live_processes()[0].counters().await;
    assert_eq!((after.tool_lists(), after.initializes()), (lists, 0));
    setup.controls.assert_untouched(&setup.fixture).await;
}

#[tokio::test]
async fn renamed_file_keeps_the_object() {
    let mut setup = FileChangeFixture::start().await;
    let (pids, uid) = (setup.pids(), setup.uid().await);
    let marker = FakeStdioServer::new(Script::new("marker", ServerEra::Dual).tools(&["echo"]));
    setup.fixture.declared.rename("subject.yaml", "other.yaml");
    // The marker is declared after the rename, so the rename was scanned with it; a removal takes effect at the second
    // scan.
    setup.fixture.attach("zmarker", &marker.spec("")).await;
    setup.wait_for_tools(&["subject_echo", "subject_report", "zmarker_echo"]).await;
    setup.fixture.declared.remove("zmarker.yaml");
    setup.wait_for_tools(&["subject_echo", "subject_report"]).await;

    assert_eq!((setup.pids(), setup.uid().await), (pids, uid));
    assert_eq!(setup.fixture.server("subject").await["metadata"]["generation"], 1);
    // The object now belongs to the new file.
    setup.fixture.declared.remove("other.yaml");
    setup.wait_for_tools(&[]).await;
    setup.controls.assert_untouched(&setup.fixture).await;
}

#[tokio::test]
async fn broken_file_keeps_its_declaration_and_reports_the_line() {
    let mut setup = FileChangeFixture::start().await;
    let pids = setup.pids();
    let broken = setup.yaml("", "", "  expose: { prefix: [\n");
    setup.fixture.declared.overwrite("subject.yaml", &broken);
    let accepted = setup.fixture.evenkeel.wait_for("subject", "Accepted", "False", "ParseError").await;
    assert!(accepted.message.contains("subject.yaml:"), "{accepted:?}");
    let lines = 6..=7;
    assert!(
        lines.clone().any(|line| accepted.message.contains(&format!("subject.yaml:{line}"))),
        "{accepted:?}"
    );
    assert!(accepted.message.contains("stays in force"), "{accepted:?}");
    setup.fixture.evenkeel.wait_for("subject", "Attached", "True", "ServingPreviousGeneration").await;
    assert_eq!(setup.env_var("ABSENT").await, None);
    assert_eq!(setup.pending_notifications(), Vec::<String>::new());

    // Other files are still applied.
    let late = FakeStdioServer::new(Script::new("late", ServerEra::Dual).tools(&["echo"]));
    setup.fixture.attach("zlate", &late.spec("")).await;
    setup.wait_for_tools(&["subject_echo", "subject_report", "zlate_echo"]).await;

    setup.fixture.declared.overwrite("subject.yaml", &setup.yaml("", "", "  expose: { prefix: repaired }\n"));
    setup.fixture.evenkeel.wait_for("subject", "Accepted", "True", "Accepted").await;
    eventually("the repaired file is applied", async || {
        let tools = setup.watchers[0].agent.tool_names().await;
        tools.contains(&"repaired_echo".to_owned()).then_some(())
    })
    .await;
    assert_eq!(setup.pids(), pids);
    setup.controls.assert_untouched(&setup.fixture).await;
}
