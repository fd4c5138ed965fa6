//! Agents of the official SDKs that are asked for input: TypeScript and Python, 1.x and 2.x, in both eras, with servers
//! of both eras.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::Value;

use crate::fixture::EvenkeelFixture;
use crate::rig::{FakeHttpServer, FakeStdioServer, Script, ServerEra};
use crate::sdks::{python_sdk, typescript_sdks};
use crate::support::{Era, eventually, require_on_path};

/// The time for the agents of one SDK, whose start takes a while on a busy machine.
const TIMEOUT: Duration = Duration::from_mins(2);

struct Servers {
    fixture: EvenkeelFixture,
    legacy: FakeHttpServer,
    _modern: FakeHttpServer,
    stdio: FakeStdioServer,
}

impl Servers {
    async fn start() -> Self {
        let fixture = EvenkeelFixture::start(&[]).await;
        let script = |name, era| Script::new(name, era).tools(&["ask", "echo"]);
        let legacy = FakeHttpServer::start(script("legacy", ServerEra::Legacy)).await;
        let modern = FakeHttpServer::start(script("modern", ServerEra::Modern)).await;
        let stdio = FakeStdioServer::new(script("stdio", ServerEra::Legacy));
        fixture.attach("legacy", &legacy.spec()).await;
        fixture.attach("modern", &modern.spec()).await;
        fixture.attach("stdio", &stdio.spec("")).await;
        Self { fixture, legacy, _modern: modern, stdio }
    }

    /// Runs agents of one SDK: some that answer all servers, and some that vanish while they are asked.
    async fn run(&self, sdk: &str, program: &Path, args: &[&str], options: &[&str]) {
        let url = self.fixture.evenkeel.url();
        let start = |count: &str, servers: &str, vanish: &str| {
            let mut command = tokio::process::Command::new(program);
            command.args(args).args([&*url, count]).args(options).args([servers, vanish]);
            command.current_dir(scripts()).env("PYTHONDONTWRITEBYTECODE", "1").kill_on_drop(true);
            command
        };
        // One agent alone is asked by every server.
        let (mut alone, mut several, mut vanishing) = (
            start("1", "legacy,stdio,modern", ""),
            start("4", "legacy,modern", ""),
            start("2", "legacy", "vanish"),
        );
        let (alone, several, vanishing) = tokio::time::timeout(TIMEOUT, async {
            // Over stdio only one call may be in flight.
            let alone = alone.output().await;
            let (several, vanishing) = tokio::join!(several.output(), vanishing.output());
            (alone, several, vanishing)
        })
        .await
        .unwrap_or_else(|_| panic!("{sdk}: the agents do not end"));
        for (output, expected) in [(alone, 3), (several, 8), (vanishing, 0)] {
            let output = output.unwrap();
            let stdout = String::from_utf8_lossy(&output.stdout);
            let results: Option<Vec<(String, String)>> =
                stdout.lines().last().and_then(|line| serde_json::from_str(line).ok());
            let results = results
                .unwrap_or_else(|| panic!("{sdk}: {stdout}\n{}", String::from_utf8_lossy(&output.stderr)));
            assert_eq!(results.len(), expected, "{sdk}: {results:?}");
            for (server, text) in results {
                let answer: Value = serde_json::from_str(&text).unwrap_or_else(|_| panic!("{sdk}: {text}"));
                let answer = if server == "modern" { &answer["q0"] } else { &answer[0]["result"] };
                assert!(answer["action"] == "accept" && answer["content"]["n"].is_number(), "{sdk}: {text}");
            }
        }
    }
}

fn scripts() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/behaviour/sdk_input")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[cfg_attr(without_node, ignore = "needs Node")]
async fn typescript_agents_answer_servers_of_both_eras() {
    let node = require_on_path("node", "the TypeScript SDKs");
    let packages = typescript_sdks();
    let servers = Servers::start().await;
    servers.run("TypeScript 1", &node, &["typescript_1.mjs", &packages], &[]).await;
    servers.run("TypeScript 2, legacy", &node, &["typescript_2.mjs", &packages], &["legacy"]).await;
    check_nothing_is_left(&servers).await;
    servers.run("TypeScript 2, modern", &node, &["typescript_2.mjs", &packages], &["modern"]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[cfg_attr(without_python, ignore = "needs Python")]
async fn python_agents_answer_servers_of_both_eras() {
    let (first, second) = (python_sdk("1.30.0"), python_sdk("2.3.0"));
    let servers = Servers::start().await;
    servers.run("Python 1", &first, &["python_1.py"], &[]).await;
    servers.run("Python 2, legacy", &second, &["python_2.py"], &["legacy"]).await;
    check_nothing_is_left(&servers).await;
    servers.run("Python 2, modern", &second, &["python_2.py"], &["modern"]).await;
}

/// Checks that vanished legacy agents leave no call at their servers, and that other agents are served.
async fn check_nothing_is_left(servers: &Servers) {
    eventually("no call is in flight", async || (servers.legacy.counters().in_flight == 0).then_some(()))
        .await;
    assert_eq!(servers.stdio.live_processes().len(), 1);
    let agent = servers.fixture.agent(Era::Legacy).await;
    agent.call_text("legacy_echo", "{}").await;
}
