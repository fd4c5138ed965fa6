//! The fixture of these tests: a directory of declarations, evenkeel running on it, and agents that follow
//! notifications.

use serde_json::Value;

use crate::rig::FakeHttpServer;
use crate::support::{Agent, Era, Evenkeel, NotificationStream, TestDirectory, eventually};

/// A retry spec without a second attempt during the test.
pub const NO_RETRY: &str = "retry: { initial: 1h, max: 1h }";

/// An evenkeel process running on a directory.
pub struct EvenkeelFixture {
    pub declared: TestDirectory,
    pub evenkeel: Evenkeel,
}

impl EvenkeelFixture {
    /// Declares servers, each by its name and spec lines, and starts evenkeel.
    pub async fn start(servers: &[(&str, &str)]) -> Self {
        let declared = TestDirectory::new();
        for (name, spec) in servers {
            declared.write_server(name, spec);
        }
        let evenkeel = Evenkeel::run(declared.path()).await;
        Self { declared, evenkeel }
    }

    /// Declares one more server and waits until it is attached.
    pub async fn attach(&self, name: &str, spec: &str) {
        self.declared.write_server(name, spec);
        self.evenkeel.wait_until_attached(name).await;
    }

    /// Connects an agent.
    pub async fn agent(&self, era: Era) -> Agent {
        Agent::connect(era, &self.evenkeel.url()).await
    }

    /// Connects an agent of each era, waits until it lists these tools, and opens its notification stream.
    pub async fn watchers(&self, tools: &[&str]) -> [Watcher; 2] {
        [
            Watcher::open(self.agent(Era::Legacy).await, tools).await,
            Watcher::open(self.agent(Era::Modern).await, tools).await,
        ]
    }

    /// Returns a server from the status API.
    pub async fn server(&self, name: &str) -> Value {
        self.evenkeel.get_server(name).await.unwrap_or_else(|| panic!("no server {name}"))
    }

    /// Waits until this generation of a server is attached.
    pub async fn wait_for_generation(&self, name: &str, generation: i64) {
        eventually(&format!("generation {generation} of {name} is attached"), async || {
            let ready = self.evenkeel.condition(name, "Ready").await?;
            let attached = self.server(name).await["status"]["attachedGeneration"] == generation;
            (attached && ready.reason == "Attached").then_some(())
        })
        .await;
    }
}

/// An agent that lists again after each notification.
pub struct Watcher {
    pub agent: Agent,
    notifications: NotificationStream,
}

impl Watcher {
    /// Lists until exactly these tools are there, and opens the notification stream.
    async fn open(agent: Agent, tools: &[&str]) -> Self {
        eventually("the first list", async || (agent.tool_names().await == tools).then_some(())).await;
        let notifications = agent.notifications().await;
        Self { agent, notifications }
    }

    /// Waits until the list after a notification has exactly these tools.
    pub async fn wait_for_tools(&mut self, expected: &[&str]) {
        loop {
            self.notifications.wait_for_tools_changed().await;
            if self.agent.tool_names().await == expected {
                return;
            }
        }
    }

    /// Returns the notifications that were received and not consumed yet. Exact for legacy agents only: a modern stream
    /// that opens soon after a change repeats its notification.
    pub fn pending_notifications(&mut self) -> Vec<String> {
        self.notifications.drain()
    }
}

/// Returns the text of a tool result, which must be an error.
pub fn error_text(result: &str) -> String {
    let result: Value = serde_json::from_str(result).unwrap();
    assert_eq!(result["isError"], true, "{result}");
    result["content"][0]["text"].as_str().unwrap().to_owned()
}

/// A call in flight.
pub type CallHandle = tokio::task::JoinHandle<Result<String, String>>;

/// Starts a call and waits until the server is processing it.
pub async fn start_call(agent: Agent, tool: &str, arguments: &str, rig: &FakeHttpServer) -> CallHandle {
    let before = rig.counters().in_flight;
    let (tool, arguments) = (tool.to_owned(), arguments.to_owned());
    let call = tokio::spawn(async move { agent.call(&tool, &arguments).await });
    eventually("the server is processing the call", async || {
        (rig.counters().in_flight > before).then_some(())
    })
    .await;
    call
}
