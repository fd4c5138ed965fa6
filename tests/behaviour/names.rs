//! A name that an agent knows leads to one tool and to no other, whatever comes and goes.

use crate::fixture::{EvenkeelFixture, error_text};
use crate::rig::{ControlCommand, FakeHttpServer, Script, ServerEra};
use crate::support::{Agent, Era, eventually};

/// The one tool in the list that begins so.
async fn tool_with_prefix(agent: &Agent, start: &str) -> String {
    let tools = agent.tool_names().await;
    let found: Vec<_> = tools.iter().filter(|name| name.starts_with(start)).collect();
    assert_eq!(found.len(), 1, "{start}: {tools:?}");
    found[0].clone()
}

/// What a call of this name came to: the tools of a rig tell what they were called with.
async fn call_text(agent: &Agent, name: &str) -> String {
    agent.call_text(name, "{}").await
}

#[tokio::test]
async fn new_tool_does_not_take_the_name_of_an_existing_one() {
    let rig = FakeHttpServer::start(Script::new("r", ServerEra::Dual).tools(&["поиск"])).await;
    let stage = EvenkeelFixture::start(&[]).await;
    stage.attach("x", &rig.spec()).await;
    for era in Era::ALL {
        rig.edit_script(|script| *script = script.clone().tools(&["поиск"]));
        rig.send_command(ControlCommand::Notify("notifications/tools/list_changed".into()));
        let agent = stage.agent(era).await;
        eventually("one tool is there", async || (agent.tool_names().await.len() == 1).then_some(())).await;
        let name = tool_with_prefix(&agent, "x_").await;
        let before = call_text(&agent, &name).await;
        rig.edit_script(|script| *script = script.clone().tools(&["а_удалить_все", "поиск"]));
        rig.send_command(ControlCommand::Notify("notifications/tools/list_changed".into()));
        eventually("the other tool is there", async || (agent.tool_names().await.len() == 2).then_some(()))
            .await;
        assert!(agent.tool_names().await.contains(&name));
        assert_eq!(call_text(&agent, &name).await, before);
        assert!(before.contains("поиск"), "{before}");
    }
    assert_eq!(stage.evenkeel.condition("x", "Accepted").await.unwrap().reason, "Accepted");
}

#[tokio::test]
async fn contested_name_stays_with_first_server_across_restart_and_removal() {
    let mut first =
        FakeHttpServer::start(Script::new("first", ServerEra::Dual).tools(&["same", "own"])).await;
    let second = FakeHttpServer::start(Script::new("second", ServerEra::Dual).tools(&["same"])).await;
    let spec = |rig: &FakeHttpServer| format!("{}\nexpose: {{ prefix: x }}", rig.spec());
    let mut stage = EvenkeelFixture::start(&[]).await;
    // By their names it would be the other way round.
    stage.attach("z", &spec(&first)).await;
    stage.attach("a", &spec(&second)).await;
    let agent = stage.agent(Era::Legacy).await;
    let tailed = tool_with_prefix(&agent, "x_same_").await;
    // How often each was called.
    let calls = |first: &FakeHttpServer, second: &FakeHttpServer| {
        [first, second].map(|rig| rig.counters().count("tools/call"))
    };
    call_text(&agent, "x_same").await;
    assert_eq!(calls(&first, &second), [1, 0]);
    call_text(&agent, &tailed).await;
    assert_eq!(calls(&first, &second), [1, 1]);
    let accepted = stage.evenkeel.wait_for("a", "Accepted", "True", "NameConflict").await;
    assert!(
        accepted.message.contains(&format!("{tailed} and not x_same, which default/z has")),
        "{accepted:?}"
    );

    // Its server is away when evenkeel starts anew: nobody else gets the name.
    first.stop().await;
    let file = stage.evenkeel.state_dir().join("names.jsonl");
    eventually("the names of both are written", async || {
        let text = std::fs::read_to_string(&file).ok()?;
        ["\"z\"", "\"a\""].iter().all(|name| text.contains(name)).then_some(())
    })
    .await;
    stage.evenkeel.kill();
    stage.evenkeel.restart().await;
    stage.evenkeel.wait_until_attached("a").await;
    eventually("the first has failed", async || {
        stage.evenkeel.condition("z", "Ready").await.filter(|ready| ready.reason == "ConnectFailed")
    })
    .await;
    assert_eq!(agent.tool_names().await, std::slice::from_ref(&tailed));
    call_text(&agent, &tailed).await;
    assert_eq!(calls(&first, &second), [1, 2]);
    first.resume().await;
    stage.declared.write_server("z", &spec(&first).replace("prefix: x", "prefix: x, tools: { deny: [own] }"));
    stage.evenkeel.wait_until_attached("z").await;
    assert_eq!(agent.tool_names().await, ["x_same".to_owned(), tailed.clone()]);
    call_text(&agent, "x_same").await;
    assert_eq!(calls(&first, &second), [2, 2]);

    let before = calls(&first, &second);

    // It goes for good, and evenkeel starts anew: for an hour the name leads nowhere.
    stage.declared.remove("z.yaml");
    let gone = eventually("it is gone", async || {
        let answer = agent.call("x_same", "{}").await.ok()?;
        answer.contains("not there any more").then(|| error_text(&answer))
    })
    .await;
    assert!(gone.contains("default/z"), "{gone}");
    let had = eventually("the other is told", async || {
        let accepted = stage.evenkeel.condition("a", "Accepted").await?;
        accepted.message.contains("which default/z had").then_some(accepted)
    })
    .await;
    assert_eq!(had.reason, "NameConflict");
    assert!(stage.evenkeel.terminate().await.success());
    stage.evenkeel.restart().await;
    stage.evenkeel.wait_until_attached("a").await;
    assert_eq!(agent.tool_names().await, [tailed]);
    assert!(agent.call("x_same", "{}").await.is_err());
    assert_eq!(calls(&first, &second)[1], before[1]);
}

#[tokio::test]
async fn changed_prefix_renames_tools_and_reports_the_new_name() {
    let rig = FakeHttpServer::start(Script::new("r", ServerEra::Dual).tools(&["t"])).await;
    let stage = EvenkeelFixture::start(&[]).await;
    let spec = |prefix: &str| format!("{}\nexpose: {{ prefix: {prefix} }}", rig.spec());
    stage.attach("r", &spec("before")).await;
    let agent = stage.agent(Era::Modern).await;
    assert_eq!(agent.tool_names().await, ["before_t"]);
    stage.declared.write_server("r", &spec("after"));
    eventually("the new name is there", async || (agent.tool_names().await == ["after_t"]).then_some(()))
        .await;
    let answer = error_text(&agent.call("before_t", "{}").await.unwrap());
    assert!(answer.contains("it was renamed to \"after_t\""), "{answer}");
}
