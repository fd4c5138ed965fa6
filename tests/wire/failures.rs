//! What is told about a server that fails, and what is left of it.

use std::time::Duration;

use evenkeel::resource::Reason;
use evenkeel::wire::{ConnectionContext, ConnectionEvent, FailureSource, open};

use super::{TestServer, TransportKind, call, connect};
use crate::rig::{Action, ControlCommand, FakeHttpServer, FakeStdioServer, Rule, Script, ServerEra};
use crate::support::{eventually, within};

/// An opening that fails, with the reason and something that the message says.
async fn assert_open_fails(over: TransportKind, script: Script, reason: Reason, says: &str) {
    let upstream = TestServer::start(over, script).await;
    let error = connect(&upstream).await.err().unwrap_or_else(|| panic!("opened, though {says}"));
    assert_eq!(error.problem.reason, reason, "{error}");
    assert!(error.to_string().contains(says), "{says:?} in {error}");
    if let TestServer::Stdio(rig) = upstream {
        assert_eq!(rig.existing_pids(), [0_u32; 0], "no process is left: {error}");
    }
}

#[tokio::test]
async fn process_exit_at_start_reports_code_and_stderr() {
    let mut script = Script::default();
    script.stdio.exit_at_start = Some(7);
    script.stdio.stderr = vec!["no such luck".into()];
    assert_open_fails(TransportKind::Stdio, script.clone(), Reason::Exited, "7").await;
    assert_open_fails(TransportKind::Stdio, script, Reason::Exited, "no such luck").await;
}

#[tokio::test]
async fn missing_credentials_are_reported_as_auth_required() {
    let mut script = Script::new("locked", ServerEra::Dual);
    script.http.authorization = Some("Bearer s3cret".into());
    assert_open_fails(TransportKind::Http, script, Reason::AuthRequired, "401").await;
}

#[tokio::test]
async fn retry_after_is_reported() {
    let busy = Script::new("busy", ServerEra::Dual)
        .on("POST", Rule::always(Action::status_with(429, "Retry-After", "7")));
    let rig = TestServer::start(TransportKind::Http, busy).await;
    let error = connect(&rig).await.err().unwrap();
    assert_eq!(error.retry_after, Some(Duration::from_secs(7)), "{error}");
    assert!(!rig.counters().await.complaints.iter().any(|complaint| !complaint.is_empty()));
}

/// Whatever stands in the body of such a refusal, it is about the connection.
#[tokio::test]
async fn error_status_reports_reason_and_body() {
    let error = r#"{"jsonrpc":"2.0","id":null,"error":{"code":-32000,"message":"not now"}}"#;
    for (status, reason) in [
        (401, Reason::AuthRequired),
        (403, Reason::AuthRequired),
        (429, Reason::ConnectFailed),
        (503, Reason::ConnectFailed),
    ] {
        for (kind, body) in [("application/json", error), ("text/plain", "not now")] {
            let then = |headers: &[(&str, &str)]| {
                let headers = headers.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
                Action::Http { status, headers: headers.collect(), body: body.into() }
            };
            let busy = then(&[("Retry-After", "7"), ("Content-Type", kind)]);
            let refusing = Script::default().on("POST", Rule::always(busy));
            let error = connect(&TestServer::start(TransportKind::Http, refusing).await).await.unwrap_err();
            assert_eq!(error.problem.reason, reason, "{status} {kind}: {error}");
            assert_eq!(error.retry_after, Some(Duration::from_secs(7)), "{status} {kind}: {error}");
            assert!(error.to_string().contains("not now"), "{status} {kind}: {error}");
            // The same of a call; the connection stays.
            let refusal = then(&[("Content-Type", kind)]);
            let script = Script::default().on("tools/call", Rule::times(1, refusal));
            let upstream = TestServer::start(TransportKind::Http, script).await;
            let (link, _events) = connect(&upstream).await.unwrap();
            let error = call(&link, "echo", "{}").await.unwrap_err();
            assert_eq!(
                error.failure_source,
                FailureSource::Status(status.try_into().unwrap()),
                "{kind}: {error}"
            );
            assert!(!error.dispatched, "{status} {kind}: {error}");
            call(&link, "echo", "{}").await.unwrap().unwrap();
            link.close().await;
        }
    }
}

#[tokio::test]
async fn get_404_without_session_means_no_notification_stream() {
    let script = Script::new("plain", ServerEra::Legacy).on("GET", Rule::always(Action::status(404)));
    let upstream = TestServer::start(TransportKind::Http, script).await;
    let (link, mut events) = connect(&upstream).await.unwrap();
    events.subscribe().await.unwrap();
    call(&link, "echo", "{}").await.unwrap().unwrap();
    link.close().await;
}

#[tokio::test]
async fn call_404_without_session_fails_that_call_only() {
    let mut script = Script::new("stateless", ServerEra::Legacy)
        .tools(&["sleep"])
        .on("tools/call", Rule::times(1, Action::Answer))
        .on("tools/call", Rule::times(1, Action::status(404)));
    script.http.sessions = false;
    let upstream = TestServer::start(TransportKind::Http, script).await;
    let (link, _events) = connect(&upstream).await.unwrap();
    let (slow, failed) = tokio::join!(call(&link, "sleep", r#"{"ms":2000}"#), async {
        upstream.wait_until("a call is at work", |seen| seen.calls() == 1).await;
        call(&link, "sleep", r#"{"ms":0}"#).await
    });
    slow.unwrap().unwrap();
    let error = failed.unwrap_err();
    assert!(error.to_string().contains("404"), "{error}");
    call(&link, "sleep", r#"{"ms":0}"#).await.unwrap().unwrap();
    link.close().await;
}

#[tokio::test]
async fn server_name_is_truncated() {
    for era in [ServerEra::Legacy, ServerEra::Modern] {
        let upstream = TestServer::start(TransportKind::Stdio, Script::new(&"N".repeat(100_000), era)).await;
        let (link, _events) = connect(&upstream).await.unwrap();
        assert_eq!(link.handshake().description.server_info.name, format!("{}…", "N".repeat(255)));
        link.close().await;
    }
}

#[tokio::test]
async fn response_beyond_the_limit_fails_that_call_only() {
    for over in [TransportKind::Http, TransportKind::Stdio] {
        let upstream = TestServer::start(over, Script::default().tools(&["big", "echo"])).await;
        let (link, _events) = connect(&upstream).await.unwrap();
        let error = call(&link, "big", r#"{"bytes":17000000}"#).await.unwrap_err();
        assert!(error.to_string().contains("longer than 16 MiB"), "{over:?}: {error}");
        assert!(error.dispatched, "{over:?}: {error}");
        call(&link, "echo", "{}").await.unwrap().unwrap();
        link.close().await;
    }
}

/// It lives on, but nobody can talk with it.
#[tokio::test]
async fn process_that_closes_a_pipe_is_terminated() {
    for (then, pipe) in [(Action::CloseStdout, "stdout"), (Action::CloseStdin, "stdin")] {
        let script = Script::default().on("tools/call", Rule::always(then));
        let upstream = TestServer::start(TransportKind::Stdio, script).await;
        let (link, mut events) = connect(&upstream).await.unwrap();
        let TestServer::Stdio(rig) = &upstream else { unreachable!() };
        let process = eventually("the process is counted", async || rig.live_processes().pop()).await;
        let (failed, ()) = tokio::join!(call(&link, "echo", "{}"), async {
            // What took its place does not answer for it.
            within("the pipe is closed", process.wait_for_exit()).await;
            if cfg!(not(target_os = "linux")) {
                // Elsewhere a closed stdin shows when something is written.
                let _ = link.notify("notifications/roots/list_changed", None).await;
            }
        });
        let error = failed.unwrap_err();
        assert_eq!(error.problem.reason, Reason::Exited, "{error}");
        assert!(error.to_string().contains(&format!("closed its {pipe}")), "{error}");
        let event = within("the loss is told", events.next()).await;
        assert!(matches!(event, ConnectionEvent::Lost(_)), "{event:?}");
        let pid = i32::try_from(process.pid()).ok().and_then(rustix::process::Pid::from_raw).unwrap();
        eventually("it is ended without being asked", async || {
            rustix::process::test_kill_process(pid).is_err().then_some(())
        })
        .await;
    }
}

#[tokio::test]
async fn noise_on_stdout_is_skipped() {
    let mut script = Script::new("noisy", ServerEra::Dual);
    script.stdio.stdout = vec!["Welcome to the server!".into(), String::new(), "[1,2".into()];
    script.stdio.stderr_flood = 1 << 20;
    let upstream = TestServer::start(TransportKind::Stdio, script).await;
    let (link, _events) = connect(&upstream).await.unwrap_or_else(|error| panic!("{error}"));
    call(&link, "echo", "{}").await.unwrap().unwrap();
    link.close().await;
}

#[tokio::test]
async fn dropped_handshake_leaves_no_process_or_request() {
    for method in ["server/discover", "initialize"] {
        let mut script = Script::new("silent", ServerEra::Legacy).on(method, Rule::always(Action::Hang));
        // Nothing of a line that never ends is an answer either.
        script.stdio.endless_line = method == "initialize";
        for over in [TransportKind::Stdio, TransportKind::Http] {
            let upstream = TestServer::start(over, script.clone()).await;
            let host = ConnectionContext::default();
            let endpoint = upstream.endpoint();
            tokio::select! {
                opened = open(&endpoint, None, &host) => panic!("{method} {over:?}: {opened:?}"),
                () = upstream.wait_until("the opening hangs", |seen| seen.count(method) == 1 && seen.in_flight == 1) => {}
            }
            host.tasks.close();
            within("what the attempt opened is closed", host.tasks.wait()).await;
            match &upstream {
                TestServer::Stdio(rig) => assert_eq!(rig.existing_pids(), [0_u32; 0], "{method}"),
                TestServer::Http(rig) => {
                    eventually("nothing is at work", async || (rig.counters().in_flight == 0).then_some(()))
                        .await;
                }
            }
        }
    }
}

#[tokio::test]
async fn stubborn_process_and_its_children_are_killed() {
    let mut script = Script::new("stubborn", ServerEra::Dual);
    script.stdio.ignore_eof = true;
    script.stdio.ignore_sigterm = true;
    script.stdio.grandchild = true;
    let rig = FakeStdioServer::new(script);
    let upstream = TestServer::Stdio(rig);
    let (link, _events) = connect(&upstream).await.unwrap();
    let TestServer::Stdio(rig) = &upstream else { unreachable!() };
    let grandchild = eventually("the grandchild is counted", async || rig.grandchildren().pop()).await;
    within("a close is bounded", link.close()).await;
    eventually("the process is gone", async || rig.live_processes().is_empty().then_some(())).await;
    within("the grandchild is gone", grandchild.wait_for_exit()).await;
}

#[tokio::test]
async fn killed_process_fails_its_calls_at_once() {
    let upstream =
        TestServer::start(TransportKind::Stdio, Script::new("mortal", ServerEra::Dual).tools(&["sleep"]))
            .await;
    let (link, mut events) = connect(&upstream).await.unwrap();
    events.subscribe().await.unwrap();
    let TestServer::Stdio(rig) = &upstream else { unreachable!() };
    let process = eventually("the process is counted", async || rig.live_processes().pop()).await;
    let (failed, event, ()) = tokio::join!(
        call(&link, "sleep", r#"{"ms":600000}"#),
        within("the loss is told", events.next()),
        async {
            upstream.wait_until("the call is at work", |seen| seen.calls() == 1).await;
            process.kill();
        }
    );
    let error = failed.unwrap_err();
    assert!(error.dispatched, "{error}");
    assert_eq!(error.problem.reason, Reason::Exited, "{error}");
    assert!(matches!(event, ConnectionEvent::Lost(_)), "{event:?}");
    link.close().await;
}

/// A server that fails in the middle of its work has done some of it.
#[tokio::test]
async fn server_error_is_reported_as_dispatched() {
    for status in [500, 502, 504] {
        let script =
            Script::new("failing", ServerEra::Dual).on("tools/call", Rule::always(Action::status(status)));
        let upstream = TestServer::start(TransportKind::Http, script).await;
        let (link, _events) = connect(&upstream).await.unwrap();
        let error = call(&link, "echo", "{}").await.unwrap_err();
        assert!(error.dispatched, "{status}: {error}");
        link.close().await;
    }
}

#[tokio::test]
async fn truncated_http_response_is_dispatched_and_fails_that_call_only() {
    for era in [ServerEra::Legacy, ServerEra::Modern] {
        for then in [Action::Cut, Action::Drop, Action::Junk("<html>".into())] {
            let case = format!("{era:?} {then:?}");
            let rig =
                FakeHttpServer::start(Script::new("cutting", era).on("tools/call", Rule::times(1, then)))
                    .await;
            let upstream = TestServer::Http(rig);
            let (link, _events) = connect(&upstream).await.unwrap();
            let error = call(&link, "echo", "{}").await.err().unwrap_or_else(|| panic!("{case}: answered"));
            assert!(error.dispatched, "{case}: {error}");
            assert_eq!(upstream.counters().await.calls(), 1, "{case}: never sent twice");
            call(&link, "echo", "{}").await.unwrap_or_else(|error| panic!("{case}: {error}")).unwrap();
            link.close().await;
        }
    }
}

#[tokio::test]
async fn forgotten_session_ends_the_connection() {
    let upstream = TestServer::start(TransportKind::Http, Script::new("forgetful", ServerEra::Legacy)).await;
    let (link, mut events) = connect(&upstream).await.unwrap();
    events.subscribe().await.unwrap();
    let TestServer::Http(rig) = &upstream else { unreachable!() };
    rig.send_command(ControlCommand::ForgetSessions { quietly: false });
    let event = within("the loss is told", async {
        loop {
            match events.next().await {
                ConnectionEvent::ListChanged(_) => {}
                lost @ ConnectionEvent::Lost(_) => return lost,
            }
        }
    })
    .await;
    assert!(matches!(event, ConnectionEvent::Lost(_)), "{event:?}");
    link.close().await;
}
