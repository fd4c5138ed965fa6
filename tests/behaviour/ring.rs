//! An evenkeel that is declared as a server of its own, directly or through others: it says so, and nothing goes round.

use crate::rig::{Script, Stdio};
use crate::stage::Stage;
use crate::support::{Era, eventually};

/// A server that is another evenkeel.
fn upstream(stage: &Stage) -> String {
    format!("http: {{ url: \"{}\" }}", stage.evenkeel.url())
}

#[tokio::test]
async fn its_own_endpoint_is_no_server() {
    let rig = Stdio::new(Script::default().tools(&["echo"]));
    let stage = Stage::start(&[("own", &rig.spec(""))]).await;
    stage.evenkeel.attached("own").await;
    stage.declared.server("itself", &upstream(&stage));
    for (condition, status) in [("Accepted", "False"), ("Ready", "False"), ("Stalled", "True")] {
        let told = stage.evenkeel.wait_for("itself", condition, status, "PolicyDenied").await;
        assert!(told.message.contains("evenkeel's own endpoint"), "{told:?}");
    }
    assert!(stage.server("itself").await["status"]["nextRetryTime"].is_null());
    assert_eq!(stage.agent(Era::Legacy).await.tools().await, ["own_echo"]);
}

#[tokio::test]
async fn of_two_that_name_each_other_one_is_refused() {
    let rig = Stdio::new(Script::default().tools(&["echo"]));
    let (one, two) = (Stage::start(&[]).await, Stage::start(&[]).await);
    one.attach("first", &rig.spec("")).await;
    two.attach("second", &rig.spec("")).await;
    one.attach("two", &upstream(&two)).await;
    two.declared.server("one", &upstream(&one));
    let told = two.evenkeel.wait_for("one", "Ready", "False", "PolicyDenied").await;
    assert!(told.message.contains("round"), "{told:?}");
    one.evenkeel.attached("two").await;
    assert_eq!(one.agent(Era::Modern).await.tools().await, ["first_echo", "two_second_echo"]);
    assert_eq!(two.agent(Era::Modern).await.tools().await, ["second_echo"]);
    // It stands in nobody's way once the other lets go.
    one.declared.remove("two.yaml");
    eventually("it is gone", async || {
        (one.agent(Era::Modern).await.tools().await == ["first_echo"]).then_some(())
    })
    .await;
}

#[tokio::test]
async fn of_two_that_name_each_other_at_once_one_is_refused() {
    let rig = Stdio::new(Script::default().tools(&["echo"]));
    let (one, two) = (Stage::start(&[]).await, Stage::start(&[]).await);
    one.attach("first", &rig.spec("")).await;
    two.attach("second", &rig.spec("")).await;
    one.declared.server("two", &upstream(&two));
    two.declared.server("one", &upstream(&one));
    eventually("one of them is refused, and the other is not", async || {
        let mut reasons = Vec::new();
        for (stage, name) in [(&one, "two"), (&two, "one")] {
            reasons.push(stage.evenkeel.condition(name, "Ready").await?.reason);
        }
        reasons.sort();
        let tools = one.agent(Era::Legacy).await.tools().await.len()
            + two.agent(Era::Legacy).await.tools().await.len();
        (reasons == ["Attached", "PolicyDenied"] && tools == 3).then_some(())
    })
    .await;
}
