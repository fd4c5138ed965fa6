//! Every fault of the rig, over each transport that it can happen on, with servers of each era: the reported status,
//! and the latency of calls to healthy servers meanwhile. `cargo test --test behaviour faults -- --nocapture` prints
//! the table.

use std::time::{Duration, Instant};

use crate::control_servers::{ControlServers, TOOLS};
use crate::fixture::EvenkeelFixture;
use crate::rig::{Action, FakeHttpServer, FakeStdioServer, Rule, Script, ServerEra};
use crate::support::{Agent, Era, eventually};

#[derive(Clone, Copy, PartialEq)]
enum FaultTransport {
    Stdio,
    Http,
}

use FaultTransport::{Http as H, Stdio as S};

/// A fault, its transports, and the expected reason and message of `Ready=False`.
struct Fault {
    name: &'static str,
    transports: &'static [FaultTransport],
    inject: fn(Script) -> Script,
    reason: &'static str,
    message_part: &'static str,
}

/// Sets the action on the first request of the script's era.
fn on_first_request(script: Script, then: Action) -> Script {
    let method = if script.era == ServerEra::Modern { "server/discover" } else { "initialize" };
    script.on(method, Rule::always(then))
}

fn exit_at_start(mut script: Script, code: i32) -> Script {
    script.stdio.exit_at_start = Some(code);
    script.stdio.stderr = vec!["the token is missing".into()];
    script
}

fn endless_line(mut script: Script) -> Script {
    script.stdio.endless_line = true;
    script
}

fn login_prompt(mut script: Script) -> Script {
    script.stdio.stderr = vec!["please log in at http://127.0.0.1:1/".into()];
    on_first_request(script, Action::Hang)
}

fn authorization_required(mut script: Script) -> Script {
    script.http.authorization = Some("Bearer right".into());
    script
}

const FAULTS: &[Fault] = &[
    Fault {
        name: "silent",
        transports: &[S, H],
        inject: |s| on_first_request(s, Action::Hang),
        reason: "Timeout",
        message_part: "within 2 s",
    },
    Fault {
        name: "rejecting",
        transports: &[S, H],
        inject: |s| on_first_request(s, Action::error(-32600, "not today")),
        reason: "HandshakeFailed",
        message_part: "not today",
    },
    Fault {
        name: "invalid-result",
        transports: &[S, H],
        inject: |s| on_first_request(s, Action::result("[1]")),
        reason: "HandshakeFailed",
        message_part: "",
    },
    Fault {
        name: "list-fails",
        transports: &[S, H],
        inject: |s| s.on("tools/list", Rule::always(Action::error(-32603, "the database is gone"))),
        reason: "ListFailed",
        message_part: "the database is gone",
    },
    Fault {
        name: "list-hangs",
        transports: &[S, H],
        inject: |s| s.on("tools/list", Rule::always(Action::Hang)),
        reason: "Timeout",
        message_part: "within 2 s",
    },
    Fault {
        name: "list-invalid",
        transports: &[S, H],
        inject: |s| s.on("tools/list", Rule::always(Action::result("{}"))),
        reason: "ListFailed",
        message_part: "",
    },
    Fault {
        name: "exits-at-start",
        transports: &[S],
        inject: |s| exit_at_start(s, 7),
        reason: "Exited",
        message_part: "the token is missing",
    },
    Fault {
        name: "exits-in-handshake",
        transports: &[S],
        inject: |s| on_first_request(s, Action::Exit(4)),
        reason: "Exited",
        message_part: "4",
    },
    Fault {
        name: "login-prompt",
        transports: &[S],
        inject: login_prompt,
        reason: "Timeout",
        message_part: "please log in",
    },
    Fault {
        name: "endless-line",
        transports: &[S],
        inject: endless_line,
        reason: "Timeout",
        message_part: "within 2 s",
    },
    Fault {
        name: "error-500",
        transports: &[H],
        inject: |s| on_first_request(s, Action::status(500)),
        reason: "ConnectFailed",
        message_part: "500",
    },
    Fault {
        name: "not-found",
        transports: &[H],
        inject: |s| s.on("POST", Rule::always(Action::status(404))),
        reason: "ConnectFailed",
        message_part: "404",
    },
    Fault {
        name: "too-many",
        transports: &[H],
        inject: |s| on_first_request(s, Action::status_with(429, "Retry-After", "7200")),
        reason: "ConnectFailed",
        message_part: "429",
    },
    Fault {
        name: "html",
        transports: &[H],
        inject: |s| on_first_request(s, Action::Junk("<html>".into())),
        reason: "ConnectFailed",
        message_part: "JSON",
    },
    Fault {
        name: "dropped",
        transports: &[H],
        inject: |s| on_first_request(s, Action::Drop),
        reason: "ConnectFailed",
        message_part: "broke",
    },
    Fault {
        name: "cut",
        transports: &[H],
        inject: |s| on_first_request(s, Action::Cut),
        reason: "ConnectFailed",
        message_part: "broke",
    },
    Fault {
        name: "redirect",
        transports: &[H],
        inject: |s| on_first_request(s, Action::status_with(307, "Location", "http://example.com/mcp")),
        reason: "ConnectFailed",
        message_part: "example.com",
    },
    Fault {
        name: "auth-required",
        transports: &[H],
        inject: authorization_required,
        reason: "AuthRequired",
        message_part: "401",
    },
];

/// The rig of a faulty server, kept while the test runs.
enum FaultyServer {
    Stdio(Box<FakeStdioServer>),
    Http(FakeHttpServer),
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn faults_are_reported_and_do_not_slow_healthy_servers() {
    let fixture = EvenkeelFixture::start(&[]).await;
    let controls = ControlServers::attach(&fixture).await;
    let agent = fixture.agent(Era::Legacy).await;
    let baseline = latencies(&agent, Instant::now() + Duration::from_secs(1)).await;

    let mut faulty = Vec::new();
    for fault in FAULTS {
        for (over, era) in fault
            .transports
            .iter()
            .flat_map(|over| [ServerEra::Legacy, ServerEra::Modern].map(|era| (*over, era)))
        {
            let transport = if over == S { "stdio" } else { "http" };
            let name = format!("{}-{transport}-{era:?}", fault.name).to_lowercase();
            let script = (fault.inject)(Script::new(&name, era));
            let rig = if over == S {
                FaultyServer::Stdio(Box::new(FakeStdioServer::new(script)))
            } else {
                FaultyServer::Http(FakeHttpServer::start(script).await)
            };
            faulty.push((name, fault, rig));
        }
    }
    // All servers are declared at once, and each retries every second.
    for (name, _, rig) in &faulty {
        let spec = match rig {
            FaultyServer::Stdio(rig) => rig.spec(""),
            FaultyServer::Http(rig) => rig.spec(),
        };
        let limits = "timeouts: { start: 2s, connect: 2s }\nretry: { initial: 1s, max: 1s }";
        fixture.declared.write_server(name, &format!("{spec}\n{limits}"));
    }
    let url = fixture.evenkeel.url();
    let calls = tokio::spawn(async move {
        let agent = Agent::connect(Era::Legacy, &url).await;
        latencies(&agent, Instant::now() + Duration::from_secs(8)).await
    });
    let mut table = Vec::new();
    for (name, fault, _) in &faulty {
        let ready = eventually(&format!("{name}: {}", fault.reason), async || {
            let ready = fixture.evenkeel.condition(name, "Ready").await?;
            // A server that exits repeatedly reports CrashLoop after its first reason.
            let expected =
                ready.reason == fault.reason || (fault.reason, &*ready.reason) == ("Exited", "CrashLoop");
            // On a slow machine a process may write nothing within its 2 s at the first attempt, but does at a later
            // one.
            (ready.status == "False" && expected && ready.message.contains(fault.message_part))
                .then_some(ready)
        })
        .await;
        table.push(format!("{name:28} {:16} {}", ready.reason, ready.message));
    }
    let meanwhile = calls.await.unwrap();
    println!(
        "{}\ncalls of control servers before:    {}\ncalls of control servers meanwhile: {}",
        table.join("\n"),
        latency_summary(&baseline),
        latency_summary(&meanwhile)
    );
    // A generous limit: the faulty servers use their share of the CPU.
    let [before, now] = [&baseline, &meanwhile].map(|calls| calls[calls.len() / 2]);
    assert!(now < before * 20 + Duration::from_millis(100), "a call takes {now:?} instead of {before:?}");
    // The faulty servers hang for 2 s at a time; a stall of the machine delays a call or two.
    let p90 = meanwhile[(meanwhile.len() - 1) * 9 / 10];
    assert!(
        p90 < Duration::from_secs(2),
        "calls hang together with faulty servers: {}",
        latency_summary(&meanwhile)
    );
    for (name, ..) in &faulty {
        assert!(fixture.server(name).await["status"]["attachedGeneration"].is_null(), "{name}");
    }
    assert_eq!(fixture.agent(Era::Modern).await.tool_names().await, TOOLS);
    controls.assert_untouched(&fixture).await;
}

/// Returns the sorted latencies of a series of calls, all of which must succeed.
async fn latencies(agent: &Agent, until: Instant) -> Vec<Duration> {
    let mut latencies = Vec::new();
    while Instant::now() < until {
        for tool in TOOLS {
            let started_at = Instant::now();
            agent.call_text(tool, "{}").await;
            latencies.push(started_at.elapsed());
        }
    }
    latencies.sort();
    latencies
}

fn latency_summary(latencies: &[Duration]) -> String {
    let at = |share: usize| latencies[(latencies.len() - 1) * share / 100];
    format!("{} calls, p50 {:?}, p99 {:?}, slowest {:?}", latencies.len(), at(50), at(99), at(100))
}
