//! The handshake: servers that crash on the probe, and servers that return unknown protocol revisions.

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
    let fast_retry = "retry: { initial: 100ms, max: 200ms }";
    let fixture = EvenkeelFixture::start(&[
        ("stdio", &format!("{}\n{fast_retry}", stdio.spec(""))),
        ("http", &format!("{}\n{fast_retry}", http.spec())),
    ])
    .await;
    let agent = fixture.agent(Era::Modern).await;
    for name in ["stdio", "http"] {
        fixture.evenkeel.wait_until_attached(name).await;
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
        let fixture = EvenkeelFixture::start(&[("s", &rig.spec())]).await;
        let ready = fixture.evenkeel.wait_for("s", "Ready", "False", "HandshakeFailed").await;
        for part in [&format!("{version:?}"), "2025-11-25", "2026-07-28"] {
            assert!(ready.message.contains(part), "{part}: {ready:?}");
        }
    }
}
