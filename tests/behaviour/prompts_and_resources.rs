//! Prompts, resources, resource templates, completions and instructions: listed and routed like tools.

use std::time::{Duration, Instant};

use futures_util::future::join_all;
use serde_json::{Value, json};

use crate::fixture::EvenkeelFixture;
use crate::rig::{ControlCommand, FakeHttpServer, Script, ServerEra};
use crate::server_matrix::{NAMES, ServerMatrix};
use crate::support::{Agent, Era, eventually, within};

/// Attaches servers that each have resources of their own, and one resource that all of them have.
async fn attach_servers() -> ServerMatrix {
    ServerMatrix::attach(|script| {
        let own = [format!("rig://{}/a", script.name), "rig://shared".to_owned()];
        let template = format!("rig://{}/t/{{id}}", script.name);
        script.prompts_and_resources(&["greet", "ask me"], &own.each_ref().map(String::as_str), &[&template])
    })
    .await
}

async fn list_items(agent: &Agent, method: &str, member: &str) -> Vec<Value> {
    let page: Value = serde_json::from_str(&agent.request(method, "{}").await.unwrap()).unwrap();
    page[member].as_array().unwrap_or_else(|| panic!("{page}")).clone()
}

async fn item_names(agent: &Agent, method: &str, member: &str, key: &str) -> Vec<String> {
    let items = list_items(agent, method, member).await;
    items.iter().map(|item| item[key].as_str().unwrap().to_owned()).collect()
}

/// Returns the listed name of a server's prompt "ask me".
async fn ask_me_name(agent: &Agent, server: &str) -> Option<String> {
    let start = format!("{server}_ask_me_");
    item_names(agent, "prompts/list", "prompts", "name")
        .await
        .into_iter()
        .find(|name| name.starts_with(&start))
}

async fn read_resource(agent: &Agent, uri: &str) -> Result<String, String> {
    let result = agent.request("resources/read", &json!({ "uri": uri }).to_string()).await?;
    let result: Value = serde_json::from_str(&result).unwrap();
    assert_eq!(result["ttlMs"].is_number(), agent.era == Era::Modern, "{result}");
    Ok(result["contents"][0]["text"].as_str().unwrap().to_owned())
}

fn error_code(error: &str) -> i64 {
    let error: Value = serde_json::from_str(error).unwrap();
    error["code"].as_i64().unwrap()
}

#[tokio::test]
async fn frequent_list_changed_notifications_are_rate_limited() {
    let mut script = Script::new("restless", ServerEra::Legacy).tools(&["echo"]);
    script.restless = true;
    let (echoing, noisy) =
        (FakeHttpServer::start(script.clone()).await, FakeHttpServer::start(Script::default()).await);
    let fixture = EvenkeelFixture::start(&[]).await;
    fixture.attach("echoing", &echoing.spec()).await;
    fixture.attach("noisy", &noisy.spec()).await;
    eventually("both notification streams are open", async || {
        (echoing.counters().streams + noisy.counters().streams == 2).then_some(())
    })
    .await;
    let started_at = Instant::now();
    let too_few_reads = || [&echoing, &noisy].iter().any(|rig| rig.counters().tool_lists() < 3);
    let notifications = async {
        while started_at.elapsed() < Duration::from_secs(3) || too_few_reads() {
            noisy.send_command(ControlCommand::Notify("notifications/tools/list_changed".into()));
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    within("both lists are read again", notifications).await;
    // Once at the start, once without delay, and then with growing delays: 0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5, 5… s.
    let max_reads = 10 + started_at.elapsed().as_secs() / 5;
    for (name, rig) in [("echoing", &echoing), ("noisy", &noisy)] {
        let lists = rig.counters().tool_lists();
        assert!((3..=max_reads).contains(&lists), "{name} was listed {lists} times");
    }
    // The last change is still read.
    for (name, rig) in [("echoing", &echoing), ("noisy", &noisy)] {
        rig.edit_script(|script| *script = script.clone().tools(&["late"]));
        let agent = fixture.agent(Era::Legacy).await;
        eventually("the last change is listed", async || {
            agent.tool_names().await.contains(&format!("{name}_late")).then_some(())
        })
        .await;
    }
}

#[tokio::test]
async fn all_items_are_listed_and_routed_to_their_server() {
    let servers = attach_servers().await;
    for (agent, name, case) in servers.pairs().await {
        let prompts = list_items(&agent, "prompts/list", "prompts").await;
        let greet = prompts.iter().find(|prompt| prompt["name"] == format!("{name}_greet")).expect(&case);
        assert_eq!(greet["x-kept"], 100.0, "{case}");
        // A space is not valid in a name, so the name is hash-suffixed.
        let listed_name = ask_me_name(&agent, name).await.expect(&case);
        let params = json!({ "name": listed_name, "arguments": {"a": "b"} }).to_string();
        let response = agent.request("prompts/get", &params).await.unwrap();
        assert!(
            response.contains(r#"\"name\":\"ask me\""#) && response.contains(r#"\"a\":\"b\""#),
            "{case}: {response}"
        );

        let uris = item_names(&agent, "resources/list", "resources", "uri").await;
        assert!(uris.contains(&format!("rig://{name}/a")), "{case}: {uris:?}");
        assert_eq!(
            read_resource(&agent, &format!("rig://{name}/a")).await.unwrap(),
            format!("{name} says rig://{name}/a")
        );
        let templates =
            item_names(&agent, "resources/templates/list", "resourceTemplates", "uriTemplate").await;
        assert!(templates.contains(&format!("rig://{name}/t/{{id}}")), "{case}: {templates:?}");
        let uri = format!("rig://{name}/t/7");
        assert_eq!(read_resource(&agent, &uri).await.unwrap(), format!("{name} says {uri}"), "{case}");

        let missing = read_resource(&agent, &format!("rig://{name}/t/missing")).await.unwrap_err();
        let unknown = read_resource(&agent, "rig://unknown").await.unwrap_err();
        assert!(unknown.contains("rig://unknown"), "{case}: {unknown}");
        let expected = if agent.era == Era::Modern { -32602 } else { -32002 };
        assert_eq!([error_code(&missing), error_code(&unknown)], [expected; 2], "{case}");

        for (kind, key, listed, own) in [
            ("ref/prompt", "name", listed_name, "ask me".to_owned()),
            ("ref/resource", "uri", format!("rig://{name}/t/{{id}}"), format!("rig://{name}/t/{{id}}")),
        ] {
            let params =
                json!({ "ref": { "type": kind, key: listed }, "argument": { "name": "id", "value": "7" } });
            let response = agent.request("completion/complete", &params.to_string()).await.unwrap();
            let response: Value = serde_json::from_str(&response).unwrap();
            let received: Value =
                serde_json::from_str(response["completion"]["values"][0].as_str().unwrap()).unwrap();
            assert_eq!(
                (&received["ref"]["type"], &received["ref"][key]),
                (&json!(kind), &json!(own)),
                "{case}"
            );
            assert_eq!(received["argument"]["value"], "7", "{case}");
        }
    }
    servers.assert_no_complaints().await;
}

#[tokio::test]
async fn resource_shared_by_all_servers_can_be_read_from_each() {
    let servers = attach_servers().await;
    for era in Era::ALL {
        let agent = servers.fixture.agent(era).await;
        let uris = item_names(&agent, "resources/list", "resources", "uri").await;
        let shared: Vec<_> = uris.iter().filter(|uri| uri.starts_with("rig://shared")).collect();
        assert_eq!(shared.len(), NAMES.len(), "{uris:?}");
        let mut owners = Vec::new();
        for uri in shared {
            let text = read_resource(&agent, uri).await.unwrap();
            owners.push(text.strip_suffix(" says rig://shared").expect("its own URI").to_owned());
        }
        owners.sort();
        assert_eq!(owners, ["hl", "hm", "sl", "sm"]);
    }
    let accepted = servers.fixture.evenkeel.wait_for("hm", "Accepted", "True", "NameConflict").await;
    assert!(accepted.message.contains("rig://shared#"), "{accepted:?}");
}

#[tokio::test]
async fn filters_apply_to_unlisted_resources() {
    let rig = FakeHttpServer::start(Script::new("r", ServerEra::Dual).prompts_and_resources(
        &["a", "b"],
        &["x:1", "x:2"],
        &["x:{id}"],
    ))
    .await;
    let fixture = EvenkeelFixture::start(&[]).await;
    let expose = "expose: { prompts: { deny: [b] }, resources: { deny: [\"x:2*\"] } }";
    fixture.attach("r", &format!("{}\n{expose}", rig.spec())).await;
    for era in Era::ALL {
        let agent = fixture.agent(era).await;
        assert_eq!(item_names(&agent, "prompts/list", "prompts", "name").await, ["r_a"]);
        assert_eq!(item_names(&agent, "resources/list", "resources", "uri").await, ["x:1"]);
        assert_eq!(read_resource(&agent, "x:3").await.unwrap(), "r says x:3");
        for hidden in ["x:2", "x:22"] {
            let error = read_resource(&agent, hidden).await.unwrap_err();
            assert!(error.contains("Unknown resource"), "{error}");
        }
    }
    assert_eq!(rig.counters().count("resources/read"), 2);
    let status = fixture.server("r").await["status"].clone();
    assert_eq!(
        (&status["tools"], &status["prompts"], &status["resources"]),
        (&json!(2), &json!(1), &json!(1))
    );
}

#[tokio::test]
async fn server_without_tools_is_ready_and_gets_no_tools_list_request() {
    let mut script = Script::new("r", ServerEra::Dual).prompts_and_resources(&["a"], &[], &[]);
    script.capabilities = Some(serde_json::from_str(r#"{"prompts":{}}"#).unwrap());
    let rig = FakeHttpServer::start(script).await;
    let fixture = EvenkeelFixture::start(&[("r", &rig.spec())]).await;
    fixture.evenkeel.wait_until_attached("r").await;
    let status = fixture.server("r").await["status"].clone();
    assert_eq!((&status["tools"], &status["prompts"]), (&json!(0), &json!(1)));
    for method in ["tools/list", "resources/list", "resources/templates/list"] {
        assert_eq!(rig.counters().count(method), 0, "{method}");
    }
}

/// The lists other than the tools, with their members.
const OPTIONAL_LISTS: [(&str, &str); 3] = [
    ("prompts/list", "prompts"),
    ("resources/list", "resources"),
    ("resources/templates/list", "resourceTemplates"),
];

#[tokio::test]
async fn unreadable_list_degrades_only_that_list() {
    // At the same time: most of it is waiting for lists to be read again.
    join_all(OPTIONAL_LISTS.map(|(method, _)| check_unreadable_list(method))).await;
}

async fn check_unreadable_list(method: &str) {
    use crate::rig::{Action, Rule};
    let failures = [
        Action::error(-32603, "the database is empty"),
        Action::error(-32602, "Invalid params"),
        Action::result("{}"),
        Action::result(r#"{"prompts":{},"resources":1,"resourceTemplates":"x"}"#),
        Action::status(500),
        Action::Hang,
    ];
    let fixture = EvenkeelFixture::start(&[]).await;
    let agent = fixture.agent(Era::Legacy).await;
    let mut rigs = Vec::new();
    for (number, failure) in failures.into_iter().enumerate() {
        let name = format!("r{number}");
        let script = Script::new(&name, ServerEra::Dual).prompts_and_resources(&["a"], &["x:1"], &["y:{z}"]);
        let rig = FakeHttpServer::start(script.on(method, Rule::always(failure))).await;
        fixture.declared.write_server(&name, &format!("{}\ntimeouts: {{ connect: 4s }}", rig.spec()));
        rigs.push((name, rig));
    }
    for (name, _) in &rigs {
        fixture.evenkeel.wait_until_attached(name).await;
        let degraded = fixture.evenkeel.wait_for(name, "Degraded", "True", "ListUnavailable").await;
        assert!(degraded.message.contains(method), "{name}: {degraded:?}");
        agent.call_text(&format!("{name}_echo"), "{}").await;
    }
    // Once the list can be read, it is published, and the Degraded condition is removed. All servers are repaired before
    // the first wait: the delay before the next read doubles as long as a list fails.
    for (_, rig) in &rigs {
        rig.edit_script(|script| script.on.clear());
    }
    for (name, rig) in &rigs {
        eventually(&format!("{method} of {name} is read"), async || {
            fixture.evenkeel.condition(name, "Degraded").await.is_none().then_some(())
        })
        .await;
        let status = &fixture.server(name).await["status"];
        assert_eq!((&status["prompts"], &status["resources"]), (&json!(1), &json!(1)), "{method} {name}");
        let counters = rig.counters();
        assert_eq!(counters.sessions_opened, counters.initializes());
    }
}

#[tokio::test]
async fn null_list_is_empty_and_reported() {
    use crate::rig::{Action, Rule};
    let all = [("tools/list", "tools")].into_iter().chain(OPTIONAL_LISTS);
    for (method, member) in all {
        let script = Script::new("r", ServerEra::Dual).prompts_and_resources(&["a"], &["x:1"], &["y:{z}"]);
        let null = Action::result(&format!(r#"{{"{member}":null,"nextCursor":null}}"#));
        let rig = FakeHttpServer::start(script.on(method, Rule::always(null))).await;
        let fixture = EvenkeelFixture::start(&[("r", &rig.spec())]).await;
        fixture.evenkeel.wait_until_attached("r").await;
        let degraded = fixture.evenkeel.wait_for("r", "Degraded", "True", "NonCompliant").await;
        assert!(degraded.message.contains(method) && degraded.message.contains("null"), "{degraded:?}");
        let agent = fixture.agent(Era::Legacy).await;
        let tools = agent.tool_names().await;
        assert_eq!(tools.len(), if method == "tools/list" { 0 } else { 2 }, "{method}: {tools:?}");
    }
}

#[tokio::test]
async fn server_without_resource_templates_is_not_degraded() {
    use crate::rig::{Action, Rule};
    let script = Script::new("r", ServerEra::Dual).prompts_and_resources(&["a"], &["x:1"], &[]);
    let unknown = Rule::always(Action::error(-32601, "Method not found"));
    let rig = FakeHttpServer::start(script.on("resources/templates/list", unknown)).await;
    let fixture = EvenkeelFixture::start(&[("r", &rig.spec())]).await;
    fixture.evenkeel.wait_until_attached("r").await;
    let agent = fixture.agent(Era::Legacy).await;
    assert_eq!(item_names(&agent, "resources/list", "resources", "uri").await, ["x:1"]);
    assert!(fixture.evenkeel.condition("r", "Degraded").await.is_none());
}

#[tokio::test]
async fn each_list_sends_its_own_change_notification() {
    let servers = attach_servers().await;
    for name in NAMES {
        let mut agents = Vec::new();
        for era in Era::ALL {
            let agent = servers.fixture.agent(era).await;
            for list in ["tools/list", "prompts/list", "resources/list"] {
                agent.request(list, "{}").await.unwrap();
            }
            let notifications = agent.notifications().await;
            let listed_name = ask_me_name(&agent, name).await.unwrap();
            agents.push((agent, notifications, listed_name));
        }
        let before = servers.counters(name).await;
        servers.edit_script(name, |script| script.prompts.truncate(1)).await;
        for (agent, notifications, listed_name) in &mut agents {
            notifications.wait_for("notifications/prompts/list_changed").await;
            assert_eq!(ask_me_name(agent, name).await, None);
            let removed = agent.request("prompts/get", &json!({ "name": listed_name }).to_string()).await;
            assert!(removed.unwrap_err().contains("no longer offers it"));
        }
        servers.edit_script(name, |script| script.templates.clear()).await;
        for (agent, notifications, _) in &mut agents {
            notifications.wait_for("notifications/resources/list_changed").await;
            let templates =
                item_names(agent, "resources/templates/list", "resourceTemplates", "uriTemplate").await;
            assert!(!templates.contains(&format!("rig://{name}/t/{{id}}")), "{templates:?}");
        }
        let after = servers.counters(name).await;
        let more = |method| after.count(method) - before.count(method);
        assert_eq!((more("tools/list"), more("prompts/list")), (0, 1), "{name}");
        assert_eq!((more("resources/list"), more("resources/templates/list")), (1, 1), "{name}");
    }
    servers.assert_no_complaints().await;
}

#[tokio::test]
async fn instructions_follow_the_attached_servers() {
    let servers = attach_servers().await;
    for era in Era::ALL {
        let opening = |agent: &Agent| {
            let opening: Value = serde_json::from_str(&agent.handshake_result).unwrap();
            opening["instructions"].as_str().unwrap_or_default().to_owned()
        };
        // The rig returns instructions to legacy clients only.
        let instructions = opening(&servers.fixture.agent(era).await);
        assert!(instructions.contains("# hl (tool names start with hl_)\n\nAsk the rig."), "{instructions}");
        assert!(instructions.contains("# sl "), "{instructions}");
    }
    servers.fixture.declared.remove("hl.yaml");
    for era in Era::ALL {
        eventually("the instructions of the removed server are gone", async || {
            let agent = servers.fixture.agent(era).await;
            (!agent.handshake_result.contains("# hl") && agent.handshake_result.contains("# sl"))
                .then_some(())
        })
        .await;
    }
}
