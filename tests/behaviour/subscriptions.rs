//! Updates of resources and log messages reach the agents that asked for them, over every change of connection.

use serde_json::json;

use crate::rig::{Command, Era as RigEra, Script};
use crate::servers::{NAMES, Servers};
use crate::support::{Agent, Era, eventually};

async fn servers() -> Servers {
    Servers::attach(|script: Script| {
        let own = format!("rig://{}/a", script.name);
        script.tools(&["echo", "log"]).offers(&[], &[&own, "rig://shared"], &[])
    })
    .await
}

/// Waits until the server is asked to tell of exactly these resources.
async fn watches(servers: &Servers, name: &str, uris: &[&str]) {
    eventually(&format!("{name} is watched for {uris:?}"), async || {
        let watched = servers.counters(name).await.watched;
        watched.keys().eq(uris).then_some(())
    })
    .await;
}

fn is_legacy(name: &str) -> bool {
    name.ends_with('l')
}

async fn level(agent: &Agent, level: &str) {
    agent.request("logging/setLevel", &json!({ "level": level }).to_string()).await.unwrap();
}

#[tokio::test]
async fn an_update_reaches_those_who_watch_and_nobody_else() {
    let servers = servers().await;
    for name in NAMES {
        let own = format!("rig://{name}/a");
        let mut watchers = Vec::new();
        for era in Era::ALL {
            let agent = servers.stage.agent(era).await;
            let notices = agent.notices_of(&[&own]).await;
            watchers.push((agent, notices));
        }
        let idle = servers.stage.agent(Era::Legacy).await;
        let mut silence = idle.notices().await;
        watches(&servers, name, &[&own]).await;
        servers.tell(name, Command::Updated(own.clone())).await;
        for (agent, notices) in &mut watchers {
            let notice = notices.with("resources/updated").await;
            assert!(notice.contains(&format!(r#""uri":"{own}""#)), "{:?}: {notice}", agent.era);
        }
        assert!(!silence.seen().iter().any(|notice| notice.contains("updated")));
        let (legacy, _) = &watchers[0];
        legacy.request("resources/unsubscribe", &json!({ "uri": own }).to_string()).await.unwrap();
        watches(&servers, name, &[&own]).await;
        watchers.pop();
        watches(&servers, name, &[]).await;
    }
    servers.no_complaints().await;
}

#[tokio::test]
async fn a_resource_that_many_have_is_told_by_the_name_that_the_agent_knows() {
    let servers = servers().await;
    let agent = servers.stage.agent(Era::Legacy).await;
    let listed = agent.request("resources/list", "{}").await.unwrap();
    let listed: serde_json::Value = serde_json::from_str(&listed).unwrap();
    let uris: Vec<_> =
        listed["resources"].as_array().unwrap().iter().map(|item| item["uri"].as_str().unwrap()).collect();
    let shared: Vec<_> = uris.into_iter().filter(|uri| uri.starts_with("rig://shared")).collect();
    assert_eq!(shared.len(), 4);
    let mut notices = agent.notices_of(&shared).await;
    watches(&servers, "sl", &["rig://shared"]).await;
    servers.tell("sl", Command::Updated("rig://shared".into())).await;
    let first = notices.with("resources/updated").await;
    watches(&servers, "hl", &["rig://shared"]).await;
    servers.tell("hl", Command::Updated("rig://shared".into())).await;
    let second = notices.with("resources/updated").await;
    assert_ne!(first, second);
    // The server that was there first has the plain name.
    assert!(
        first.contains(r#""uri":"rig://shared""#) && second.contains(r#""uri":"rig://shared#"#),
        "{first} {second}"
    );
}

#[tokio::test]
async fn log_messages_come_from_the_level_on_that_was_asked_for() {
    let servers = servers().await;
    let (verbose, calm, silent) = (
        servers.stage.agent(Era::Legacy).await,
        servers.stage.agent(Era::Legacy).await,
        servers.stage.agent(Era::Legacy).await,
    );
    let (mut all, mut grave, mut none) =
        (verbose.notices().await, calm.notices().await, silent.notices().await);
    level(&verbose, "info").await;
    level(&calm, "error").await;
    for name in ["sl", "hl"] {
        eventually("the lowest level is set", async || {
            (servers.counters(name).await.level.as_deref() == Some("info")).then_some(())
        })
        .await;
        for level in ["debug", "info", "error"] {
            servers.tell(name, Command::Log(level.into(), format!("{level} of {name}"))).await;
        }
        all.with(&format!("info of {name}")).await;
        all.with(&format!("error of {name}")).await;
        let heard = grave.next().await;
        assert!(heard.contains(&format!("error of {name}")), "{heard}");
    }
    assert!(none.seen().is_empty());
    let error = silent.request("logging/setLevel", r#"{"level":"loud"}"#).await.unwrap_err();
    assert!(error.contains("debug, info, notice"), "{error}");
    // The last who wanted the lower level is gone.
    verbose.end().await;
    eventually("the level is raised", async || {
        (servers.counters("hl").await.level.as_deref() == Some("error")).then_some(())
    })
    .await;
    servers.no_complaints().await;
}

#[tokio::test]
async fn messages_on_the_way_to_an_answer_are_for_agents_that_asked() {
    let servers = servers().await;
    // Over stdio a message belongs to no call.
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
            let agent = servers.stage.agent(era).await;
            if let Some(set) = set {
                level(&agent, set).await;
            }
            let mut call = agent.begin("tools/call", &params(meta)).await.unwrap();
            let mut heard = false;
            while let Some(message) = call.next().await.unwrap() {
                heard |= message.contains("notifications/message");
            }
            assert_eq!(heard, expected, "{name} {era:?} {meta} {set:?}");
        }
    }
}

#[tokio::test]
async fn a_new_connection_is_asked_for_all_of_it_again() {
    let servers = servers().await;
    for name in NAMES {
        let own = format!("rig://{name}/a");
        let agent = servers.stage.agent(Era::Legacy).await;
        let mut notices = agent.notices_of(&[&own]).await;
        level(&agent, "warning").await;
        watches(&servers, name, &[&own]).await;
        notices.seen();
        servers.cut(name).await;
        // What may have been missed is told without being asked for.
        notices.with("resources/updated").await;
        watches(&servers, name, &[&own]).await;
        if is_legacy(name) {
            eventually("the level is set again", async || {
                (servers.counters(name).await.level.as_deref() == Some("warning")).then_some(())
            })
            .await;
            servers.tell(name, Command::Log("error".into(), "again".into())).await;
            notices.with("again").await;
        }
        notices.seen();
        servers.tell(name, Command::Updated(own.clone())).await;
        notices.with(&own).await;
        agent.end().await;
    }
    servers.no_complaints().await;
}

#[tokio::test]
async fn a_server_that_cannot_tell_refuses_and_a_stranger_is_unknown() {
    let mut script = Script::new("r", RigEra::Dual).offers(&[], &["x:1"], &[]);
    script.capabilities = Some(serde_json::from_str(r#"{"resources":{}}"#).unwrap());
    let rig = crate::rig::Http::start(script).await;
    let stage = crate::stage::Stage::start(&[]).await;
    stage.attach("r", &rig.spec()).await;
    let agent = stage.agent(Era::Legacy).await;
    let error = agent.request("resources/subscribe", r#"{"uri":"x:1"}"#).await.unwrap_err();
    assert!(error.contains("does not tell when a resource changes"), "{error}");
    let other = Script::new("s", RigEra::Dual).offers(&[], &["y:1"], &[]);
    let other = crate::rig::Http::start(other).await;
    stage.attach("s", &other.spec()).await;
    let error = agent.request("resources/subscribe", r#"{"uri":"z:1"}"#).await.unwrap_err();
    assert!(error.contains("Unknown resource: z:1"), "{error}");
}

#[tokio::test]
async fn a_server_that_sleeps_is_woken_by_whoever_watches_it() {
    let rig = crate::rig::Stdio::new(Script::new("r", RigEra::Legacy).offers(&[], &["x:1"], &[]));
    let mut stage = crate::stage::Stage::start(&[]).await;
    stage.attach("r", &format!("{}\nactivation: OnDemand", rig.spec(""))).await;
    stage.evenkeel.terminate().await;
    stage.evenkeel.start_again().await;
    stage.evenkeel.wait_for("r", "Ready", "True", "Idle").await;
    assert_eq!(rig.alive().len(), 0);
    let agent = stage.agent(Era::Legacy).await;
    let mut notices = agent.notices_of(&["x:1"]).await;
    let process = eventually("it is started", async || rig.alive().pop()).await;
    eventually("it is watched", async || process.counters().await.watched.contains_key("x:1").then_some(()))
        .await;
    notices.seen();
    process.tell(Command::Updated("x:1".into())).await;
    notices.with("x:1").await;
}
