//! A name that was listed to an agent routes to the same tool only, whichever servers and tools appear and disappear.

use crate::fixture::{EvenkeelFixture, error_text};
use crate::rig::{ControlCommand, FakeHttpServer, Script, ServerEra};
use crate::support::{Agent, Era, eventually};

/// Returns the one listed tool whose name has this prefix.
async fn tool_with_prefix(agent: &Agent, start: &str) -> String {
    let tools = agent.tool_names().await;
    let found: Vec<_> = tools.iter().filter(|name| name.starts_with(start)).collect();
    assert_eq!(found.len(), 1, "{start}: {tools:?}");
    found[0].clone()
}

/// Calls a tool and returns its text: the tools of a rig return the request that they received.
async fn call_text(agent: &Agent, name: &str) -> String {
    agent.call_text(name, "{}").await
}

#[tokio::test]
async fn new_tool_does_not_take_the_name_of_an_existing_one() {
    let rig = FakeHttpServer::start(Script::new("r", ServerEra::Dual).tools(&["поиск"])).await;
    let fixture = EvenkeelFixture::start(&[]).await;
    fixture.attach("x", &rig.spec()).await;
    for era in Era::ALL {
        rig.edit_script(|script| *script = script.clone().tools(&["поиск"]));
        rig.send_command(ControlCommand::Notify("notifications/tools/list_changed".into()));
        let agent = fixture.agent(era).await;
        eventually("one tool is listed", async || (agent.tool_names().await.len() == 1).then_some(())).await;
        let name = tool_with_prefix(&agent, "x_").await;
        let before = call_text(&agent, &name).await;
        rig.edit_script(|script| *script = script.clone().tools(&["а_удалить_все", "поиск"]));
        rig.send_command(ControlCommand::Notify("notifications/tools/list_changed".into()));
        eventually("the other tool is listed", async || (agent.tool_names().await.len() == 2).then_some(()))
            .await;
        assert!(agent.tool_names().await.contains(&name));
        assert_eq!(call_text(&agent, &name).await, before);
        assert!(before.contains("поиск"), "{before}");
    }
    assert_eq!(fixture.evenkeel.condition("x", "Accepted").await.unwrap().reason, "Accepted");
}

#[tokio::test]
async fn contested_name_stays_with_first_server_across_restart_and_removal() {
    let mut first =
        FakeHttpServer::start(Script::new("first", ServerEra::Dual).tools(&["same", "own"])).await;
    let second = FakeHttpServer::start(Script::new("second", ServerEra::Dual).tools(&["same"])).await;
    let spec = |rig: &FakeHttpServer| format!("{}\nexpose: {{ prefix: x }}", rig.spec());
    let mut fixture = EvenkeelFixture::start(&[]).await;
    // Ordered by server name, the assignment would be the reverse.
    fixture.attach("z", &spec(&first)).await;
    fixture.attach("a", &spec(&second)).await;
    let agent = fixture.agent(Era::Legacy).await;
    let suffixed = tool_with_prefix(&agent, "x_same_").await;
    // The number of calls of each server.
    let calls = |first: &FakeHttpServer, second: &FakeHttpServer| {
        [first, second].map(|rig| rig.counters().count("tools/call"))
    };
    call_text(&agent, "x_same").await;
    assert_eq!(calls(&first, &second), [1, 0]);
    call_text(&agent, &suffixed).await;
    assert_eq!(calls(&first, &second), [1, 1]);
    let accepted = fixture.evenkeel.wait_for("a", "Accepted", "True", "NameConflict").await;
    assert!(
        accepted
            .message
            .contains(&format!("x_same is exposed as {suffixed} because the name belongs to default/z")),
        "{accepted:?}"
    );

    // The first server is unreachable when evenkeel restarts: no other server gets the name.
    first.stop().await;
    let file = fixture.evenkeel.state_dir().join("names.jsonl");
    eventually("the names of both servers are stored", async || {
        let text = std::fs::read_to_string(&file).ok()?;
        ["\"z\"", "\"a\""].iter().all(|name| text.contains(name)).then_some(())
    })
    .await;
    fixture.evenkeel.kill();
    fixture.evenkeel.restart().await;
    fixture.evenkeel.wait_until_attached("a").await;
    eventually("the first server has failed", async || {
        fixture.evenkeel.condition("z", "Ready").await.filter(|ready| ready.reason == "ConnectFailed")
    })
    .await;
    assert_eq!(agent.tool_names().await, std::slice::from_ref(&suffixed));
    call_text(&agent, &suffixed).await;
    assert_eq!(calls(&first, &second), [1, 2]);
    first.resume().await;
    fixture
        .declared
        .write_server("z", &spec(&first).replace("prefix: x", "prefix: x, tools: { deny: [own] }"));
    fixture.evenkeel.wait_until_attached("z").await;
    assert_eq!(agent.tool_names().await, ["x_same".to_owned(), suffixed.clone()]);
    call_text(&agent, "x_same").await;
    assert_eq!(calls(&first, &second), [2, 2]);

    let before = calls(&first, &second);

    // The first server is removed, and evenkeel restarts: for one hour the name routes to no tool.
    fixture.declared.remove("z.yaml");
    let removed = eventually("the first server is removed", async || {
        let response = agent.call("x_same", "{}").await.ok()?;
        response.contains("no longer available").then(|| error_text(&response))
    })
    .await;
    assert!(removed.contains("default/z"), "{removed}");
    let conflict = eventually("the conflict names the former holder", async || {
        let accepted = fixture.evenkeel.condition("a", "Accepted").await?;
        accepted.message.contains("the name belonged to default/z").then_some(accepted)
    })
    .await;
    assert_eq!(conflict.reason, "NameConflict");
    assert!(fixture.evenkeel.terminate().await.success());
    fixture.evenkeel.restart().await;
    fixture.evenkeel.wait_until_attached("a").await;
    assert_eq!(agent.tool_names().await, [suffixed]);
    assert!(agent.call("x_same", "{}").await.is_err());
    assert_eq!(calls(&first, &second)[1], before[1]);
}

#[tokio::test]
async fn changed_prefix_renames_tools_and_reports_the_new_name() {
    let rig = FakeHttpServer::start(Script::new("r", ServerEra::Dual).tools(&["t"])).await;
    let fixture = EvenkeelFixture::start(&[]).await;
    let spec = |prefix: &str| format!("{}\nexpose: {{ prefix: {prefix} }}", rig.spec());
    fixture.attach("r", &spec("old")).await;
    let agent = fixture.agent(Era::Modern).await;
    assert_eq!(agent.tool_names().await, ["old_t"]);
    fixture.declared.write_server("r", &spec("new"));
    eventually("the new name is listed", async || (agent.tool_names().await == ["new_t"]).then_some(()))
        .await;
    let response = error_text(&agent.call("old_t", "{}").await.unwrap());
    assert!(response.contains("it was renamed to \"new_t\""), "{response}");
}
