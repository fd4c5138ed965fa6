//! How a conversation with a server begins: what it may make of the probe, and what it must not answer.

use crate::fixture::EvenkeelFixture;
use crate::rig::{Action, FakeHttpServer, FakeStdioServer, Rule, Script, ServerEra};
use crate::support::Era;

#[tokio::test]
async fn server_that_crashes_on_the_probe_is_attached_without_it() {
    let script = |then| Script::new("s", ServerEra::Legacy).on("server/discover", Rule::always(then));
    let (stdio, http) = (
        FakeStdioServer::new(script(Action::Exit(2))),
        FakeHttpServer::start(script(Action::status(500))).await,
    );
    let soon = "retry: { initial: 100ms, max: 200ms }";
    let stage = EvenkeelFixture::start(&[
        ("stdio", &format!("{}\n{soon}", stdio.spec(""))),
        ("http", &format!("{}\n{soon}", http.spec())),
    ])
    .await;
    let agent = stage.agent(Era::Modern).await;
    for name in ["stdio", "http"] {
        stage.evenkeel.wait_until_attached(name).await;
        agent.call_text(&format!("{name}_echo"), "{}").await;
    }
    assert_eq!(stdio.processes().len(), 2);
    assert_eq!(http.counters().discovers(), 1);
}

#[tokio::test]
async fn unknown_protocol_revision_fails_the_handshake() {
    for version in ["2099-01-01", ""] {
        let mut script = Script::new("s", ServerEra::Legacy);
        script.protocol = Some(version.to_owned());
        let rig = FakeHttpServer::start(script).await;
        let stage = EvenkeelFixture::start(&[("s", &rig.spec())]).await;
        let ready = stage.evenkeel.wait_for("s", "Ready", "False", "HandshakeFailed").await;
        for part in [&format!("{version:?}"), "2025-11-25", "2026-07-28"] {
            assert!(ready.message.contains(part), "{part}: {ready:?}");
        }
    }
}
