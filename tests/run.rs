//! Tests `evenkeel run` as a whole: status of each server, readiness, startup and shutdown.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::disallowed_methods,
    reason = "tests"
)]

#[path = "rig/mod.rs"]
mod rig;
#[path = "support/mod.rs"]
mod support;

use std::time::{Duration, Instant};

use hyper::Method;
use rig::{Action, FakeHttpServer, FakeStdioServer, Rule, Script};
use rustix::process::{Pid, Signal, kill_process};
use support::{Agent, Era, Evenkeel, TestDirectory, eventually, http, within};

const SECRET: &str = "hunter2-is-no-secret";

/// Returns the script of a server that never responds to a handshake.
fn hanging_script() -> Script {
    let hang = || vec![Rule { then: Action::Hang, ..Rule::default() }];
    let on = ["initialize", "server/discover"].map(|method| (method.to_owned(), hang()));
    Script { on: on.into(), ..Script::default() }
}

async fn readyz(evenkeel: &Evenkeel) -> (u16, String) {
    let response = http::send(Method::GET, &evenkeel.admin("/readyz"), &[], "").await.unwrap();
    (response.status, response.text().await.unwrap())
}

#[tokio::test]
async fn each_server_reports_its_state_without_secrets() {
    let good = FakeStdioServer::new(Script::default());
    let hanging = FakeHttpServer::start(hanging_script()).await;
    let fleet = TestDirectory::new();
    fleet.write_server("good", &good.spec(&format!(", env: [{{ name: TOKEN, value: {SECRET} }}]")));
    let connect_timeout = "timeouts: { connect: 10m }";
    fleet.write_server(
        "hanging",
        &format!("http: {{ url: \"{}?key={SECRET}\" }}\n{connect_timeout}", hanging.url()),
    );
    fleet.write_server("missing", "stdio: { command: no-such-program-anywhere }");
    fleet.write_server("asleep", "stdio: { command: never-started }\nsuspend: true");
    fleet.write_server(
        "secretive",
        "http:\n  url: http://127.0.0.1:1/\n  headers: [{ name: A, valueFrom: { secretKeyRef: { name: s, key: k } } }]",
    );
    fleet.write(
        "wrong.yaml",
        "apiVersion: evenkeel.dev/v1alpha1\nkind: McpServer\nmetadata: { name: wrong }\nspec: {}\n",
    );
    let evenkeel = Evenkeel::run(fleet.path()).await;

    evenkeel.wait_until_attached("good").await;
    for (name, ready, attached, second_condition) in [
        ("hanging", "Connecting", "Detached", ("Reconciling", "Progressing")),
        ("missing", "CommandNotFound", "Detached", ("Stalled", "CommandNotFound")),
        ("secretive", "SecretNotFound", "Detached", ("Reconciling", "ProgressingWithRetry")),
        ("wrong", "InvalidSpec", "Detached", ("Stalled", "InvalidSpec")),
    ] {
        evenkeel.wait_for(name, "Ready", "False", ready).await;
        evenkeel.wait_for(name, "Attached", "False", attached).await;
        evenkeel.wait_for(name, second_condition.0, "True", second_condition.1).await;
    }
    evenkeel.wait_for("asleep", "Ready", "False", "Suspended").await;
    assert!(evenkeel.condition("asleep", "Reconciling").await.is_none());

    let good = evenkeel.get_server("good").await.unwrap();
    assert_eq!(good["metadata"]["generation"], 1);
    assert_eq!(good["status"]["observedGeneration"], 1);
    assert_eq!(good["status"]["attachedGeneration"], 1);
    assert_eq!(good["spec"]["stdio"]["env"][0]["value"], "<redacted>");
    let source = http::get(&evenkeel.admin("/apis/evenkeel.dev/v1alpha1/sources/directory")).await.unwrap();
    assert!(source.contains("\"watching\""), "{source}");

    let mut output = evenkeel.stderr();
    assert!(output.contains("resource=McpServer/default/missing reason=CommandNotFound"), "{output}");
    for path in ["/metrics", "/readyz?exclude=first-attempts", "/apis/evenkeel.dev/v1alpha1/mcpservers"] {
        output += &http::get(&evenkeel.admin(path)).await.unwrap();
    }
    assert!(!output.contains(SECRET), "{output}");
}

#[tokio::test]
async fn broken_file_keeps_the_previous_declaration() {
    let server = FakeStdioServer::new(Script::default());
    let fleet = TestDirectory::new();
    fleet.write_server("a", &server.spec(""));
    let evenkeel = Evenkeel::run(fleet.path()).await;
    evenkeel.wait_until_attached("a").await;

    fleet.write("a.yaml", "kind: [");
    evenkeel.wait_for("a", "Ready", "False", "ParseError").await;
    evenkeel.wait_for("a", "Attached", "True", "ServingPreviousGeneration").await;
    evenkeel.wait_for("a", "Stalled", "True", "ParseError").await;
    let [process] = &server.live_processes()[..] else { panic!("one process") };

    fleet.write_server("a", &server.spec(""));
    evenkeel.wait_until_attached("a").await;
    assert!(process.is_alive(), "the connection was not replaced");
    assert_eq!(server.processes().len(), 1);
    assert!(evenkeel.condition("a", "Stalled").await.is_none());

    // Keep another file: an empty directory would be treated as a mistake.
    fleet.write_server("b", &server.spec(""));
    evenkeel.wait_until_attached("b").await;
    fleet.remove("a.yaml");
    eventually("a is gone", async || evenkeel.get_server("a").await.is_none().then_some(())).await;
    let line = "no longer declared resource=McpServer/default/a reason=Removed";
    evenkeel.wait_for_log(&[line]).await;
}

#[tokio::test]
async fn readiness_waits_for_and_names_required_servers() {
    let slow = FakeHttpServer::start(hanging_script()).await;
    let fleet = TestDirectory::new();
    fleet.write_server("slow", &format!("{}\nrequired: true\ntimeouts: {{ connect: 10m }}", slow.spec()));
    fleet.write_server("other", "stdio: { command: no-such-program-anywhere }");
    let evenkeel = Evenkeel::run(fleet.path()).await;
    evenkeel.wait_for("slow", "Ready", "False", "Connecting").await;
    evenkeel.wait_for("other", "Ready", "False", "CommandNotFound").await;
    let (code, reasons) = readyz(&evenkeel).await;
    assert_eq!((code, reasons.lines().count()), (503, 1), "{reasons}");
    assert!(reasons.starts_with("McpServer/default/slow: Connecting: "), "{reasons}");

    slow.edit_script(|script| script.on.clear());
    // The current attempt still hangs; a changed declaration starts another at once.
    fleet.write_server("slow", &format!("{}\nrequired: true", slow.spec().replace("/mcp", "/again")));
    evenkeel.wait_until_attached("slow").await;
    eventually("evenkeel is ready", async || (readyz(&evenkeel).await == (200, "ok\n".into())).then_some(()))
        .await;
}

#[tokio::test]
async fn missing_directory_is_waited_for() {
    let server = FakeStdioServer::new(Script::default());
    let folder = tempfile::tempdir().unwrap();
    let late = folder.path().join("late");
    let evenkeel = Evenkeel::run(&late).await;
    eventually("the missing directory is reported", async || {
        let (code, reasons) = readyz(&evenkeel).await;
        assert_eq!(code, 503, "{reasons}");
        reasons.starts_with("Source/directory: SourceUnavailable: ").then_some(())
    })
    .await;

    let fleet = TestDirectory::new();
    fleet.write_server("a", &server.spec(""));
    std::fs::rename(fleet.path(), &late).unwrap();
    evenkeel.wait_until_attached("a").await;
    assert_eq!(readyz(&evenkeel).await.0, 200);
}

#[tokio::test]
async fn namespace_exists_once_something_is_declared_in_it() {
    let fleet = TestDirectory::new();
    let evenkeel = Evenkeel::run(fleet.path()).await;
    let url = |namespace: &str| format!("{}/ns/{namespace}/mcp/", evenkeel.url().trim_end_matches("/mcp"));
    let refused = async || Agent::try_connect(Era::Legacy, &url("team-x")).await.err();
    let error = eventually("the declarations are read", refused).await;
    assert!(error.contains("404") || error.contains("Namespaces: default"), "{error}");
    for era in Era::ALL {
        Agent::connect(era, &url("default")).await;
    }
    fleet.write(
        "notes.yaml",
        "apiVersion: evenkeel.dev/v1alpha1\nkind: Skill\nmetadata: { name: notes, namespace: team-x }\n\
         spec: { path: ./missing }\n",
    );
    for era in Era::ALL {
        let connected = async || Agent::try_connect(era, &url("team-x")).await.ok();
        eventually("the namespace exists", connected).await;
    }
}

#[tokio::test]
async fn limits_are_set_by_flags_and_variables() {
    let fleet = TestDirectory::new();
    let flags = ["--max-request-size", "64Ki"];
    let evenkeel = Evenkeel::run_with_env(fleet.path(), &flags, &[("EVENKEEL_MAX_SESSION_CALLS", "7")]).await;
    let agent = Agent::connect(Era::Legacy, &evenkeel.url()).await;
    let params = format!(r#"{{"a":"{}"}}"#, "x".repeat(70_000));
    let error = agent.request("ping", &params).await.unwrap_err();
    assert!(error.contains("larger than 64 KiB (--max-request-size)"), "{error}");
    let help = evenkeel.command(&["run", "--help"]).output().unwrap();
    let help = String::from_utf8(help.stdout).unwrap();
    for flag in
        ["--max-connections", "--max-session-calls", "--max-server-calls", "EVENKEEL_MAX_SERVER_CALLS"]
    {
        assert!(help.contains(flag), "{flag}");
    }
}

#[tokio::test]
async fn second_instance_is_rejected_with_the_first_pid() {
    let fleet = TestDirectory::new();
    let evenkeel = Evenkeel::run(fleet.path()).await;
    let directory = fleet.path().to_str().unwrap();
    let output = evenkeel
        .command(&["run", directory, "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0"])
        .output()
        .unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert!(stderr.contains(&evenkeel.pid().to_string()), "{stderr}");
}

#[tokio::test]
async fn sigterm_stops_every_child_process() {
    let servers = FakeStdioServer::new(Script::default());
    let fleet = TestDirectory::new();
    fleet.write_server("a", &servers.spec(""));
    fleet.write_server("b", &servers.spec(""));
    let mut evenkeel = Evenkeel::run(fleet.path()).await;
    evenkeel.wait_until_attached("a").await;
    evenkeel.wait_until_attached("b").await;
    let status = evenkeel.terminate().await;
    assert_eq!(status.code(), Some(0), "{}", evenkeel.stderr());
    assert_eq!(servers.existing_pids(), [0_u32; 0]);
}

#[tokio::test]
async fn second_signal_exits_at_once() {
    let mut stubborn = Script::default();
    stubborn.stdio.ignore_eof = true;
    stubborn.stdio.ignore_sigterm = true;
    let server = FakeStdioServer::new(stubborn);
    let fleet = TestDirectory::new();
    fleet.write_server("a", &server.spec(""));
    let mut evenkeel = Evenkeel::run(fleet.path()).await;
    evenkeel.wait_until_attached("a").await;
    let pid = i32::try_from(evenkeel.pid()).ok().and_then(Pid::from_raw).unwrap();
    kill_process(pid, Signal::INT).unwrap();
    evenkeel.wait_for_log(&["shutting down"]).await;
    let second = Instant::now();
    let status = evenkeel.terminate().await;
    assert_eq!(status.code(), Some(1), "{}", evenkeel.stderr());
    // A regular shutdown would have waited longer for the server; the exit code 1 shows that it did not.
    assert!(second.elapsed() < Duration::from_secs(10), "{:?}", second.elapsed());
    for process in server.processes() {
        within("no process is left", process.wait_for_exit()).await;
    }
}
