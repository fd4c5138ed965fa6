//! A name that an agent knows leads to one tool and to no other, whatever comes and goes.

use crate::rig::{Command, Era as RigEra, Http, Script};
use crate::stage::{Stage, told};
use crate::support::{Agent, Era, eventually};

/// The one tool in the list that begins so.
async fn listed(agent: &Agent, start: &str) -> String {
    let tools = agent.tools().await;
    let found: Vec<_> = tools.iter().filter(|name| name.starts_with(start)).collect();
    assert_eq!(found.len(), 1, "{start}: {tools:?}");
    found[0].clone()
}

/// What a call of this name came to: the tools of a rig tell what they were called with.
async fn reached(agent: &Agent, name: &str) -> String {
    agent.text(name, "{}").await
}

#[tokio::test]
async fn a_tool_that_comes_later_does_not_take_the_name_of_one_that_is_there() {
    let rig = Http::start(Script::new("r", RigEra::Dual).tools(&["поиск"])).await;
    let stage = Stage::start(&[]).await;
    stage.attach("x", &rig.spec()).await;
    for era in Era::ALL {
        rig.edit(|script| *script = script.clone().tools(&["поиск"]));
        rig.tell(Command::Notify("notifications/tools/list_changed".into()));
        let agent = stage.agent(era).await;
        eventually("one tool is there", async || (agent.tools().await.len() == 1).then_some(())).await;
        let name = listed(&agent, "x_").await;
        let before = reached(&agent, &name).await;
        rig.edit(|script| *script = script.clone().tools(&["а_удалить_все", "поиск"]));
        rig.tell(Command::Notify("notifications/tools/list_changed".into()));
        eventually("the other tool is there", async || (agent.tools().await.len() == 2).then_some(())).await;
        assert!(agent.tools().await.contains(&name));
        assert_eq!(reached(&agent, &name).await, before);
        assert!(before.contains("поиск"), "{before}");
    }
    assert_eq!(stage.evenkeel.condition("x", "Accepted").await.unwrap().reason, "Accepted");
}

#[tokio::test]
async fn a_name_of_two_servers_leads_to_the_first_over_restarts_and_after_it_went() {
    let mut first = Http::start(Script::new("first", RigEra::Dual).tools(&["same", "own"])).await;
    let second = Http::start(Script::new("second", RigEra::Dual).tools(&["same"])).await;
    let spec = |rig: &Http| format!("{}\nexpose: {{ prefix: x }}", rig.spec());
    let mut stage = Stage::start(&[]).await;
    // By their names it would be the other way round.
    stage.attach("z", &spec(&first)).await;
    stage.attach("a", &spec(&second)).await;
    let agent = stage.agent(Era::Legacy).await;
    let tailed = listed(&agent, "x_same_").await;
    // How often each was called.
    let calls = |first: &Http, second: &Http| [first, second].map(|rig| rig.counters().of("tools/call"));
    reached(&agent, "x_same").await;
    assert_eq!(calls(&first, &second), [1, 0]);
    reached(&agent, &tailed).await;
    assert_eq!(calls(&first, &second), [1, 1]);
    let accepted = stage.evenkeel.wait_for("a", "Accepted", "True", "NameConflict").await;
    assert!(
        accepted.message.contains(&format!("{tailed} and not x_same, which default/z has")),
        "{accepted:?}"
    );

    // Its server is away when evenkeel starts anew: nobody else gets the name.
    first.stop().await;
    let file = stage.evenkeel.state().join("names.jsonl");
    eventually("the names of both are written", async || {
        let text = std::fs::read_to_string(&file).ok()?;
        ["\"z\"", "\"a\""].iter().all(|name| text.contains(name)).then_some(())
    })
    .await;
    stage.evenkeel.kill();
    stage.evenkeel.start_again().await;
    stage.evenkeel.attached("a").await;
    eventually("the first has failed", async || {
        stage.evenkeel.condition("z", "Ready").await.filter(|ready| ready.reason == "ConnectFailed")
    })
    .await;
    assert_eq!(agent.tools().await, std::slice::from_ref(&tailed));
    reached(&agent, &tailed).await;
    assert_eq!(calls(&first, &second), [1, 2]);
    first.resume().await;
    stage.declared.server("z", &spec(&first).replace("prefix: x", "prefix: x, tools: { deny: [own] }"));
    stage.evenkeel.attached("z").await;
    assert_eq!(agent.tools().await, ["x_same".to_owned(), tailed.clone()]);
    reached(&agent, "x_same").await;
    assert_eq!(calls(&first, &second), [2, 2]);

    let before = calls(&first, &second);

    // It goes for good, and evenkeel starts anew: for an hour the name leads nowhere.
    stage.declared.remove("z.yaml");
    let gone = eventually("it is gone", async || {
        let answer = agent.call("x_same", "{}").await.ok()?;
        answer.contains("not there any more").then(|| told(&answer))
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
    stage.evenkeel.start_again().await;
    stage.evenkeel.attached("a").await;
    assert_eq!(agent.tools().await, [tailed]);
    assert!(agent.call("x_same", "{}").await.is_err());
    assert_eq!(calls(&first, &second)[1], before[1]);
}

#[tokio::test]
async fn another_prefix_gives_other_names_and_says_so() {
    let rig = Http::start(Script::new("r", RigEra::Dual).tools(&["t"])).await;
    let stage = Stage::start(&[]).await;
    let spec = |prefix: &str| format!("{}\nexpose: {{ prefix: {prefix} }}", rig.spec());
    stage.attach("r", &spec("before")).await;
    let agent = stage.agent(Era::Modern).await;
    assert_eq!(agent.tools().await, ["before_t"]);
    stage.declared.server("r", &spec("after"));
    eventually("the new name is there", async || (agent.tools().await == ["after_t"]).then_some(())).await;
    let answer = told(&agent.call("before_t", "{}").await.unwrap());
    assert!(answer.contains("it is called \"after_t\" now"), "{answer}");
}
