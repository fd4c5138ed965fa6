//! Prompts, resources, templates, completions and instructions: offered and answered as tools are.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::fixture::EvenkeelFixture;
use crate::rig::{ControlCommand, FakeHttpServer, Script, ServerEra};
use crate::server_matrix::{NAMES, ServerMatrix};
use crate::support::{Agent, Era, eventually, within};

/// Each server has resources of its own, and one that all of them have.
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

/// The name that agents know of the prompt "ask me" of a server.
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
    let stage = EvenkeelFixture::start(&[]).await;
    stage.attach("echoing", &echoing.spec()).await;
    stage.attach("noisy", &noisy.spec()).await;
    eventually("both streams are open", async || {
        (echoing.counters().streams + noisy.counters().streams == 2).then_some(())
    })
    .await;
    let begun = Instant::now();
    let few = || [&echoing, &noisy].iter().any(|rig| rig.counters().tool_lists() < 3);
    let noise = async {
        while begun.elapsed() < Duration::from_secs(3) || few() {
            noisy.send_command(ControlCommand::Notify("notifications/tools/list_changed".into()));
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    within("both are read again", noise).await;
    // Once at the start, at once, and then with pauses that grow: 0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5, 5… s.
    let most = 10 + begun.elapsed().as_secs() / 5;
    for (name, rig) in [("echoing", &echoing), ("noisy", &noisy)] {
        let lists = rig.counters().tool_lists();
        assert!((3..=most).contains(&lists), "{name} was listed {lists} times");
    }
    // What is told last is read all the same.
    for (name, rig) in [("echoing", &echoing), ("noisy", &noisy)] {
        rig.edit_script(|script| *script = script.clone().tools(&["late"]));
        let agent = stage.agent(Era::Legacy).await;
        eventually("the last change is seen", async || {
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
        // A blank is not legal in a name: it has a tail.
        let ask_me = ask_me_name(&agent, name).await.expect(&case);
        let params = json!({ "name": ask_me, "arguments": {"a": "b"} }).to_string();
        let got = agent.request("prompts/get", &params).await.unwrap();
        assert!(got.contains(r#"\"name\":\"ask me\""#) && got.contains(r#"\"a\":\"b\""#), "{case}: {got}");

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
        let nowhere = read_resource(&agent, "rig://nowhere").await.unwrap_err();
        assert!(nowhere.contains("rig://nowhere"), "{case}: {nowhere}");
        let expected =
            if agent.era == Era::Modern { [-32602, -32602] } else { [error_code(&missing), -32002] };
        assert_eq!([error_code(&missing), error_code(&nowhere)], expected, "{case}");

        for (kind, key, known, own) in [
            ("ref/prompt", "name", ask_me, "ask me".to_owned()),
            ("ref/resource", "uri", format!("rig://{name}/t/{{id}}"), format!("rig://{name}/t/{{id}}")),
        ] {
            let params =
                json!({ "ref": { "type": kind, key: known }, "argument": { "name": "id", "value": "7" } });
            let got = agent.request("completion/complete", &params.to_string()).await.unwrap();
            let got: Value = serde_json::from_str(&got).unwrap();
            let asked: Value =
                serde_json::from_str(got["completion"]["values"][0].as_str().unwrap()).unwrap();
            assert_eq!((&asked["ref"]["type"], &asked["ref"][key]), (&json!(kind), &json!(own)), "{case}");
            assert_eq!(asked["argument"]["value"], "7", "{case}");
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
    let stage = EvenkeelFixture::start(&[]).await;
    let expose = "expose: { prompts: { deny: [b] }, resources: { deny: [\"x:2*\"] } }";
    stage.attach("r", &format!("{}\n{expose}", rig.spec())).await;
    for era in Era::ALL {
        let agent = stage.agent(era).await;
        assert_eq!(item_names(&agent, "prompts/list", "prompts", "name").await, ["r_a"]);
        assert_eq!(item_names(&agent, "resources/list", "resources", "uri").await, ["x:1"]);
        assert_eq!(read_resource(&agent, "x:3").await.unwrap(), "r says x:3");
        for hidden in ["x:2", "x:22"] {
            let error = read_resource(&agent, hidden).await.unwrap_err();
            assert!(error.contains("Unknown resource"), "{error}");
        }
    }
    assert_eq!(rig.counters().count("resources/read"), 2);
    let status = stage.server("r").await["status"].clone();
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
    let stage = EvenkeelFixture::start(&[("r", &rig.spec())]).await;
    stage.evenkeel.wait_until_attached("r").await;
    let status = stage.server("r").await["status"].clone();
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
    use crate::rig::{Action, Rule};
    let failures = [
        Action::error(-32603, "the shelf is empty"),
        Action::error(-32602, "Invalid params"),
        Action::result("{}"),
        Action::result(r#"{"prompts":{},"resources":1,"resourceTemplates":"x"}"#),
        Action::status(500),
        Action::Hang,
    ];
    for (method, _) in OPTIONAL_LISTS {
        let stage = EvenkeelFixture::start(&[]).await;
        let agent = stage.agent(Era::Legacy).await;
        let mut rigs = Vec::new();
        for (number, failure) in failures.iter().enumerate() {
            let name = format!("r{number}");
            let script =
                Script::new(&name, ServerEra::Dual).prompts_and_resources(&["a"], &["x:1"], &["y:{z}"]);
            let rig = FakeHttpServer::start(script.on(method, Rule::always(failure.clone()))).await;
            stage.declared.write_server(&name, &format!("{}\ntimeouts: {{ connect: 4s }}", rig.spec()));
            rigs.push((name, rig));
        }
        for (name, _) in &rigs {
            stage.evenkeel.wait_until_attached(name).await;
            let degraded = stage.evenkeel.wait_for(name, "Degraded", "True", "ListUnavailable").await;
            assert!(degraded.message.contains(method), "{name}: {degraded:?}");
            agent.call_text(&format!("{name}_echo"), "{}").await;
        }
        // Once the list can be read, it is there, and nothing is Degraded.
        for (name, rig) in &rigs {
            rig.edit_script(|script| script.on.clear());
            eventually(&format!("{method} of {name} is read"), async || {
                stage.evenkeel.condition(name, "Degraded").await.is_none().then_some(())
            })
            .await;
            let status = &stage.server(name).await["status"];
            assert_eq!((&status["prompts"], &status["resources"]), (&json!(1), &json!(1)), "{method} {name}");
            assert_eq!(rig.counters().sessions_opened, rig.counters().initializes());
        }
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
        let stage = EvenkeelFixture::start(&[("r", &rig.spec())]).await;
        stage.evenkeel.wait_until_attached("r").await;
        let degraded = stage.evenkeel.wait_for("r", "Degraded", "True", "NonCompliant").await;
        assert!(degraded.message.contains(method) && degraded.message.contains("null"), "{degraded:?}");
        let agent = stage.agent(Era::Legacy).await;
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
    let stage = EvenkeelFixture::start(&[("r", &rig.spec())]).await;
    stage.evenkeel.wait_until_attached("r").await;
    let agent = stage.agent(Era::Legacy).await;
    assert_eq!(item_names(&agent, "resources/list", "resources", "uri").await, ["x:1"]);
    assert!(stage.evenkeel.condition("r", "Degraded").await.is_none());
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
            let notices = agent.notifications().await;
            let known = ask_me_name(&agent, name).await.unwrap();
            agents.push((agent, notices, known));
        }
        let before = servers.counters(name).await;
        servers.edit_script(name, |script| script.prompts.truncate(1)).await;
        for (agent, notices, known) in &mut agents {
            notices.wait_for("notifications/prompts/list_changed").await;
            assert_eq!(ask_me_name(agent, name).await, None);
            let gone = agent.request("prompts/get", &json!({ "name": known }).to_string()).await;
            assert!(gone.unwrap_err().contains("no longer offers it"));
        }
        servers.edit_script(name, |script| script.templates.clear()).await;
        for (agent, notices, _) in &mut agents {
            notices.wait_for("notifications/resources/list_changed").await;
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
        // The rig tells its instructions to legacy clients.
        let told = opening(&servers.fixture.agent(era).await);
        assert!(told.contains("# hl (tool names start with hl_)\n\nAsk the rig."), "{told}");
        assert!(told.contains("# sl "), "{told}");
    }
    servers.fixture.declared.remove("hl.yaml");
    for era in Era::ALL {
        eventually("they are gone", async || {
            let agent = servers.fixture.agent(era).await;
            (!agent.handshake_result.contains("# hl") && agent.handshake_result.contains("# sl"))
                .then_some(())
        })
        .await;
    }
}
