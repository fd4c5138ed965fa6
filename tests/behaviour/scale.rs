//! Hundreds of servers in one evenkeel: nobody waits for those that hang, and a change costs what it changes.

use std::time::{Duration, Instant};

use crate::fixture::EvenkeelFixture;
use crate::rig::{Action, FakeHttpServer, FakeStdioServer, Rule, Script, ServerEra};
use crate::support::{Era, eventually, server_yaml};

const HEALTHY_SERVERS: usize = 900;
const HANGING_SERVERS: usize = 100;
const STDIO_SERVERS: usize = 50;
const HANGING_PROCESSES: usize = 200;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hanging_processes_do_not_delay_others() {
    let hanging = |number: &usize| {
        let spec = "stdio: { command: sleep, args: [\"600\"] }\ntimeouts: { connect: 10m }";
        server_yaml(&format!("a{number}"), spec)
    };
    let fast = FakeStdioServer::new(Script::new("fast", ServerEra::Modern).tools(&["echo"]));
    let stage = EvenkeelFixture::start(&[]).await;
    let agent = stage.agent(Era::Modern).await;
    let documents: Vec<_> = (0..HANGING_PROCESSES).map(|number| hanging(&number)).collect();
    stage.declared.write("hanging.yaml", &documents.join("---\n"));
    eventually("those that hang are on their way", async || {
        stage.evenkeel.get_server(&format!("a{}", HANGING_PROCESSES - 1)).await
    })
    .await;
    let begun = Instant::now();
    stage.declared.write_server("z", &fast.spec(""));
    eventually("the one that does not hang is listed", async || {
        (agent.tool_names().await == ["z_echo"]).then_some(())
    })
    .await;
    let took = begun.elapsed();
    println!("one process behind {HANGING_PROCESSES} that hang: {took:?}");
    // A second for each eight of them would be 25 s; it is a fifth of one.
    assert!(took < Duration::from_secs(20), "{took:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nine_hundred_servers_and_fifty_processes_attach_while_a_hundred_hang() {
    let good = FakeHttpServer::start(Script::new("good", ServerEra::Legacy).tools(&["echo"])).await;
    let silent = Script::new("silent", ServerEra::Legacy)
        .on("server/discover", Rule::always(Action::Hang))
        .on("initialize", Rule::always(Action::Hang));
    let silent = FakeHttpServer::start(silent).await;
    let process = FakeStdioServer::new(Script::new("process", ServerEra::Modern).tools(&["echo"]));
    // A rig answers at every path, so one of them is many servers. The silent ones come first in order.
    let at = |rig: &FakeHttpServer, number: usize, more: &str| {
        format!("http: {{ url: \"{}/{number}\" }}\nhealth: {{ interval: 0s }}{more}", rig.url())
    };
    let hanging = (0..HANGING_SERVERS).map(|number| {
        server_yaml(&format!("a{number}"), &at(&silent, number, "\ntimeouts: { connect: 10m }"))
    });
    let healthy =
        (0..HEALTHY_SERVERS).map(|number| server_yaml(&format!("h{number}"), &at(&good, number, "")));
    let processes = (0..STDIO_SERVERS).map(|number| server_yaml(&format!("p{number}"), &process.spec("")));
    let files = [hanging.collect::<Vec<_>>(), healthy.collect(), processes.collect()];

    let stage = EvenkeelFixture::start(&[]).await;
    let agent = stage.agent(Era::Modern).await;
    let begun = Instant::now();
    for (name, documents) in ["a", "h", "p"].iter().zip(&files) {
        stage.declared.write(&format!("{name}.yaml"), &documents.join("---\n"));
    }
    // Patience for each part of them, since a fleet is as slow as its machine.
    for part in 1..=10 {
        eventually(&format!("{part}0 % of what does not hang are listed"), async || {
            (agent.tool_names().await.len() >= (HEALTHY_SERVERS + STDIO_SERVERS) * part / 10).then_some(())
        })
        .await;
    }
    assert_eq!(agent.tool_names().await.len(), HEALTHY_SERVERS + STDIO_SERVERS);
    println!(
        "{HEALTHY_SERVERS} servers and {STDIO_SERVERS} processes beside {HANGING_SERVERS} that hang: {:?}",
        begun.elapsed()
    );
    assert_eq!(process.live_processes().len(), STDIO_SERVERS);
    for name in ["h0_echo", "h899_echo", "p0_echo", "p49_echo"] {
        agent.call_text(name, "{}").await;
    }

    // One more and one less: the others have no part in it.
    eventually("every stream of notices is open", async || {
        (good.counters().streams == HEALTHY_SERVERS as u64).then_some(())
    })
    .await;
    // Where a stream took a second to open, the list was read before it, and is read once more.
    let mut before = good.counters();
    eventually("nothing is listed any more", async || {
        tokio::time::sleep(Duration::from_secs(1)).await;
        let now = good.counters();
        (std::mem::replace(&mut before, now.clone()) == now).then_some(())
    })
    .await;
    let begun = Instant::now();
    stage.declared.write("one.yaml", &server_yaml("one", &at(&good, HEALTHY_SERVERS, "")));
    eventually("the new one is listed", async || {
        agent.tool_names().await.contains(&"one_echo".to_owned()).then_some(())
    })
    .await;
    println!("one added to them: {:?}", begun.elapsed());
    stage.declared.remove("one.yaml");
    eventually("it is gone", async || {
        (agent.tool_names().await.len() == HEALTHY_SERVERS + STDIO_SERVERS).then_some(())
    })
    .await;
    eventually("its session is ended", async || (good.counters().sessions == before.sessions).then_some(()))
        .await;
    let after = good.counters();
    assert_eq!(
        (after.initializes(), after.tool_lists(), after.count("DELETE")),
        (before.initializes() + 1, before.tool_lists() + 1, before.count("DELETE") + 1)
    );
}
