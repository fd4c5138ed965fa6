//! Every fault of the rig, over each transport it can happen on, with servers of each era: what the status says of
//! it, while calls of healthy peers go on. `cargo test --test behaviour faults -- --nocapture` prints the table.

use std::time::{Duration, Instant};

use crate::peers::{Peers, TOOLS};
use crate::rig::{Era as RigEra, Http, Rule, Script, Stdio, Then};
use crate::stage::Stage;
use crate::support::{Agent, Era, eventually};

#[derive(Clone, Copy, PartialEq)]
enum Over {
    Stdio,
    Http,
}

use Over::{Http as H, Stdio as S};

/// What goes wrong, over which transports, and what `Ready=False` then says.
struct Fault {
    name: &'static str,
    over: &'static [Over],
    cause: fn(Script) -> Script,
    reason: &'static str,
    says: &'static str,
}

/// The first request of the script's era goes wrong.
fn opening(script: Script, then: Then) -> Script {
    let method = if script.era == RigEra::Modern { "server/discover" } else { "initialize" };
    script.on(method, Rule::always(then))
}

fn at_start(mut script: Script, code: i32) -> Script {
    script.stdio.exit_at_start = Some(code);
    script.stdio.stderr = vec!["the token is missing".into()];
    script
}

fn droning(mut script: Script) -> Script {
    script.stdio.endless_line = true;
    script
}

fn asking(mut script: Script) -> Script {
    script.stdio.stderr = vec!["please log in at http://127.0.0.1:1/".into()];
    opening(script, Then::Hang)
}

fn locked(mut script: Script) -> Script {
    script.http.authorization = Some("Bearer right".into());
    script
}

const FAULTS: &[Fault] = &[
    Fault {
        name: "silent",
        over: &[S, H],
        cause: |s| opening(s, Then::Hang),
        reason: "Timeout",
        says: "within 2 s",
    },
    Fault {
        name: "refusing",
        over: &[S, H],
        cause: |s| opening(s, Then::error(-32600, "not today")),
        reason: "HandshakeFailed",
        says: "not today",
    },
    Fault {
        name: "strange",
        over: &[S, H],
        cause: |s| opening(s, Then::result("[1]")),
        reason: "HandshakeFailed",
        says: "",
    },
    Fault {
        name: "list-fails",
        over: &[S, H],
        cause: |s| s.on("tools/list", Rule::always(Then::error(-32603, "the database is gone"))),
        reason: "ListFailed",
        says: "the database is gone",
    },
    Fault {
        name: "list-hangs",
        over: &[S, H],
        cause: |s| s.on("tools/list", Rule::always(Then::Hang)),
        reason: "Timeout",
        says: "within 2 s",
    },
    Fault {
        name: "list-strange",
        over: &[S, H],
        cause: |s| s.on("tools/list", Rule::always(Then::result("{}"))),
        reason: "ListFailed",
        says: "",
    },
    Fault {
        name: "ends-at-start",
        over: &[S],
        cause: |s| at_start(s, 7),
        reason: "Exited",
        says: "the token is missing",
    },
    Fault {
        name: "ends-in-opening",
        over: &[S],
        cause: |s| opening(s, Then::Exit(4)),
        reason: "Exited",
        says: "4",
    },
    Fault { name: "asks", over: &[S], cause: asking, reason: "Timeout", says: "please log in" },
    Fault { name: "drones", over: &[S], cause: droning, reason: "Timeout", says: "within 2 s" },
    Fault {
        name: "error-500",
        over: &[H],
        cause: |s| opening(s, Then::status(500)),
        reason: "ConnectFailed",
        says: "500",
    },
    Fault {
        name: "not-found",
        over: &[H],
        cause: |s| s.on("POST", Rule::always(Then::status(404))),
        reason: "ConnectFailed",
        says: "404",
    },
    Fault {
        name: "too-many",
        over: &[H],
        cause: |s| opening(s, Then::status_with(429, "Retry-After", "7200")),
        reason: "ConnectFailed",
        says: "429",
    },
    Fault {
        name: "html",
        over: &[H],
        cause: |s| opening(s, Then::Junk("<html>".into())),
        reason: "ConnectFailed",
        says: "JSON",
    },
    Fault {
        name: "dropped",
        over: &[H],
        cause: |s| opening(s, Then::Drop),
        reason: "ConnectFailed",
        says: "broke",
    },
    Fault {
        name: "cut",
        over: &[H],
        cause: |s| opening(s, Then::Cut),
        reason: "ConnectFailed",
        says: "broke",
    },
    Fault {
        name: "elsewhere",
        over: &[H],
        cause: |s| opening(s, Then::status_with(307, "Location", "http://example.com/mcp")),
        reason: "ConnectFailed",
        says: "example.com",
    },
    Fault { name: "locked", over: &[H], cause: locked, reason: "AuthRequired", says: "401" },
];

/// The rig behind a faulty server, kept while the test runs.
enum Rig {
    Stdio(Box<Stdio>),
    Http(Http),
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_is_told_on_its_own_resource_while_peers_answer() {
    let stage = Stage::start(&[]).await;
    let peers = Peers::attach(&stage).await;
    let agent = stage.agent(Era::Legacy).await;
    let alone = latencies(&agent, Instant::now() + Duration::from_secs(1)).await;

    let mut bad = Vec::new();
    for fault in FAULTS {
        for (over, era) in
            fault.over.iter().flat_map(|over| [RigEra::Legacy, RigEra::Modern].map(|era| (*over, era)))
        {
            let word = if over == S { "stdio" } else { "http" };
            let name = format!("{}-{word}-{era:?}", fault.name).to_lowercase();
            let script = (fault.cause)(Script::new(&name, era));
            let rig = if over == S {
                Rig::Stdio(Box::new(Stdio::new(script)))
            } else {
                Rig::Http(Http::start(script).await)
            };
            bad.push((name, fault, rig));
        }
    }
    // All at once, and each again every second.
    for (name, _, rig) in &bad {
        let spec = match rig {
            Rig::Stdio(rig) => rig.spec(""),
            Rig::Http(rig) => rig.spec(),
        };
        let limits = "timeouts: { start: 2s, connect: 2s }\nretry: { initial: 1s, max: 1s }";
        stage.declared.server(name, &format!("{spec}\n{limits}"));
    }
    let url = stage.evenkeel.url();
    let calls = tokio::spawn(async move {
        let agent = Agent::open(Era::Legacy, &url).await;
        latencies(&agent, Instant::now() + Duration::from_secs(8)).await
    });
    let mut table = Vec::new();
    for (name, fault, _) in &bad {
        let ready = eventually(&format!("{name}: {}", fault.reason), async || {
            let ready = stage.evenkeel.condition(name, "Ready").await?;
            // One that ends again and again does not stay at its first word.
            let expected =
                ready.reason == fault.reason || (fault.reason, &*ready.reason) == ("Exited", "CrashLoop");
            // A process that the machine holds up says nothing in the 2 s that it has, and something the next time.
            (ready.status == "False" && expected && ready.message.contains(fault.says)).then_some(ready)
        })
        .await;
        table.push(format!("{name:28} {:16} {}", ready.reason, ready.message));
    }
    let meanwhile = calls.await.unwrap();
    println!(
        "{}\ncalls of peers before:    {}\ncalls of peers meanwhile: {}",
        table.join("\n"),
        told(&alone),
        told(&meanwhile)
    );
    // Generous: what fails takes its share of the machine, and nothing else.
    let [before, now] = [&alone, &meanwhile].map(|calls| calls[calls.len() / 2]);
    assert!(
        now < before * 20 + Duration::from_millis(100),
        "a call takes {now:?}, and took {before:?} before"
    );
    // Those that hang do so for 2 s at a time; a machine that stands still holds up a call or two.
    let most = meanwhile[(meanwhile.len() - 1) * 9 / 10];
    assert!(most < Duration::from_secs(2), "calls hang with those that do: {}", told(&meanwhile));
    for (name, ..) in &bad {
        assert!(stage.server(name).await["status"]["attachedGeneration"].is_null(), "{name}");
    }
    assert_eq!(stage.agent(Era::Modern).await.tools().await, TOOLS);
    peers.are_untouched(&stage).await;
}

/// How long each of a series of calls took; all of them must succeed.
async fn latencies(agent: &Agent, until: Instant) -> Vec<Duration> {
    let mut latencies = Vec::new();
    while Instant::now() < until {
        for tool in TOOLS {
            let begun = Instant::now();
            agent.text(tool, "{}").await;
            latencies.push(begun.elapsed());
        }
    }
    latencies.sort();
    latencies
}

fn told(latencies: &[Duration]) -> String {
    let at = |share: usize| latencies[(latencies.len() - 1) * share / 100];
    format!("{} calls, p50 {:?}, p99 {:?}, slowest {:?}", latencies.len(), at(50), at(99), at(100))
}
