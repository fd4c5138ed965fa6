//! Lists of servers that answer them oddly, only in part, or without declaring them. Every oddity costs at most its own
//! list, and status tells it.

use serde_json::{Value, json};

use crate::fixture::EvenkeelFixture;
use crate::rig::{Action, ControlCommand, FakeHttpServer, Rule, Script, ServerEra};
use crate::support::{Agent, Era, eventually};

fn everything(name: &str, era: ServerEra) -> Script {
    Script::new(name, era).prompts_and_resources(&["a"], &["x:1"], &["y:{z}"])
}

/// A page of tools that ends with these members.
fn tools_page(names: &[&str], end: &str) -> Action {
    let tools: Vec<_> = names
        .iter()
        .map(|name| json!({ "name": name, "inputSchema": { "type": "object" } }).to_string())
        .collect();
    let caching = r#""resultType":"complete","ttlMs":0,"cacheScope":"private""#;
    Action::result(&format!(r#"{{"tools":[{}],{caching}{end}}}"#, tools.join(",")))
}

async fn names(agent: &Agent, method: &str, member: &str, key: &str) -> Vec<String> {
    let page: Value = serde_json::from_str(&agent.request(method, "{}").await.unwrap()).unwrap();
    page[member].as_array().unwrap().iter().map(|item| item[key].as_str().unwrap().to_owned()).collect()
}

#[tokio::test]
async fn odd_cursor_ends_the_list_and_is_told() {
    for era in [ServerEra::Legacy, ServerEra::Modern] {
        let fixture = EvenkeelFixture::start(&[]).await;
        let mut rigs = Vec::new();
        for (number, (cursor, told)) in [
            ("null", None),
            ("2", Some("nextCursor is not a string")),
            ("false", Some("nextCursor is not a string")),
            ("{}", Some("nextCursor is not a string")),
            (r#""again""#, Some("the same nextCursor twice")),
            // An empty cursor may be one, or mean the end: then its page is refused.
            (r#""""#, Some("its own empty nextCursor")),
        ]
        .into_iter()
        .enumerate()
        {
            let name = format!("r{number}");
            let page = tools_page(&["a"], &format!(r#","nextCursor":{cursor}"#));
            let mut script = Script::new(&name, era);
            // The rig itself refuses an empty cursor.
            let rule = if cursor == r#""""# { Rule::times(1, page) } else { Rule::always(page) };
            script = script.on("tools/list", rule);
            let rig = FakeHttpServer::start(script).await;
            fixture.attach(&name, &rig.spec()).await;
            match told {
                Some(told) => {
                    let degraded = fixture.evenkeel.wait_for(&name, "Degraded", "True", "NonCompliant").await;
                    assert!(degraded.message.contains(told), "{cursor}: {degraded:?}");
                }
                None => assert!(fixture.evenkeel.condition(&name, "Degraded").await.is_none(), "{cursor}"),
            }
            rigs.push(rig);
        }
        let tools = fixture.agent(Era::Legacy).await.tool_names().await;
        assert_eq!(tools, ["r0_a", "r1_a", "r2_a", "r3_a", "r4_a", "r5_a"], "{era:?}");
    }
}

#[tokio::test]
async fn failed_page_publishes_nothing_of_the_list_and_keeps_the_last() {
    for era in [ServerEra::Legacy, ServerEra::Modern] {
        let rig = FakeHttpServer::start(everything("r", era).tools(&["echo", "report"])).await;
        let fixture = EvenkeelFixture::start(&[("r", &rig.spec())]).await;
        fixture.evenkeel.wait_until_attached("r").await;
        let agent = fixture.agent(Era::Modern).await;
        let mut failures = vec![
            Action::error(-32603, "the database is locked"),
            Action::result("[]"),
            Action::result(r#"{"tools":7,"prompts":"x"}"#),
            Action::Junk("{".into()),
        ];
        if era == ServerEra::Modern {
            failures.push(Action::status(500));
        }
        for failure in failures {
            for (method, member) in [("tools/list", "tools"), ("prompts/list", "prompts")] {
                let first = if method == "tools/list" {
                    tools_page(&["new"], r#","nextCursor":"2""#)
                } else {
                    Action::result(r#"{"prompts":[{"name":"new"}],"nextCursor":"2"}"#)
                };
                rig.edit_script(|script| {
                    script.on.clear();
                    *script = script
                        .clone()
                        .on(method, Rule::times(1, first))
                        .on(method, Rule::always(failure.clone()));
                });
                rig.send_command(ControlCommand::Notify(format!("notifications/{member}/list_changed")));
                let degraded = fixture.evenkeel.wait_for("r", "Degraded", "True", "ListUnavailable").await;
                assert!(degraded.message.contains(method), "{degraded:?}");
                assert_eq!(agent.tool_names().await, ["r_echo", "r_report"]);
                assert_eq!(names(&agent, "prompts/list", "prompts", "name").await, ["r_a"]);
                rig.edit_script(|script| script.on.clear());
                eventually("the list is read again", async || {
                    // Text that is not JSON remains reported as a violation of the protocol.
                    let degraded = fixture.evenkeel.condition("r", "Degraded").await;
                    degraded.is_none_or(|degraded| degraded.reason == "NonCompliant").then_some(())
                })
                .await;
            }
        }
    }
}

#[tokio::test]
async fn unknown_method_of_a_declared_list_costs_that_list() {
    let fixture = EvenkeelFixture::start(&[]).await;
    let mut rigs = Vec::new();
    for (number, method) in ["tools/list", "prompts/list", "resources/list"].into_iter().enumerate() {
        let name = format!("r{number}");
        let unknown = Rule::always(Action::error(-32601, "Method not found"));
        let rig = FakeHttpServer::start(everything(&name, ServerEra::Legacy).on(method, unknown)).await;
        fixture.attach(&name, &rig.spec()).await;
        let degraded = fixture.evenkeel.wait_for(&name, "Degraded", "True", "ListUnavailable").await;
        let told = degraded.message.contains(method) && degraded.message.contains("spec.capabilities");
        assert!(told, "{degraded:?}");
        let status = &fixture.server(&name).await["status"];
        let counts = [&status["tools"], &status["prompts"], &status["resources"]].map(Value::as_u64);
        let mut expected = [Some(2), Some(1), Some(1)];
        expected[number] = Some(0);
        assert_eq!(counts, expected, "{method}");
        rigs.push(rig);
    }
}

#[tokio::test]
async fn undeclared_kinds_are_read_with_spec_capabilities_without_a_new_connection() {
    for era in [ServerEra::Legacy, ServerEra::Modern] {
        let mut script = everything("r", era);
        script.capabilities = Some(serde_json::from_str("{}").unwrap());
        let rig = FakeHttpServer::start(script).await;
        let fixture = EvenkeelFixture::start(&[("r", &rig.spec())]).await;
        fixture.evenkeel.wait_until_attached("r").await;
        let ready = fixture.evenkeel.condition("r", "Ready").await.unwrap();
        assert!(ready.message.contains("0 tools (the server declares none"), "{ready:?}");
        assert!(ready.message.contains("spec.capabilities"), "{ready:?}");
        assert!(fixture.evenkeel.condition("r", "Degraded").await.is_none());
        let connections = rig.counters().initializes() + rig.counters().count("server/discover");

        let spec = format!("{}\ncapabilities: {{ tools: true, prompts: true, resources: true }}", rig.spec());
        fixture.declared.write_server("r", &spec);
        let agent = fixture.agent(Era::Legacy).await;
        eventually("all kinds are read", async || {
            let status = fixture.server("r").await["status"].clone();
            (status["tools"] == 2 && status["prompts"] == 1 && status["resources"] == 1).then_some(())
        })
        .await;
        agent.call_text("r_echo", "{}").await;
        assert_eq!(
            names(&agent, "resources/templates/list", "resourceTemplates", "uriTemplate").await,
            ["y:{z}"]
        );
        let ready = fixture.evenkeel.condition("r", "Ready").await.unwrap();
        assert!(!ready.message.contains("declares none"), "{ready:?}");

        fixture.declared.write_server("r", &rig.spec());
        eventually("the kinds are gone", async || {
            (fixture.server("r").await["status"]["tools"] == 0).then_some(())
        })
        .await;
        assert!(agent.tool_names().await.is_empty());
        let after = rig.counters().initializes() + rig.counters().count("server/discover");
        assert_eq!(after, connections, "the connection is the same");
    }
}

#[tokio::test]
async fn hidden_kind_is_not_requested_until_the_filter_changes() {
    for era in [ServerEra::Legacy, ServerEra::Modern] {
        let hang = Rule::always(Action::Hang);
        let script = everything("r", era).on("prompts/list", hang.clone()).on("resources/list", hang);
        let rig = FakeHttpServer::start(script).await;
        let hidden =
            format!("{}\nexpose: {{ prompts: {{ deny: [\"*\"] }}, resources: {{ allow: [] }} }}", rig.spec());
        let fixture = EvenkeelFixture::start(&[("r", &hidden)]).await;
        fixture.evenkeel.wait_until_attached("r").await;
        // The read of the tools is behind the notifications of the other lists.
        rig.send_command(ControlCommand::Notify("notifications/prompts/list_changed".into()));
        rig.send_command(ControlCommand::Notify("notifications/resources/list_changed".into()));
        rig.edit_script(|script| script.tools.truncate(1));
        let agent = fixture.agent(Era::Legacy).await;
        eventually("the tools are read", async || (agent.tool_names().await == ["r_echo"]).then_some(()))
            .await;
        for method in ["prompts/list", "resources/list", "resources/templates/list"] {
            assert_eq!(rig.counters().count(method), 0, "{method}");
        }
        assert!(fixture.evenkeel.condition("r", "Degraded").await.is_none());

        rig.edit_script(|script| script.on.clear());
        fixture.declared.write_server("r", &rig.spec());
        eventually("the lists are read", async || {
            let status = fixture.server("r").await["status"].clone();
            (status["prompts"] == 1 && status["resources"] == 1).then_some(())
        })
        .await;
        assert_eq!(names(&agent, "prompts/list", "prompts", "name").await, ["r_a"]);
        assert_eq!(
            names(&agent, "resources/templates/list", "resourceTemplates", "uriTemplate").await,
            ["y:{z}"]
        );
    }
}

#[tokio::test]
async fn filter_that_hides_an_ill_formed_item_ends_the_degradation() {
    let mut script = Script::new("r", ServerEra::Dual);
    script.tools.push(serde_json::from_str(r#"{"name":"broken"}"#).unwrap());
    let rig = FakeHttpServer::start(script).await;
    let fixture = EvenkeelFixture::start(&[("r", &rig.spec())]).await;
    let degraded = fixture.evenkeel.wait_for("r", "Degraded", "True", "ItemsLeftOut").await;
    assert!(
        degraded.message.contains("1 tool is left out: \"broken\" (inputSchema is missing)"),
        "{degraded:?}"
    );
    fixture.evenkeel.wait_for_log(&["a tool is left out"]).await;
    // A refresh that finds the same is not logged again.
    rig.edit_script(|script| script.tools.swap(0, 1));
    rig.edit_script(|script| {
        script.tools.remove(0);
    });
    let agent = fixture.agent(Era::Legacy).await;
    eventually("the list is read again", async || (agent.tool_names().await.len() == 1).then_some(())).await;
    assert_eq!(fixture.evenkeel.stderr().matches("a tool is left out").count(), 1);

    fixture.declared.write_server("r", &format!("{}\nexpose: {{ tools: {{ deny: [broken] }} }}", rig.spec()));
    eventually("nothing is told", async || {
        fixture.evenkeel.condition("r", "Degraded").await.is_none().then_some(())
    })
    .await;
    assert_eq!(agent.tool_names().await.len(), 1);
}
