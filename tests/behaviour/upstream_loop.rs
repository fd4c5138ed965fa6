//! An evenkeel that is declared as a server of its own, directly or through others: it says so, and nothing goes round.

use crate::fixture::EvenkeelFixture;
use crate::rig::{FakeStdioServer, Script};
use crate::support::{Era, eventually};

/// A server that is another evenkeel.
fn upstream_spec(stage: &EvenkeelFixture) -> String {
    format!("http: {{ url: \"{}\" }}", stage.evenkeel.url())
}

#[tokio::test]
async fn own_endpoint_is_rejected_as_upstream() {
    let rig = FakeStdioServer::new(Script::default().tools(&["echo"]));
    let stage = EvenkeelFixture::start(&[("own", &rig.spec(""))]).await;
    stage.evenkeel.wait_until_attached("own").await;
    stage.declared.write_server("itself", &upstream_spec(&stage));
    for (condition, status) in [("Accepted", "False"), ("Ready", "False"), ("Stalled", "True")] {
        let told = stage.evenkeel.wait_for("itself", condition, status, "PolicyDenied").await;
        assert!(told.message.contains("evenkeel's own endpoint"), "{told:?}");
    }
    assert!(stage.server("itself").await["status"]["nextRetryTime"].is_null());
    assert_eq!(stage.agent(Era::Legacy).await.tool_names().await, ["own_echo"]);
}

#[tokio::test]
async fn mutual_upstreams_declared_in_turn_reject_one() {
    let rig = FakeStdioServer::new(Script::default().tools(&["echo"]));
    let (one, two) = (EvenkeelFixture::start(&[]).await, EvenkeelFixture::start(&[]).await);
    one.attach("first", &rig.spec("")).await;
    two.attach("second", &rig.spec("")).await;
    one.attach("two", &upstream_spec(&two)).await;
    two.declared.write_server("one", &upstream_spec(&one));
    let told = two.evenkeel.wait_for("one", "Ready", "False", "PolicyDenied").await;
    assert!(told.message.contains("round"), "{told:?}");
    one.evenkeel.wait_until_attached("two").await;
    assert_eq!(one.agent(Era::Modern).await.tool_names().await, ["first_echo", "two_second_echo"]);
    assert_eq!(two.agent(Era::Modern).await.tool_names().await, ["second_echo"]);
    // It stands in nobody's way once the other lets go.
    one.declared.remove("two.yaml");
    eventually("it is gone", async || {
        (one.agent(Era::Modern).await.tool_names().await == ["first_echo"]).then_some(())
    })
    .await;
}

#[tokio::test]
async fn mutual_upstreams_declared_at_once_reject_one() {
    let rig = FakeStdioServer::new(Script::default().tools(&["echo"]));
    let (one, two) = (EvenkeelFixture::start(&[]).await, EvenkeelFixture::start(&[]).await);
    one.attach("first", &rig.spec("")).await;
    two.attach("second", &rig.spec("")).await;
    one.declared.write_server("two", &upstream_spec(&two));
    two.declared.write_server("one", &upstream_spec(&one));
    eventually("one of them is refused, and the other is not", async || {
        let mut reasons = Vec::new();
        for (stage, name) in [(&one, "two"), (&two, "one")] {
            reasons.push(stage.evenkeel.condition(name, "Ready").await?.reason);
        }
        reasons.sort();
        let tools = one.agent(Era::Legacy).await.tool_names().await.len()
            + two.agent(Era::Legacy).await.tool_names().await.len();
        (reasons == ["Attached", "PolicyDenied"] && tools == 3).then_some(())
    })
    .await;
}
