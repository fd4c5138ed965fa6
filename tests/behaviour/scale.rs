//! Hundreds of servers in one evenkeel: nobody waits for those that hang, and a change costs what it changes.

use std::time::{Duration, Instant};

use crate::rig::{Era as RigEra, Http, Rule, Script, Stdio, Then};
use crate::stage::Stage;
use crate::support::{Era, eventually, server};

const GOOD: usize = 900;
const HANGING: usize = 100;
const PROCESSES: usize = 50;
const SLEEPING: usize = 200;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn processes_that_hang_hold_no_other_up() {
    let hanging = |number: &usize| {
        let spec = "stdio: { command: sleep, args: [\"600\"] }\ntimeouts: { connect: 10m }";
        server(&format!("a{number}"), spec)
    };
    let fast = Stdio::new(Script::new("fast", RigEra::Modern).tools(&["echo"]));
    let stage = Stage::start(&[]).await;
    let agent = stage.agent(Era::Modern).await;
    let documents: Vec<_> = (0..SLEEPING).map(|number| hanging(&number)).collect();
    stage.declared.write("hanging.yaml", &documents.join("---\n"));
    eventually("those that hang are on their way", async || {
        stage.evenkeel.server(&format!("a{}", SLEEPING - 1)).await
    })
    .await;
    let begun = Instant::now();
    stage.declared.server("z", &fast.spec(""));
    eventually("the one that does not hang is listed", async || {
        (agent.tools().await == ["z_echo"]).then_some(())
    })
    .await;
    let took = begun.elapsed();
    println!("one process behind {SLEEPING} that hang: {took:?}");
    // A second for each eight of them would be 25 s; it is a fifth of one.
    assert!(took < Duration::from_secs(20), "{took:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_servers_and_fifty_processes_while_a_hundred_hang() {
    let good = Http::start(Script::new("good", RigEra::Legacy).tools(&["echo"])).await;
    let silent = Script::new("silent", RigEra::Legacy)
        .on("server/discover", Rule::always(Then::Hang))
        .on("initialize", Rule::always(Then::Hang));
    let silent = Http::start(silent).await;
    let process = Stdio::new(Script::new("process", RigEra::Modern).tools(&["echo"]));
    // A rig answers at every path, so one of them is many servers. The silent ones come first in order.
    let at = |rig: &Http, number: usize, more: &str| {
        format!("http: {{ url: \"{}/{number}\" }}\nhealth: {{ interval: 0s }}{more}", rig.url())
    };
    let hanging = (0..HANGING)
        .map(|number| server(&format!("a{number}"), &at(&silent, number, "\ntimeouts: { connect: 10m }")));
    let healthy = (0..GOOD).map(|number| server(&format!("h{number}"), &at(&good, number, "")));
    let processes = (0..PROCESSES).map(|number| server(&format!("p{number}"), &process.spec("")));
    let files = [hanging.collect::<Vec<_>>(), healthy.collect(), processes.collect()];

    let stage = Stage::start(&[]).await;
    let agent = stage.agent(Era::Modern).await;
    let begun = Instant::now();
    for (name, documents) in ["a", "h", "p"].iter().zip(&files) {
        stage.declared.write(&format!("{name}.yaml"), &documents.join("---\n"));
    }
    // Patience for each part of them, since a fleet is as slow as its machine.
    for part in 1..=10 {
        eventually(&format!("{part}0 % of what does not hang are listed"), async || {
            (agent.tools().await.len() >= (GOOD + PROCESSES) * part / 10).then_some(())
        })
        .await;
    }
    assert_eq!(agent.tools().await.len(), GOOD + PROCESSES);
    println!("{GOOD} servers and {PROCESSES} processes beside {HANGING} that hang: {:?}", begun.elapsed());
    assert_eq!(process.alive().len(), PROCESSES);
    for name in ["h0_echo", "h899_echo", "p0_echo", "p49_echo"] {
        agent.text(name, "{}").await;
    }

    // One more and one less: the others have no part in it.
    eventually("every stream of notices is open", async || {
        (good.counters().streams == GOOD as u64).then_some(())
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
    stage.declared.write("one.yaml", &server("one", &at(&good, GOOD, "")));
    eventually("the new one is listed", async || {
        agent.tools().await.contains(&"one_echo".to_owned()).then_some(())
    })
    .await;
    println!("one added to them: {:?}", begun.elapsed());
    stage.declared.remove("one.yaml");
    eventually("it is gone", async || (agent.tools().await.len() == GOOD + PROCESSES).then_some(())).await;
    eventually("its session is ended", async || (good.counters().sessions == before.sessions).then_some(()))
        .await;
    let after = good.counters();
    assert_eq!(
        (after.initializes(), after.lists(), after.of("DELETE")),
        (before.initializes() + 1, before.lists() + 1, before.of("DELETE") + 1)
    );
}
