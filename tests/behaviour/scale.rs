//! Hundreds of servers in one evenkeel process: hanging servers delay no other, and the cost of a change depends on the
//! changed servers only.

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
    let fixture = EvenkeelFixture::start(&[]).await;
    let agent = fixture.agent(Era::Modern).await;
    let documents: Vec<_> = (0..HANGING_PROCESSES).map(|number| hanging(&number)).collect();
    fixture.declared.write("hanging.yaml", &documents.join("---\n"));
    eventually("all hanging processes are declared", async || {
        fixture.evenkeel.get_server(&format!("a{}", HANGING_PROCESSES - 1)).await
    })
    .await;
    let started_at = Instant::now();
    fixture.declared.write_server("z", &fast.spec(""));
    eventually("the healthy process is listed", async || {
        (agent.tool_names().await == ["z_echo"]).then_some(())
    })
    .await;
    let elapsed = started_at.elapsed();
    println!("one process after {HANGING_PROCESSES} hanging ones: {elapsed:?}");
    // With one second per eight processes it would take 25 s; measured is a fifth of a second.
    assert!(elapsed < Duration::from_secs(20), "{elapsed:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nine_hundred_servers_and_fifty_processes_attach_while_a_hundred_hang() {
    let healthy_rig = FakeHttpServer::start(Script::new("healthy", ServerEra::Legacy).tools(&["echo"])).await;
    let silent = Script::new("silent", ServerEra::Legacy)
        .on("server/discover", Rule::always(Action::Hang))
        .on("initialize", Rule::always(Action::Hang));
    let silent = FakeHttpServer::start(silent).await;
    let process = FakeStdioServer::new(Script::new("process", ServerEra::Modern).tools(&["echo"]));
    // A rig responds at every path, so one rig serves many servers. The silent servers come first by name.
    let at = |rig: &FakeHttpServer, number: usize, more: &str| {
        format!("http: {{ url: \"{}/{number}\" }}\nhealth: {{ interval: 0s }}{more}", rig.url())
    };
    let hanging = (0..HANGING_SERVERS).map(|number| {
        server_yaml(&format!("a{number}"), &at(&silent, number, "\ntimeouts: { connect: 10m }"))
    });
    let healthy =
        (0..HEALTHY_SERVERS).map(|number| server_yaml(&format!("h{number}"), &at(&healthy_rig, number, "")));
    let processes = (0..STDIO_SERVERS).map(|number| server_yaml(&format!("p{number}"), &process.spec("")));
    let files = [hanging.collect::<Vec<_>>(), healthy.collect(), processes.collect()];

    let fixture = EvenkeelFixture::start(&[]).await;
    let agent = fixture.agent(Era::Modern).await;
    let started_at = Instant::now();
    for (name, documents) in ["a", "h", "p"].iter().zip(&files) {
        fixture.declared.write(&format!("{name}.yaml"), &documents.join("---\n"));
    }
    // The timeout applies to each tenth, since the speed depends on the machine.
    for part in 1..=10 {
        eventually(&format!("{part}0 % of the healthy servers are listed"), async || {
            (agent.tool_names().await.len() >= (HEALTHY_SERVERS + STDIO_SERVERS) * part / 10).then_some(())
        })
        .await;
    }
    assert_eq!(agent.tool_names().await.len(), HEALTHY_SERVERS + STDIO_SERVERS);
    println!(
        "{HEALTHY_SERVERS} servers and {STDIO_SERVERS} processes next to {HANGING_SERVERS} hanging servers: {:?}",
        started_at.elapsed()
    );
    assert_eq!(process.live_processes().len(), STDIO_SERVERS);
    for name in ["h0_echo", "h899_echo", "p0_echo", "p49_echo"] {
        agent.call_text(name, "{}").await;
    }

    // Adding and removing one server does not involve the others.
    eventually("every notification stream is open", async || {
        (healthy_rig.counters().streams == HEALTHY_SERVERS as u64).then_some(())
    })
    .await;
    // If a stream elapsed a second to open, the list was read before it opened and is read again.
    let mut before = healthy_rig.counters();
    eventually("no more lists are read", async || {
        tokio::time::sleep(Duration::from_secs(1)).await;
        let now = healthy_rig.counters();
        (std::mem::replace(&mut before, now.clone()) == now).then_some(())
    })
    .await;
    let started_at = Instant::now();
    fixture.declared.write("one.yaml", &server_yaml("one", &at(&healthy_rig, HEALTHY_SERVERS, "")));
    eventually("the new server is listed", async || {
        agent.tool_names().await.contains(&"one_echo".to_owned()).then_some(())
    })
    .await;
    println!("one server added: {:?}", started_at.elapsed());
    fixture.declared.remove("one.yaml");
    eventually("the removed server is no longer listed", async || {
        (agent.tool_names().await.len() == HEALTHY_SERVERS + STDIO_SERVERS).then_some(())
    })
    .await;
    eventually("its session is closed", async || {
        (healthy_rig.counters().sessions == before.sessions).then_some(())
    })
    .await;
    let after = healthy_rig.counters();
    assert_eq!(
        (after.initializes(), after.tool_lists(), after.count("DELETE")),
        (before.initializes() + 1, before.tool_lists() + 1, before.count("DELETE") + 1)
    );
}
