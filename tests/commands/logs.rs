//! Tests `logs`: stderr and MCP log messages over all connections of a server.

use crate::rig::{ControlCommand, FakeHttpServer, FakeStdioServer, Script};
use crate::support::{Agent, Era, eventually};
use crate::test_instance::TestInstance;

fn log_notification(level: &str, text: &str) -> String {
    format!(
        r#"{{"jsonrpc":"2.0","method":"notifications/message","params":{{"level":"{level}","logger":"db","data":"{text}"}}}}"#
    )
}

#[tokio::test]
async fn logs_survive_reconnects_and_can_be_followed() {
    let mut script = Script::default();
    script.stdio.stderr = vec!["first words".into()];
    let server = FakeStdioServer::new(script);
    let instance = TestInstance::start(&[("a", &server.spec(""))]).await;
    instance.evenkeel.wait_until_attached("a").await;
    let mut following = instance.follow(&["logs", "a", "-f"]);
    let line = following.line_with("first words").await;
    assert!(line.contains("Z stderr first words"), "the line has time and origin: {line}");

    let [process] = &server.live_processes()[..] else { panic!("one process") };
    process.send_command(ControlCommand::Stderr("later \u{1b}[31mwords".into())).await;
    assert!(following.line_with("later").await.ends_with("stderr later  [31mwords"), "no control characters");
    process.send_command(ControlCommand::Stdout(log_notification("warning", "slow query"))).await;
    following.line_with("warning db: slow query").await;

    process.kill();
    process.wait_for_exit().await;
    following.line_with("first words").await;
    instance.evenkeel.wait_until_attached("a").await;
    let all = instance.run_ok(&["logs", "a"]).await;
    assert_eq!(all.matches("first words").count(), 2, "{all}");
    let tail = instance.run_ok(&["logs", "a", "--tail", "1"]).await;
    assert_eq!(tail.lines().count(), 1, "{tail}");

    let stderr = instance.run_failing(&["logs", "b"]).await;
    assert!(stderr.contains("there is no McpServer \"b\""), "{stderr}");
    assert_eq!(instance.run_ok(&["logs", "mcps/a"]).await, instance.run_ok(&["logs", "a"]).await);
    assert_eq!(instance.run(&["logs", "src/directory"]).await.code, 2);
    // The log is removed with its object.
    instance.declared.write_server("b", "stdio: { command: no-such-program-anywhere }");
    instance.declared.remove("a.yaml");
    instance.run_ok(&["wait", "a", "--for=delete"]).await;
    instance.declared.write_server("a", "stdio: { command: no-such-program-anywhere }");
    instance.evenkeel.wait_for("a", "Ready", "False", "CommandNotFound").await;
    assert_eq!(instance.run_ok(&["logs", "a"]).await, "");
}

#[tokio::test]
async fn follow_prints_every_line_until_the_server_is_removed() {
    let mut script = Script::default();
    script.stdio.stderr = vec!["first words".into()];
    let server = FakeStdioServer::new(script);
    let instance = TestInstance::start(&[("a", "stdio: { command: no-such-program-anywhere }")]).await;
    instance.evenkeel.wait_for("a", "Ready", "False", "CommandNotFound").await;
    // Follow before the first connection.
    let mut following = instance.follow(&["logs", "a", "-f"]);
    assert_eq!(instance.run_ok(&["logs", "a"]).await, "");
    instance.declared.write_server("a", &server.spec(""));
    following.line_with("first words").await;

    instance.declared.write_server("other", &server.spec(""));
    instance.declared.remove("a.yaml");
    assert_eq!(following.wait().await, Some(0));
    // A new server of the same name has its own log.
    instance.declared.write_server("a", &server.spec(""));
    instance.run_ok(&["wait", "a"]).await;
    let mut following = instance.follow(&["logs", "a", "-f"]);
    following.line_with("first words").await;
    assert_eq!(instance.run_ok(&["logs", "a"]).await.matches("first words").count(), 1);
}

#[tokio::test]
async fn log_flood_is_bounded_and_does_not_delay_shutdown() {
    let mut script = Script::default();
    script.stdio.stderr_flood = 8 << 20;
    let server = FakeStdioServer::new(script);
    let mut instance = TestInstance::start(&[("a", &server.spec(""))]).await;
    instance.evenkeel.wait_until_attached("a").await;
    // This command is started and its output never read.
    let _stuck = instance.follow(&["logs", "a", "-f"]);
    let size = eventually("the flood is logged", async || {
        let text = instance.run_ok(&["logs", "a"]).await;
        (text.len() > 100_000).then_some(text.len())
    })
    .await;
    assert!(size < 1 << 20, "{size}");
    assert!(instance.evenkeel.terminate().await.success());
}

#[tokio::test]
async fn log_messages_over_http_are_kept() {
    // A modern server logs only within calls, so use a legacy one.
    let server =
        FakeHttpServer::start(Script::new("rig", crate::rig::ServerEra::Legacy).tools(&["log"])).await;
    let instance = TestInstance::start(&[("a", &server.spec())]).await;
    instance.evenkeel.wait_until_attached("a").await;
    let agent = Agent::connect(Era::Legacy, &instance.evenkeel.url()).await;
    agent.call("a_log", r#"{"data":{"rows":3}}"#).await.unwrap();
    let text = eventually("the message is kept", async || {
        let text = instance.run_ok(&["logs", "a"]).await;
        (!text.is_empty()).then_some(text)
    })
    .await;
    assert!(text.contains(r#"{"rows":3}"#), "{text}");
}
