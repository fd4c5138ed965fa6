//! An API server without the CRDs, one that stops for a while, and one with objects that evenkeel cannot read.

use std::time::Duration;

use crate::rig::{FakeHttpServer, Script, ServerEra};
use crate::support::{Agent, Cluster, Era, eventually, http};
use crate::test_namespace::{TestNamespace, condition, install_crds, server_yaml};

#[tokio::test]
#[cfg_attr(without_api_server, ignore = "needs Go, for a Kubernetes API server")]
async fn calls_succeed_while_the_api_server_is_down() {
    let mut cluster = Cluster::start().await;
    let rig = FakeHttpServer::start(Script::new("a", ServerEra::Legacy).tools(&["echo"])).await;
    let ns = TestNamespace::create_in(&cluster).await;
    let evenkeel = ns.run(&[]).await;
    eventually("readyz reports the missing CRDs", async || {
        let readyz = http::send(hyper::Method::GET, &evenkeel.admin("/readyz"), &[], "").await.ok()?;
        (readyz.status == 503
            && readyz.text().await.ok()?.contains("mcpservers.evenkeel.dev is not installed"))
        .then_some(())
    })
    .await;
    install_crds(&cluster).await;
    ns.apply_http_server("a", &rig).await;
    ns.wait_until_attached("a").await;
    http::get(&evenkeel.admin("/readyz")).await.unwrap();
    let namespace = ns.name.clone();
    let agent = Agent::connect(Era::Legacy, &evenkeel.url()).await;

    for round in 0..2 {
        cluster.kill_api_server();
        eventually("the source fault is reported", async || {
            let metrics = http::get(&evenkeel.admin("/metrics")).await.ok()?;
            metrics.contains("evenkeel_source_faults 1").then_some(())
        })
        .await;
        agent.call_text("a_echo", "{}").await;
        assert_eq!(http::get(&evenkeel.admin("/readyz")).await.unwrap(), "ok\n");
        cluster.restart_api_server().await;
        let name = format!("late-{round}");
        cluster.apply(&namespace, &server_yaml(&name, &rig.spec())).await;
        cluster
            .kubectl(&[
                "-n",
                &namespace,
                "wait",
                "--for=condition=Ready",
                &format!("mcps/{name}"),
                "--timeout=60s",
            ])
            .await;
        eventually("the source fault is cleared", async || {
            let metrics = http::get(&evenkeel.admin("/metrics")).await.ok()?;
            metrics.contains("evenkeel_source_faults 0").then_some(())
        })
        .await;
    }
    assert_eq!(agent.tool_names().await, ["a_echo", "late-0_echo", "late-1_echo"]);
    assert_eq!(rig.counters().initializes(), 3, "the first server keeps its connection");
}

#[tokio::test]
#[cfg_attr(without_api_server, ignore = "needs Go, for a Kubernetes API server")]
async fn object_with_unknown_field_keeps_last_good_declaration() {
    let cluster = Cluster::start().await;
    install_crds(&cluster).await;
    let ns = TestNamespace::create_in(&cluster).await;
    let rig = FakeHttpServer::start(Script::new("a", ServerEra::Legacy).tools(&["echo"])).await;
    let evenkeel = ns.run(&[]).await;
    ns.apply_http_server("a", &rig).await;
    ns.wait_until_attached("a").await;
    // The CRD of a later version, installed before the program of that version.
    let add_field = r#"[{"op":"add","path":"/spec/versions/0/schema/openAPIV3Schema/properties/spec/properties/later","value":{"type":"string"}}]"#;
    cluster.kubectl(&["patch", "crd", "mcpservers.evenkeel.dev", "--type=json", "-p", add_field]).await;
    let mut round = 0;
    let message = eventually("the later CRD is served, and the object is rejected", async || {
        // For a moment the API server may read objects by the old schema, without the field: then the same
        // generation was accepted before it is rejected.
        round += 1;
        let spec = format!("{}\nhealth: {{ interval: 0s }}\nlater: x{round}", rig.spec());
        if !ns.try_apply(&server_yaml("a", &spec)).await {
            return None;
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
        let object = ns.get_server("a").await?;
        let (status, reason, message) = condition(&object, "Accepted")?;
        let generation = |name: &str| object["status"][name].as_i64();
        let older = generation("attachedGeneration") < generation("observedGeneration");
        (status == "False" && reason == "InvalidSpec" && older).then_some(message)
    })
    .await;
    assert!(message.contains("unknown field `later`") && message.contains("last good"), "{message}");
    let object = ns.get_server("a").await.unwrap();
    let (attached, reason, _) = condition(&object, "Attached").unwrap();
    assert_eq!((attached.as_str(), reason.as_str()), ("True", "ServingPreviousGeneration"));
    // The newest generation is observed, and it is not the attached one.
    let status = &object["status"];
    assert_eq!(status["observedGeneration"], object["metadata"]["generation"]);
    let agent = Agent::connect(Era::Modern, &evenkeel.url()).await;
    agent.call_text("a_echo", "{}").await;
    // Other servers are not affected.
    ns.apply_http_server("b", &rig).await;
    ns.wait_until_attached("b").await;
    assert_eq!(rig.counters().initializes(), 2);
}
