//! `logs`: stderr and log messages of the protocol, over all connections of a server.

use crate::rig::{Command, Http, Script, Stdio};
use crate::stage::Stage;
use crate::support::{Agent, Era, eventually};

fn says(level: &str, text: &str) -> String {
    format!(
        r#"{{"jsonrpc":"2.0","method":"notifications/message","params":{{"level":"{level}","logger":"db","data":"{text}"}}}}"#
    )
}

#[tokio::test]
async fn stderr_and_messages_are_kept_over_reconnects_and_followed() {
    let mut script = Script::default();
    script.stdio.stderr = vec!["first words".into()];
    let server = Stdio::new(script);
    let stage = Stage::start(&[("a", &server.spec(""))]).await;
    stage.evenkeel.attached("a").await;
    let mut following = stage.follow(&["logs", "a", "-f"]);
    let line = following.line_with("first words").await;
    assert!(line.contains("Z stderr first words"), "with time and origin: {line}");

    let [process] = &server.alive()[..] else { panic!("one process") };
    process.tell(Command::Stderr("later \u{1b}[31mwords".into())).await;
    assert!(following.line_with("later").await.ends_with("stderr later  [31mwords"), "no control characters");
    process.tell(Command::Stdout(says("warning", "slow query"))).await;
    following.line_with("warning db: slow query").await;

    process.kill();
    process.gone().await;
    following.line_with("first words").await;
    stage.evenkeel.attached("a").await;
    let all = stage.ok(&["logs", "a"]).await;
    assert_eq!(all.matches("first words").count(), 2, "{all}");
    let tail = stage.ok(&["logs", "a", "--tail", "1"]).await;
    assert_eq!(tail.lines().count(), 1, "{tail}");

    let said = stage.fails(&["logs", "b"]).await;
    assert!(said.contains("there is no McpServer \"b\""), "{said}");
    assert_eq!(stage.ok(&["logs", "mcps/a"]).await, stage.ok(&["logs", "a"]).await);
    assert_eq!(stage.run(&["logs", "src/directory"]).await.code, 2);
    // With the object goes its log.
    stage.declared.server("b", "stdio: { command: no-such-program-anywhere }");
    stage.declared.remove("a.yaml");
    stage.ok(&["wait", "a", "--for=delete"]).await;
    stage.declared.server("a", "stdio: { command: no-such-program-anywhere }");
    stage.evenkeel.wait_for("a", "Ready", "False", "CommandNotFound").await;
    assert_eq!(stage.ok(&["logs", "a"]).await, "");
}

#[tokio::test]
async fn who_follows_has_every_line_from_the_first_to_the_end_of_the_declaration() {
    let mut script = Script::default();
    script.stdio.stderr = vec!["first words".into()];
    let server = Stdio::new(script);
    let stage = Stage::start(&[("a", "stdio: { command: no-such-program-anywhere }")]).await;
    stage.evenkeel.wait_for("a", "Ready", "False", "CommandNotFound").await;
    // Before anything was ever connected.
    let mut following = stage.follow(&["logs", "a", "-f"]);
    assert_eq!(stage.ok(&["logs", "a"]).await, "");
    stage.declared.server("a", &server.spec(""));
    following.line_with("first words").await;

    stage.declared.server("other", &server.spec(""));
    stage.declared.remove("a.yaml");
    assert_eq!(following.end().await, Some(0));
    // Another of its name has a log of its own.
    stage.declared.server("a", &server.spec(""));
    stage.ok(&["wait", "a"]).await;
    let mut following = stage.follow(&["logs", "a", "-f"]);
    following.line_with("first words").await;
    assert_eq!(stage.ok(&["logs", "a"]).await.matches("first words").count(), 1);
}

#[tokio::test]
async fn a_flood_is_bounded_and_holds_neither_the_server_nor_the_end_up() {
    let mut script = Script::default();
    script.stdio.stderr_flood = 8 << 20;
    let server = Stdio::new(script);
    let mut stage = Stage::start(&[("a", &server.spec(""))]).await;
    stage.evenkeel.attached("a").await;
    // It is started and never read.
    let _stuck = stage.follow(&["logs", "a", "-f"]);
    let size = eventually("the flood has come", async || {
        let text = stage.ok(&["logs", "a"]).await;
        (text.len() > 100_000).then_some(text.len())
    })
    .await;
    assert!(size < 1 << 20, "{size}");
    assert!(stage.evenkeel.terminate().await.success());
}

#[tokio::test]
async fn messages_over_http_are_kept_too() {
    // A modern server says only what a call asks it to.
    let server = Http::start(Script::new("rig", crate::rig::Era::Legacy).tools(&["log"])).await;
    let stage = Stage::start(&[("a", &server.spec())]).await;
    stage.evenkeel.attached("a").await;
    let agent = Agent::open(Era::Legacy, &stage.evenkeel.url()).await;
    agent.call("a_log", r#"{"data":{"rows":3}}"#).await.unwrap();
    let text = eventually("the message is kept", async || {
        let text = stage.ok(&["logs", "a"]).await;
        (!text.is_empty()).then_some(text)
    })
    .await;
    assert!(text.contains(r#"{"rows":3}"#), "{text}");
}
