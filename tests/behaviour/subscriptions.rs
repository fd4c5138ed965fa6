//! Resource updates and log messages reach the agents that requested them, across reconnects.

use serde_json::json;

use crate::rig::{ControlCommand, Script, ServerEra};
use crate::server_matrix::{NAMES, ServerMatrix};
use crate::support::{Agent, Era, eventually};

async fn attach_servers() -> ServerMatrix {
    ServerMatrix::attach(|script: Script| {
        let own = format!("rig://{}/a", script.name);
        script.tools(&["echo", "log"]).prompts_and_resources(&[], &[&own, "rig://shared"], &[])
    })
    .await
}

/// Waits until the server has subscriptions to exactly these resources.
async fn wait_for_subscriptions(servers: &ServerMatrix, name: &str, uris: &[&str]) {
    eventually(&format!("{name} has subscriptions to {uris:?}"), async || {
        let watched = servers.counters(name).await.watched;
        watched.keys().eq(uris).then_some(())
    })
    .await;
}

fn is_legacy(name: &str) -> bool {
    name.ends_with('l')
}

async fn set_level(agent: &Agent, level: &str) {
    agent.request("logging/setLevel", &json!({ "level": level }).to_string()).await.unwrap();
}

#[tokio::test]
async fn resource_update_reaches_only_subscribers() {
    let servers = attach_servers().await;
    for name in NAMES {
        let own = format!("rig://{name}/a");
        let mut watchers = Vec::new();
        for era in Era::ALL {
            let agent = servers.fixture.agent(era).await;
            let notifications = agent.notifications_with_resources(&[&own]).await;
            watchers.push((agent, notifications));
        }
        let idle = servers.fixture.agent(Era::Legacy).await;
        let mut unsubscribed = idle.notifications().await;
        wait_for_subscriptions(&servers, name, &[&own]).await;
        servers.send_command(name, ControlCommand::Updated(own.clone())).await;
        for (agent, notifications) in &mut watchers {
            let notification = notifications.wait_for("resources/updated").await;
            assert!(notification.contains(&format!(r#""uri":"{own}""#)), "{:?}: {notification}", agent.era);
        }
        assert!(!unsubscribed.drain().iter().any(|notification| notification.contains("updated")));
        let (legacy, _) = &watchers[0];
        legacy.request("resources/unsubscribe", &json!({ "uri": own }).to_string()).await.unwrap();
        wait_for_subscriptions(&servers, name, &[&own]).await;
        watchers.pop();
        wait_for_subscriptions(&servers, name, &[]).await;
    }
    servers.assert_no_complaints().await;
}

#[tokio::test]
async fn shared_resource_update_uses_the_uri_listed_for_the_agent() {
    let servers = attach_servers().await;
    let agent = servers.fixture.agent(Era::Legacy).await;
    let listed = agent.request("resources/list", "{}").await.unwrap();
    let listed: serde_json::Value = serde_json::from_str(&listed).unwrap();
    let uris: Vec<_> =
        listed["resources"].as_array().unwrap().iter().map(|item| item["uri"].as_str().unwrap()).collect();
    let shared: Vec<_> = uris.into_iter().filter(|uri| uri.starts_with("rig://shared")).collect();
    assert_eq!(shared.len(), 4);
    let mut notifications = agent.notifications_with_resources(&shared).await;
    wait_for_subscriptions(&servers, "sl", &["rig://shared"]).await;
    servers.send_command("sl", ControlCommand::Updated("rig://shared".into())).await;
    let first = notifications.wait_for("resources/updated").await;
    wait_for_subscriptions(&servers, "hl", &["rig://shared"]).await;
    servers.send_command("hl", ControlCommand::Updated("rig://shared".into())).await;
    let second = notifications.wait_for("resources/updated").await;
    assert_ne!(first, second);
    // The server that was declared first has the bare URI.
    assert!(
        first.contains(r#""uri":"rig://shared""#) && second.contains(r#""uri":"rig://shared#"#),
        "{first} {second}"
    );
}

#[tokio::test]
async fn log_messages_respect_the_requested_level() {
    let servers = attach_servers().await;
    let (info_agent, error_agent, default_agent) = (
        servers.fixture.agent(Era::Legacy).await,
        servers.fixture.agent(Era::Legacy).await,
        servers.fixture.agent(Era::Legacy).await,
    );
    let (mut info_notifications, mut error_notifications, mut default_notifications) = (
        info_agent.notifications().await,
        error_agent.notifications().await,
        default_agent.notifications().await,
    );
    set_level(&info_agent, "info").await;
    set_level(&error_agent, "error").await;
    for name in ["sl", "hl"] {
        eventually("the lowest level is set", async || {
            (servers.counters(name).await.level.as_deref() == Some("info")).then_some(())
        })
        .await;
        for level in ["debug", "info", "error"] {
            servers.send_command(name, ControlCommand::Log(level.into(), format!("{level} of {name}"))).await;
        }
        info_notifications.wait_for(&format!("info of {name}")).await;
        info_notifications.wait_for(&format!("error of {name}")).await;
        let received = error_notifications.next().await;
        assert!(received.contains(&format!("error of {name}")), "{received}");
    }
    assert!(default_notifications.drain().is_empty());
    let error = default_agent.request("logging/setLevel", r#"{"level":"loud"}"#).await.unwrap_err();
    assert!(error.contains("debug, info, notice"), "{error}");
    // The last agent with the lower level has disconnected.
    info_agent.end_session().await;
    eventually("the level is raised", async || {
        (servers.counters("hl").await.level.as_deref() == Some("error")).then_some(())
    })
    .await;
    servers.assert_no_complaints().await;
}

#[tokio::test]
async fn in_call_log_messages_reach_only_agents_that_requested_them() {
    let servers = attach_servers().await;
    // Over stdio a log message is not tied to a call.
    for name in ["hl", "hm"] {
        let params = |meta: &str| {
            format!(r#"{{"name":"{name}_log","arguments":{{"data":"hello"}},"_meta":{{{meta}}}}}"#)
        };
        for (era, meta, set, expected) in [
            (Era::Modern, "", None, false),
            (Era::Modern, r#""io.modelcontextprotocol/logLevel":"info""#, None, true),
            (Era::Modern, r#""io.modelcontextprotocol/logLevel":"error""#, None, false),
            (Era::Legacy, "", None, true),
            (Era::Legacy, "", Some("info"), true),
            (Era::Legacy, "", Some("error"), false),
        ] {
            let agent = servers.fixture.agent(era).await;
            if let Some(set) = set {
                set_level(&agent, set).await;
            }
            let mut call = agent.start_request("tools/call", &params(meta)).await.unwrap();
            let mut received = false;
            while let Some(message) = call.next_message().await.unwrap() {
                received |= message.contains("notifications/message");
            }
            assert_eq!(received, expected, "{name} {era:?} {meta} {set:?}");
        }
    }
}

#[tokio::test]
async fn subscriptions_are_restored_on_a_new_connection() {
    let servers = attach_servers().await;
    for name in NAMES {
        let own = format!("rig://{name}/a");
        let agent = servers.fixture.agent(Era::Legacy).await;
        let mut notifications = agent.notifications_with_resources(&[&own]).await;
        set_level(&agent, "warning").await;
        wait_for_subscriptions(&servers, name, &[&own]).await;
        notifications.drain();
        servers.cut_connection(name).await;
        // Updates that may have been missed are sent unprompted.
        notifications.wait_for("resources/updated").await;
        wait_for_subscriptions(&servers, name, &[&own]).await;
        if is_legacy(name) {
            eventually("the level is set again", async || {
                (servers.counters(name).await.level.as_deref() == Some("warning")).then_some(())
            })
            .await;
            servers.send_command(name, ControlCommand::Log("error".into(), "again".into())).await;
            notifications.wait_for("again").await;
        }
        notifications.drain();
        servers.send_command(name, ControlCommand::Updated(own.clone())).await;
        notifications.wait_for(&own).await;
        agent.end_session().await;
    }
    servers.assert_no_complaints().await;
}

#[tokio::test]
async fn subscribe_fails_without_capability_and_for_unknown_resource() {
    let mut script = Script::new("r", ServerEra::Dual).prompts_and_resources(&[], &["x:1"], &[]);
    script.capabilities = Some(serde_json::from_str(r#"{"resources":{}}"#).unwrap());
    let rig = crate::rig::FakeHttpServer::start(script).await;
    let fixture = crate::fixture::EvenkeelFixture::start(&[]).await;
    fixture.attach("r", &rig.spec()).await;
    let agent = fixture.agent(Era::Legacy).await;
    let error = agent.request("resources/subscribe", r#"{"uri":"x:1"}"#).await.unwrap_err();
    assert!(error.contains("does not support resource subscriptions") && error.contains("-32602"), "{error}");
    let other = Script::new("s", ServerEra::Dual).prompts_and_resources(&[], &["y:1"], &[]);
    let other = crate::rig::FakeHttpServer::start(other).await;
    fixture.attach("s", &other.spec()).await;
    let error = agent.request("resources/subscribe", r#"{"uri":"z:1"}"#).await.unwrap_err();
    assert!(error.contains("Unknown resource: z:1"), "{error}");
}

#[tokio::test]
async fn subscription_connects_an_idle_server() {
    let rig = crate::rig::FakeStdioServer::new(Script::new("r", ServerEra::Legacy).prompts_and_resources(
        &[],
        &["x:1"],
        &[],
    ));
    let mut fixture = crate::fixture::EvenkeelFixture::start(&[]).await;
    fixture.attach("r", &format!("{}\nactivation: OnDemand", rig.spec(""))).await;
    fixture.evenkeel.terminate().await;
    fixture.evenkeel.restart().await;
    fixture.evenkeel.wait_for("r", "Ready", "True", "Idle").await;
    assert_eq!(rig.live_processes().len(), 0);
    let agent = fixture.agent(Era::Legacy).await;
    let mut notifications = agent.notifications_with_resources(&["x:1"]).await;
    let process = eventually("the process is started", async || rig.live_processes().pop()).await;
    eventually("the resource is subscribed to", async || {
        process.counters().await.watched.contains_key("x:1").then_some(())
    })
    .await;
    notifications.drain();
    process.send_command(ControlCommand::Updated("x:1".into())).await;
    notifications.wait_for("x:1").await;
}
