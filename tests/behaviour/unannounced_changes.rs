//! Servers that change their lists without a notification, such as a stateless server that is deployed anew.

use crate::fixture::EvenkeelFixture;
use crate::rig::{Action, FakeHttpServer, Rule, Script, ServerEra};
use crate::support::{Era, eventually};

fn quiet(tools: &[&str]) -> Script {
    Script { quiet: true, ..Script::new("s", ServerEra::Legacy).tools(tools) }
}

#[tokio::test]
async fn unknown_tool_has_its_list_read_again_once_a_minute() {
    let as_error = Action::error(-32602, "MCP error -32602: Tool old not found");
    let as_result =
        Action::result(r#"{"content":[{"type":"text","text":"Unknown tool: old"}],"isError":true}"#);
    let rigs = [FakeHttpServer::start(quiet(&["old"])).await, FakeHttpServer::start(quiet(&["old"])).await];
    let fixture = EvenkeelFixture::start(&[("a", &rigs[0].spec()), ("b", &rigs[1].spec())]).await;
    for (name, rig, answer) in [("a", &rigs[0], as_error), ("b", &rigs[1], as_result)] {
        fixture.evenkeel.wait_until_attached(name).await;
        let lists = rig.counters().tool_lists();
        rig.edit_script(|script| {
            *script = quiet(&["new"]).on("tools/call", Rule::always(answer));
        });
        let agent = fixture.agent(Era::Legacy).await;
        let (old, new) = (format!("{name}_old"), format!("{name}_new"));
        // The agent gets the answer of the server.
        let answer = agent.call(&old, "{}").await;
        assert!(format!("{answer:?}").contains("old"), "{answer:?}");
        eventually("the changed tools are listed", async || {
            let tools = agent.tool_names().await;
            (tools.contains(&new) && !tools.contains(&old)).then_some(())
        })
        .await;
        assert_eq!(rig.counters().tool_lists(), lists + 1);

        // Now it does not know that tool either: no second read follows at once.
        rig.edit_script(|script| {
            let answer = Action::error(-32602, "Tool new not found");
            *script = quiet(&["newest"]).on("tools/call", Rule::always(answer));
        });
        for _ in 0..5 {
            agent.call(&new, "{}").await.unwrap_err();
        }
        fixture.attach(&format!("marker-{name}"), &rig.spec()).await;
        assert_eq!(rig.counters().tool_lists(), lists + 2, "one read, and that of the marker");
        assert!(agent.tool_names().await.contains(&new));
        assert_eq!(rig.counters().initializes(), 2, "only the marker opened a new connection");
    }
}

#[tokio::test]
async fn unknown_prompt_and_resource_have_their_lists_read_again() {
    let script = |prompt: &str, uri: &str| {
        let script = Script::new("s", ServerEra::Legacy).prompts_and_resources(&[prompt], &[uri], &[]);
        Script { quiet: true, ..script }
    };
    let rig = FakeHttpServer::start(script("old", "x:old")).await;
    let fixture = EvenkeelFixture::start(&[("s", &rig.spec())]).await;
    fixture.evenkeel.wait_until_attached("s").await;
    let agent = fixture.agent(Era::Legacy).await;
    rig.edit_script(|current| {
        *current = script("new", "x:new")
            .on("prompts/get", Rule::always(Action::error(0, "Unknown prompt: old")))
            .on("resources/read", Rule::always(Action::error(-32002, "Resource not found")));
    });
    for (method, params, list, expected) in [
        ("prompts/get", r#"{"name":"s_old"}"#, "prompts/list", "s_new"),
        ("resources/read", r#"{"uri":"x:old"}"#, "resources/list", "x:new"),
    ] {
        agent.request(method, params).await.unwrap_err();
        eventually(list, async || {
            let listed = agent.request(list, "{}").await.unwrap();
            listed.contains(expected).then_some(())
        })
        .await;
    }
}
