//! A fleet that grows and shrinks again leaves nothing behind. The long form, with edits and agents, is `tests/soak`.

use crate::fixture::EvenkeelFixture;
use crate::rig::{FakeHttpServer, Script, ServerEra};
use crate::support::{Era, ProcessUsage, eventually, server_yaml};

const SERVERS: usize = 300;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[cfg_attr(not(feature = "jemalloc"), ignore = "needs the feature jemalloc")]
async fn removed_servers_give_their_memory_back() {
    let rig = FakeHttpServer::start(Script::new("rig", ServerEra::Legacy).tools(&["echo", "report"])).await;
    let server = |number: usize| {
        let spec = format!("http: {{ url: \"{}/{number}\" }}\nhealth: {{ interval: 0s }}", rig.url());
        server_yaml(&format!("s{number}"), &spec)
    };
    let fixture = EvenkeelFixture::start(&[("stays", &rig.spec())]).await;
    fixture.evenkeel.wait_until_attached("stays").await;
    let agent = fixture.agent(Era::Modern).await;
    let usage = || ProcessUsage::of(fixture.evenkeel.pid());
    let documents: Vec<_> = (0..SERVERS).map(server).collect();
    let before = usage();
    fixture.declared.write("many.yaml", &documents.join("---\n"));
    eventually("all servers are listed, and their streams are open", async || {
        let complete =
            agent.tool_names().await.len() == (SERVERS + 1) * 2 && rig.counters().streams > SERVERS as u64;
        complete.then_some(())
    })
    .await;
    let with_servers = usage();
    fixture.declared.remove("many.yaml");
    eventually("the servers are removed", async || {
        (agent.tool_names().await.len() == 2 && rig.counters().sessions == 1).then_some(())
    })
    .await;
    // The allocator of the C library gives nothing back. Jemalloc gives back more than half within some seconds.
    let taken = with_servers.anonymous_kib - before.anonymous_kib;
    let description = format!("memory is given back: {before}; with the servers {with_servers}");
    let after = eventually(&description, async || {
        let given_back = with_servers.anonymous_kib.saturating_sub(usage().anonymous_kib);
        (given_back > taken / 4).then(&usage)
    })
    .await;
    println!("at the start {before}; with the servers {with_servers}; without them {after}");
    assert_eq!(after.counts.children, before.counts.children);
}
