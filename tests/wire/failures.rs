//! What is told about a server that fails, and what is left of it.

use std::time::Duration;

use evenkeel::resource::Reason;
use evenkeel::wire::{ConnectionContext, ConnectionEvent, FailureSource, open};

use super::{Over, Upstream, call, connect};
use crate::rig::{Command, Era as RigEra, Http, Rule, Script, Stdio, Then};
use crate::support::{eventually, within};

/// An opening that fails, with the reason and something that the message says.
async fn refused(over: Over, script: Script, reason: Reason, says: &str) {
    let upstream = Upstream::start(over, script).await;
    let error = connect(&upstream).await.err().unwrap_or_else(|| panic!("opened, though {says}"));
    assert_eq!(error.problem.reason, reason, "{error}");
    assert!(error.to_string().contains(says), "{says:?} in {error}");
    if let Upstream::Stdio(rig) = upstream {
        assert_eq!(rig.left(), [0_u32; 0], "no process is left: {error}");
    }
}

#[tokio::test]
async fn a_process_that_ends_at_its_start_is_told_with_its_code_and_last_words() {
    let mut script = Script::default();
    script.stdio.exit_at_start = Some(7);
    script.stdio.stderr = vec!["no such luck".into()];
    refused(Over::Stdio, script.clone(), Reason::Exited, "7").await;
    refused(Over::Stdio, script, Reason::Exited, "no such luck").await;
}

#[tokio::test]
async fn a_server_that_wants_credentials_is_told_apart() {
    let mut script = Script::new("locked", RigEra::Dual);
    script.http.authorization = Some("Bearer s3cret".into());
    refused(Over::Http, script, Reason::AuthRequired, "401").await;
}

#[tokio::test]
async fn a_busy_server_says_when_to_come_back() {
    let busy = Script::new("busy", RigEra::Dual)
        .on("POST", Rule::always(Then::status_with(429, "Retry-After", "7")));
    let rig = Upstream::start(Over::Http, busy).await;
    let error = connect(&rig).await.err().unwrap();
    assert_eq!(error.retry_after, Some(Duration::from_secs(7)), "{error}");
    assert!(!rig.counters().await.complaints.iter().any(|complaint| !complaint.is_empty()));
}

/// Whatever stands in the body of such a refusal, it is about the connection.
#[tokio::test]
async fn a_refusal_is_told_by_its_status_and_its_body() {
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
                Then::Http { status, headers: headers.collect(), body: body.into() }
            };
            let busy = then(&[("Retry-After", "7"), ("Content-Type", kind)]);
            let refusing = Script::default().on("POST", Rule::always(busy));
            let error = connect(&Upstream::start(Over::Http, refusing).await).await.unwrap_err();
            assert_eq!(error.problem.reason, reason, "{status} {kind}: {error}");
            assert_eq!(error.retry_after, Some(Duration::from_secs(7)), "{status} {kind}: {error}");
            assert!(error.to_string().contains("not now"), "{status} {kind}: {error}");
            // The same of a call; the connection stays.
            let refusal = then(&[("Content-Type", kind)]);
            let script = Script::default().on("tools/call", Rule::times(1, refusal));
            let upstream = Upstream::start(Over::Http, script).await;
            let (link, _events) = connect(&upstream).await.unwrap();
            let error = call(&link, "echo", "{}").await.unwrap_err();
            assert_eq!(error.sign, FailureSource::Status(status.try_into().unwrap()), "{kind}: {error}");
            assert!(!error.dispatched, "{status} {kind}: {error}");
            call(&link, "echo", "{}").await.unwrap().unwrap();
            link.close().await;
        }
    }
}

#[tokio::test]
async fn a_get_that_is_not_found_is_a_server_without_notices() {
    let script = Script::new("plain", RigEra::Legacy).on("GET", Rule::always(Then::status(404)));
    let upstream = Upstream::start(Over::Http, script).await;
    let (link, mut events) = connect(&upstream).await.unwrap();
    events.begin().await.unwrap();
    call(&link, "echo", "{}").await.unwrap().unwrap();
    link.close().await;
}

#[tokio::test]
async fn a_call_that_is_not_found_costs_only_itself_where_there_is_no_session() {
    let mut script = Script::new("stateless", RigEra::Legacy)
        .tools(&["sleep"])
        .on("tools/call", Rule::times(1, Then::Answer))
        .on("tools/call", Rule::times(1, Then::status(404)));
    script.http.sessions = false;
    let upstream = Upstream::start(Over::Http, script).await;
    let (link, _events) = connect(&upstream).await.unwrap();
    let (slow, failed) = tokio::join!(call(&link, "sleep", r#"{"ms":2000}"#), async {
        upstream.wait("a call is at work", |seen| seen.calls() == 1).await;
        call(&link, "sleep", r#"{"ms":0}"#).await
    });
    slow.unwrap().unwrap();
    let error = failed.unwrap_err();
    assert!(error.to_string().contains("404"), "{error}");
    call(&link, "sleep", r#"{"ms":0}"#).await.unwrap().unwrap();
    link.close().await;
}

#[tokio::test]
async fn what_a_server_calls_itself_is_cut() {
    for era in [RigEra::Legacy, RigEra::Modern] {
        let upstream = Upstream::start(Over::Stdio, Script::new(&"N".repeat(100_000), era)).await;
        let (link, _events) = connect(&upstream).await.unwrap();
        assert_eq!(link.peer().about.server_info.name, format!("{}…", "N".repeat(255)));
        link.close().await;
    }
}

#[tokio::test]
async fn an_answer_beyond_the_limit_fails_its_call_alone() {
    for over in [Over::Http, Over::Stdio] {
        let upstream = Upstream::start(over, Script::default().tools(&["big", "echo"])).await;
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
async fn a_process_that_closes_a_pipe_is_lost_and_ended() {
    for (then, pipe) in [(Then::CloseStdout, "stdout"), (Then::CloseStdin, "stdin")] {
        let script = Script::default().on("tools/call", Rule::always(then));
        let upstream = Upstream::start(Over::Stdio, script).await;
        let (link, mut events) = connect(&upstream).await.unwrap();
        let Upstream::Stdio(rig) = &upstream else { unreachable!() };
        let process = eventually("the process is counted", async || rig.alive().pop()).await;
        let (failed, ()) = tokio::join!(call(&link, "echo", "{}"), async {
            // What took its place does not answer for it.
            within("the pipe is closed", process.gone()).await;
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
async fn noise_on_stdout_stops_nothing() {
    let mut script = Script::new("noisy", RigEra::Dual);
    script.stdio.stdout = vec!["Welcome to the server!".into(), String::new(), "[1,2".into()];
    script.stdio.stderr_flood = 1 << 20;
    let upstream = Upstream::start(Over::Stdio, script).await;
    let (link, _events) = connect(&upstream).await.unwrap_or_else(|error| panic!("{error}"));
    call(&link, "echo", "{}").await.unwrap().unwrap();
    link.close().await;
}

#[tokio::test]
async fn a_server_silent_in_its_opening_is_gone_once_the_caller_gives_up() {
    for method in ["server/discover", "initialize"] {
        let mut script = Script::new("silent", RigEra::Legacy).on(method, Rule::always(Then::Hang));
        // Nothing of a line that never ends is an answer either.
        script.stdio.endless_line = method == "initialize";
        for over in [Over::Stdio, Over::Http] {
            let upstream = Upstream::start(over, script.clone()).await;
            let host = ConnectionContext::default();
            let endpoint = upstream.endpoint();
            tokio::select! {
                opened = open(&endpoint, None, &host) => panic!("{method} {over:?}: {opened:?}"),
                () = upstream.wait("the opening hangs", |seen| seen.of(method) == 1 && seen.in_flight == 1) => {}
            }
            host.tasks.close();
            within("what the attempt opened is closed", host.tasks.wait()).await;
            match &upstream {
                Upstream::Stdio(rig) => assert_eq!(rig.left(), [0_u32; 0], "{method}"),
                Upstream::Http(rig) => {
                    eventually("nothing is at work", async || (rig.counters().in_flight == 0).then_some(()))
                        .await;
                }
            }
        }
    }
}

#[tokio::test]
async fn a_process_that_ignores_every_hint_is_killed_with_what_it_started() {
    let mut script = Script::new("stubborn", RigEra::Dual);
    script.stdio.ignore_eof = true;
    script.stdio.ignore_sigterm = true;
    script.stdio.grandchild = true;
    let rig = Stdio::new(script);
    let upstream = Upstream::Stdio(rig);
    let (link, _events) = connect(&upstream).await.unwrap();
    let Upstream::Stdio(rig) = &upstream else { unreachable!() };
    let grandchild = eventually("the grandchild is counted", async || rig.grandchildren().pop()).await;
    within("a close is bounded", link.close()).await;
    eventually("the process is gone", async || rig.alive().is_empty().then_some(())).await;
    within("the grandchild is gone", grandchild.gone()).await;
}

#[tokio::test]
async fn a_killed_process_is_lost_at_once_and_fails_its_calls() {
    let upstream = Upstream::start(Over::Stdio, Script::new("mortal", RigEra::Dual).tools(&["sleep"])).await;
    let (link, mut events) = connect(&upstream).await.unwrap();
    events.begin().await.unwrap();
    let Upstream::Stdio(rig) = &upstream else { unreachable!() };
    let process = eventually("the process is counted", async || rig.alive().pop()).await;
    let (failed, event, ()) = tokio::join!(
        call(&link, "sleep", r#"{"ms":600000}"#),
        within("the loss is told", events.next()),
        async {
            upstream.wait("the call is at work", |seen| seen.calls() == 1).await;
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
async fn a_call_answered_with_a_server_error_is_told_as_dispatched() {
    for status in [500, 502, 504] {
        let script =
            Script::new("failing", RigEra::Dual).on("tools/call", Rule::always(Then::status(status)));
        let upstream = Upstream::start(Over::Http, script).await;
        let (link, _events) = connect(&upstream).await.unwrap();
        let error = call(&link, "echo", "{}").await.unwrap_err();
        assert!(error.dispatched, "{status}: {error}");
        link.close().await;
    }
}

#[tokio::test]
async fn a_call_cut_off_over_http_is_told_as_dispatched_and_costs_only_itself() {
    for era in [RigEra::Legacy, RigEra::Modern] {
        for then in [Then::Cut, Then::Drop, Then::Junk("<html>".into())] {
            let case = format!("{era:?} {then:?}");
            let rig = Http::start(Script::new("cutting", era).on("tools/call", Rule::times(1, then))).await;
            let upstream = Upstream::Http(rig);
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
async fn a_forgotten_session_is_a_lost_connection() {
    let upstream = Upstream::start(Over::Http, Script::new("forgetful", RigEra::Legacy)).await;
    let (link, mut events) = connect(&upstream).await.unwrap();
    events.begin().await.unwrap();
    let Upstream::Http(rig) = &upstream else { unreachable!() };
    rig.tell(Command::ForgetSessions { quietly: false });
    let event = within("the loss is told", async {
        loop {
            match events.next().await {
                ConnectionEvent::Changed(_) => {}
                lost @ ConnectionEvent::Lost(_) => return lost,
            }
        }
    })
    .await;
    assert!(matches!(event, ConnectionEvent::Lost(_)), "{event:?}");
    link.close().await;
}
