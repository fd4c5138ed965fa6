//! How a conversation with a server begins: what it may make of the probe, and what it must not answer.

use crate::rig::{Era as RigEra, Http, Rule, Script, Stdio, Then};
use crate::stage::Stage;
use crate::support::Era;

#[tokio::test]
async fn a_server_that_does_not_survive_the_probe_is_attached_without_one() {
    let script = |then| Script::new("s", RigEra::Legacy).on("server/discover", Rule::always(then));
    let (stdio, http) = (Stdio::new(script(Then::Exit(2))), Http::start(script(Then::status(500))).await);
    let soon = "retry: { initial: 100ms, max: 200ms }";
    let stage = Stage::start(&[
        ("stdio", &format!("{}\n{soon}", stdio.spec(""))),
        ("http", &format!("{}\n{soon}", http.spec())),
    ])
    .await;
    let agent = stage.agent(Era::Modern).await;
    for name in ["stdio", "http"] {
        stage.evenkeel.attached(name).await;
        agent.text(&format!("{name}_echo"), "{}").await;
    }
    assert_eq!(stdio.processes().len(), 2);
    assert_eq!(http.counters().discovers(), 1);
}

#[tokio::test]
async fn a_revision_that_nobody_knows_is_no_basis_for_a_conversation() {
    for version in ["2099-01-01", ""] {
        let mut script = Script::new("s", RigEra::Legacy);
        script.protocol = Some(version.to_owned());
        let rig = Http::start(script).await;
        let stage = Stage::start(&[("s", &rig.spec())]).await;
        let ready = stage.evenkeel.wait_for("s", "Ready", "False", "HandshakeFailed").await;
        for part in [&format!("{version:?}"), "2025-11-25", "2026-07-28"] {
            assert!(ready.message.contains(part), "{part}: {ready:?}");
        }
    }
}
