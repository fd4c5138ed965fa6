//! Tests of failing servers: the reported errors, and that no process or request is left.

use std::time::Duration;

use evenkeel::resource::Reason;
use evenkeel::wire::{ConnectionContext, ConnectionEvent, FailureSource, open};

use super::{PROBE_TIMEOUT, TestServer, TransportKind, call, connect};
use crate::rig::{Action, ControlCommand, FakeHttpServer, FakeStdioServer, Rule, Script, ServerEra};
use crate::support::{eventually, within};

/// Asserts that connecting fails with this reason and with `expected` in the message.
async fn assert_open_fails(transport: TransportKind, script: Script, reason: Reason, expected: &str) {
    let server = TestServer::start(transport, script).await;
    let error = connect(&server)
        .await
        .err()
        .unwrap_or_else(|| panic!("connected instead of failing with {expected}"));
    assert_eq!(error.problem.reason, reason, "{error}");
    assert!(error.to_string().contains(expected), "{expected:?} in {error}");
    if let TestServer::Stdio(rig) = server {
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

/// Whatever the body of such a response contains, the error concerns the connection.
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
            let action = |headers: &[(&str, &str)]| {
                let headers = headers.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
                Action::Http { status, headers: headers.collect(), body: body.into() }
            };
            let busy = action(&[("Retry-After", "7"), ("Content-Type", kind)]);
            let script = Script::default().on("POST", Rule::always(busy));
            let error = connect(&TestServer::start(TransportKind::Http, script).await).await.unwrap_err();
            assert_eq!(error.problem.reason, reason, "{status} {kind}: {error}");
            assert_eq!(error.retry_after, Some(Duration::from_secs(7)), "{status} {kind}: {error}");
            assert!(error.to_string().contains("not now"), "{status} {kind}: {error}");
            // The same status in response to a call does not end the connection.
            let response = action(&[("Content-Type", kind)]);
            let script = Script::default().on("tools/call", Rule::times(1, response));
            let server = TestServer::start(TransportKind::Http, script).await;
            let (connection, _events) = connect(&server).await.unwrap();
            let error = call(&connection, "echo", "{}").await.unwrap_err();
            assert_eq!(
                error.failure_source,
                FailureSource::Status(status.try_into().unwrap()),
                "{kind}: {error}"
            );
            assert!(!error.dispatched, "{status} {kind}: {error}");
            call(&connection, "echo", "{}").await.unwrap().unwrap();
            connection.close().await;
        }
    }
}

#[tokio::test]
async fn get_404_does_not_end_the_connection() {
    let script = Script::new("plain", ServerEra::Legacy).on("GET", Rule::always(Action::status(404)));
    let server = TestServer::start(TransportKind::Http, script).await;
    let (connection, mut events) = connect(&server).await.unwrap();
    events.subscribe().await.unwrap();
    call(&connection, "echo", "{}").await.unwrap().unwrap();
    connection.close().await;
}

#[tokio::test]
async fn call_404_without_session_fails_that_call_only() {
    let mut script = Script::new("stateless", ServerEra::Legacy)
        .tools(&["sleep"])
        .on("tools/call", Rule::times(1, Action::Answer))
        .on("tools/call", Rule::times(1, Action::status(404)));
    script.http.sessions = false;
    let server = TestServer::start(TransportKind::Http, script).await;
    let (connection, _events) = connect(&server).await.unwrap();
    let (slow, failed) = tokio::join!(call(&connection, "sleep", r#"{"ms":2000}"#), async {
        server.wait_until("a call is in flight", |counters| counters.calls() == 1).await;
        call(&connection, "sleep", r#"{"ms":0}"#).await
    });
    slow.unwrap().unwrap();
    let error = failed.unwrap_err();
    assert!(error.to_string().contains("404"), "{error}");
    call(&connection, "sleep", r#"{"ms":0}"#).await.unwrap().unwrap();
    connection.close().await;
}

#[tokio::test]
async fn server_name_is_truncated() {
    for era in [ServerEra::Legacy, ServerEra::Modern] {
        let server = TestServer::start(TransportKind::Stdio, Script::new(&"N".repeat(100_000), era)).await;
        let (connection, _events) = connect(&server).await.unwrap();
        assert_eq!(connection.handshake().description.server_info.name, format!("{}…", "N".repeat(255)));
        connection.close().await;
    }
}

#[tokio::test]
async fn response_beyond_the_limit_fails_that_call_only() {
    for transport in [TransportKind::Http, TransportKind::Stdio] {
        let server = TestServer::start(transport, Script::default().tools(&["big", "echo"])).await;
        let (connection, _events) = connect(&server).await.unwrap();
        let error = call(&connection, "big", r#"{"bytes":17000000}"#).await.unwrap_err();
        assert!(error.to_string().contains("longer than 16 MiB"), "{transport:?}: {error}");
        assert!(error.dispatched, "{transport:?}: {error}");
        call(&connection, "echo", "{}").await.unwrap().unwrap();
        connection.close().await;
    }
}

/// The process is alive, but communication with it is impossible.
#[tokio::test]
async fn process_that_closes_a_pipe_is_terminated() {
    for (action, pipe) in [(Action::CloseStdout, "stdout"), (Action::CloseStdin, "stdin")] {
        let script = Script::default().on("tools/call", Rule::always(action));
        let server = TestServer::start(TransportKind::Stdio, script).await;
        let (connection, mut events) = connect(&server).await.unwrap();
        let TestServer::Stdio(rig) = &server else { unreachable!() };
        let process = eventually("the process is counted", async || rig.live_processes().pop()).await;
        let (failed, ()) = tokio::join!(call(&connection, "echo", "{}"), async {
            // A replacement process does not respond to the call.
            within("the pipe is closed", process.wait_for_exit()).await;
            if cfg!(not(target_os = "linux")) {
                // On other systems a closed stdin is detected only by a write.
                let _ = connection.notify("notifications/roots/list_changed", None).await;
            }
        });
        let error = failed.unwrap_err();
        assert_eq!(error.problem.reason, Reason::Exited, "{error}");
        assert!(error.to_string().contains(&format!("closed its {pipe}")), "{error}");
        let event = within("the end of the connection is reported", events.next()).await;
        assert!(matches!(event, ConnectionEvent::Lost(_)), "{event:?}");
        let pid = i32::try_from(process.pid()).ok().and_then(rustix::process::Pid::from_raw).unwrap();
        eventually("the process is terminated without a close", async || {
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
    let server = TestServer::start(TransportKind::Stdio, script).await;
    let (connection, _events) = connect(&server).await.unwrap_or_else(|error| panic!("{error}"));
    call(&connection, "echo", "{}").await.unwrap().unwrap();
    connection.close().await;
}

#[tokio::test]
async fn dropped_handshake_leaves_no_process_or_request() {
    for method in ["server/discover", "initialize"] {
        let mut script = Script::new("silent", ServerEra::Legacy).on(method, Rule::always(Action::Hang));
        // A line that never ends is no response either.
        script.stdio.endless_line = method == "initialize";
        for transport in [TransportKind::Stdio, TransportKind::Http] {
            let server = TestServer::start(transport, script.clone()).await;
            let context = ConnectionContext::default();
            let endpoint = server.endpoint();
            tokio::select! {
                opened = open(&endpoint, None, PROBE_TIMEOUT, &context) => panic!("{method} {transport:?}: {opened:?}"),
                () = server.wait_until("the handshake hangs", |counters| counters.count(method) == 1 && counters.in_flight == 1) => {}
            }
            context.tasks.close();
            within("everything that the attempt opened is closed", context.tasks.wait()).await;
            match &server {
                TestServer::Stdio(rig) => assert_eq!(rig.existing_pids(), [0_u32; 0], "{method}"),
                TestServer::Http(rig) => {
                    eventually("no request is in flight", async || {
                        (rig.counters().in_flight == 0).then_some(())
                    })
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
    let server = TestServer::Stdio(rig);
    let (connection, _events) = connect(&server).await.unwrap();
    let TestServer::Stdio(rig) = &server else { unreachable!() };
    let grandchild = eventually("the grandchild is counted", async || rig.grandchildren().pop()).await;
    within("closing takes bounded time", connection.close()).await;
    eventually("the process is gone", async || rig.live_processes().is_empty().then_some(())).await;
    within("the grandchild is gone", grandchild.wait_for_exit()).await;
}

#[tokio::test]
async fn killed_process_fails_its_calls_at_once() {
    let server =
        TestServer::start(TransportKind::Stdio, Script::new("mortal", ServerEra::Dual).tools(&["sleep"]))
            .await;
    let (connection, mut events) = connect(&server).await.unwrap();
    events.subscribe().await.unwrap();
    let TestServer::Stdio(rig) = &server else { unreachable!() };
    let process = eventually("the process is counted", async || rig.live_processes().pop()).await;
    let (failed, event, ()) = tokio::join!(
        call(&connection, "sleep", r#"{"ms":600000}"#),
        within("the end of the connection is reported", events.next()),
        async {
            server.wait_until("the call is in flight", |counters| counters.calls() == 1).await;
            process.kill();
        }
    );
    let error = failed.unwrap_err();
    assert!(error.dispatched, "{error}");
    assert_eq!(error.problem.reason, Reason::Exited, "{error}");
    assert!(matches!(event, ConnectionEvent::Lost(_)), "{event:?}");
    connection.close().await;
}

/// A server that fails during a call may have done part of the work.
#[tokio::test]
async fn server_error_is_reported_as_dispatched() {
    for status in [500, 502, 504] {
        let script =
            Script::new("failing", ServerEra::Dual).on("tools/call", Rule::always(Action::status(status)));
        let server = TestServer::start(TransportKind::Http, script).await;
        let (connection, _events) = connect(&server).await.unwrap();
        let error = call(&connection, "echo", "{}").await.unwrap_err();
        assert!(error.dispatched, "{status}: {error}");
        connection.close().await;
    }
}

#[tokio::test]
async fn truncated_http_response_is_dispatched_and_fails_that_call_only() {
    for era in [ServerEra::Legacy, ServerEra::Modern] {
        for action in [Action::Cut, Action::Drop, Action::Junk("<html>".into())] {
            let case = format!("{era:?} {action:?}");
            let rig =
                FakeHttpServer::start(Script::new("cutting", era).on("tools/call", Rule::times(1, action)))
                    .await;
            let server = TestServer::Http(rig);
            let (connection, _events) = connect(&server).await.unwrap();
            let error =
                call(&connection, "echo", "{}").await.err().unwrap_or_else(|| panic!("{case}: answered"));
            assert!(error.dispatched, "{case}: {error}");
            assert_eq!(server.counters().await.calls(), 1, "{case}: never sent twice");
            call(&connection, "echo", "{}").await.unwrap_or_else(|error| panic!("{case}: {error}")).unwrap();
            connection.close().await;
        }
    }
}

#[tokio::test]
async fn forgotten_session_ends_the_connection() {
    let server = TestServer::start(TransportKind::Http, Script::new("forgetful", ServerEra::Legacy)).await;
    let (connection, mut events) = connect(&server).await.unwrap();
    events.subscribe().await.unwrap();
    let TestServer::Http(rig) = &server else { unreachable!() };
    rig.send_command(ControlCommand::ForgetSessions { quietly: false });
    let event = within("the end of the connection is reported", async {
        loop {
            if let lost @ ConnectionEvent::Lost(_) = events.next().await {
                return lost;
            }
        }
    })
    .await;
    assert!(matches!(event, ConnectionEvent::Lost(_)), "{event:?}");
    connection.close().await;
}
