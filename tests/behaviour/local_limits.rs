//! Limits of evenkeel's own process: attached servers and agents are unaffected.

use rustix::process::{Pid, Resource, Rlimit, getrlimit, prlimit};

use crate::fixture::EvenkeelFixture;
use crate::rig::{FakeHttpServer, Script, ServerEra};
use crate::support::{Era, eventually};

/// Sets the soft limit of open files of a process, which has the same hard limit as this one.
fn set_open_file_limit(pid: u32, limit: u64) {
    let limit = Rlimit { current: Some(limit), ..getrlimit(Resource::Nofile) };
    prlimit(Pid::from_raw(i32::try_from(pid).unwrap()), Resource::Nofile, limit).unwrap();
}

/// More servers than a process with 256 files can attach.
const SERVERS: usize = 240;

#[tokio::test]
async fn attempts_leave_descriptors_for_attached_servers_and_agents() {
    let rig = FakeHttpServer::start(Script::new("s", ServerEra::Legacy)).await;
    let spec = |number: usize| {
        let url = format!("{}/{number}", rig.url());
        format!("http: {{ url: \"{url}\" }}\nretry: {{ initial: 200ms, max: 1s }}")
    };
    let fixture = EvenkeelFixture::start(&[]).await;
    fixture.attach("s0", &spec(0)).await;
    let pid = fixture.evenkeel.pid();
    // Room for some of the servers.
    set_open_file_limit(pid, 256);
    for number in 1..SERVERS {
        fixture.declared.write_server(&format!("s{number}"), &spec(number));
    }
    let limited = eventually("the limit is reached", async || {
        for number in 1..SERVERS {
            let ready = fixture.evenkeel.condition(&format!("s{number}"), "Ready").await?;
            if ready.reason == "LocalLimit" {
                return Some(ready);
            }
        }
        None
    })
    .await;
    assert!(limited.message.contains("ulimit -n"), "{limited:?}");
    // Several agents at a time, and their calls, find descriptors.
    for era in [Era::Legacy, Era::Modern, Era::Legacy, Era::Modern] {
        let agent = fixture.agent(era).await;
        let calls = (0..5).map(|_| agent.call_text("s0_echo", "{}"));
        futures_util::future::join_all(calls).await;
    }
    assert_eq!(fixture.evenkeel.condition("s0", "Ready").await.unwrap().reason, "Attached");
    set_open_file_limit(pid, 1024);
    eventually("all servers are attached", async || {
        (rig.counters().sessions == SERVERS as u64).then_some(())
    })
    .await;
    assert_eq!(rig.counters().initializes(), SERVERS as u64, "no connection was given up");
}
