//! An evenkeel instance that is declared as its own upstream, directly or through others: the loop is reported and
//! refused.

use crate::fixture::EvenkeelFixture;
use crate::rig::{FakeStdioServer, Script};
use crate::support::{Era, eventually};

/// Returns the spec of a server that is another evenkeel instance.
fn upstream_spec(fixture: &EvenkeelFixture) -> String {
    format!("http: {{ url: \"{}\" }}", fixture.evenkeel.url())
}

#[tokio::test]
async fn own_endpoint_is_rejected_as_upstream() {
    let rig = FakeStdioServer::new(Script::default().tools(&["echo"]));
    let fixture = EvenkeelFixture::start(&[("own", &rig.spec(""))]).await;
    fixture.evenkeel.wait_until_attached("own").await;
    fixture.declared.write_server("itself", &upstream_spec(&fixture));
    for (condition, status) in [("Accepted", "False"), ("Ready", "False"), ("Stalled", "True")] {
        let reported = fixture.evenkeel.wait_for("itself", condition, status, "PolicyDenied").await;
        assert!(reported.message.contains("evenkeel's own endpoint"), "{reported:?}");
    }
    assert!(fixture.server("itself").await["status"]["nextRetryTime"].is_null());
    assert_eq!(fixture.agent(Era::Legacy).await.tool_names().await, ["own_echo"]);
}

#[tokio::test]
async fn mutual_upstreams_declared_in_turn_reject_one() {
    let rig = FakeStdioServer::new(Script::default().tools(&["echo"]));
    let (one, two) = (EvenkeelFixture::start(&[]).await, EvenkeelFixture::start(&[]).await);
    one.attach("first", &rig.spec("")).await;
    two.attach("second", &rig.spec("")).await;
    one.attach("two", &upstream_spec(&two)).await;
    two.declared.write_server("one", &upstream_spec(&one));
    let reported = two.evenkeel.wait_for("one", "Ready", "False", "PolicyDenied").await;
    assert!(reported.message.contains("list each other's items endlessly"), "{reported:?}");
    one.evenkeel.wait_until_attached("two").await;
    assert_eq!(one.agent(Era::Modern).await.tool_names().await, ["first_echo", "two_second_echo"]);
    assert_eq!(two.agent(Era::Modern).await.tool_names().await, ["second_echo"]);
    // After the other declaration is removed, the refused server does not affect the listing.
    one.declared.remove("two.yaml");
    eventually("the removed upstream is no longer listed", async || {
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
        for (fixture, name) in [(&one, "two"), (&two, "one")] {
            reasons.push(fixture.evenkeel.condition(name, "Ready").await?.reason);
        }
        reasons.sort();
        let tools = one.agent(Era::Legacy).await.tool_names().await.len()
            + two.agent(Era::Legacy).await.tool_names().await.len();
        (reasons == ["Attached", "PolicyDenied"] && tools == 3).then_some(())
    })
    .await;
}
