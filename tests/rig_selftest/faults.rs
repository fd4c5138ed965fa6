//! Scripted faults happen.

use std::process::Stdio as Pipe;

use crate::rig::{Action, ControlCommand, FakeHttpServer, FakeStdioServer, Rule, Script, ServerEra};
use crate::support::{Agent, Era, eventually, within};

#[tokio::test]
async fn scripted_http_faults_happen() {
    let rig = FakeHttpServer::start(Script::new("faulty", ServerEra::Legacy)).await;
    let agent = Agent::connect(Era::Legacy, &rig.url()).await;
    let cases = [
        (Action::status_with(429, "Retry-After", "7"), "HTTP 429: "),
        (Action::status(401), "HTTP 401: "),
        (Action::error(-5, "no"), r#"{"code":-5,"message":"no"}"#),
        (Action::Junk("<html>".into()), "the response ended without a result"),
        (Action::Cut, "error reading a body"),
        (Action::Drop, "connection closed before message completed"),
    ];
    for (action, expected) in cases {
        rig.edit_script(|script| script.on = [("tools/call".into(), vec![Rule::times(1, action)])].into());
        let error = agent.call("echo", "{}").await.unwrap_err();
        assert!(error.contains(expected), "{error}");
        let second = agent.call("echo", "{}").await;
        assert!(second.is_ok(), "a rule for one message must apply only once: {expected}: {second:?}");
    }
    rig.edit_script(|script| {
        script.on = [("tools/call".into(), vec![Rule::always(Action::result(r#"{"x":1.0e+2}"#))])].into();
    });
    assert_eq!(agent.call("echo", "{}").await.unwrap(), r#"{"x":1.0e+2}"#);
    rig.edit_script(|script| script.http.authorization = Some("Bearer s3cret".into()));
    assert_eq!(agent.call("echo", "{}").await.unwrap_err(), "HTTP 401: ");
}

#[tokio::test]
async fn sessions_are_forgotten_and_the_port_is_reused() {
    let mut rig = FakeHttpServer::start(Script::new("forgetful", ServerEra::Legacy)).await;
    let agent = Agent::connect(Era::Legacy, &rig.url()).await;
    let mut stream = agent.notifications().await;
    rig.send_command(ControlCommand::Notify("notifications/prompts/list_changed".into()));
    assert_eq!(stream.next().await, r#"{"jsonrpc":"2.0","method":"notifications/prompts/list_changed"}"#);
    rig.send_command(ControlCommand::ForgetSessions { quietly: false });
    stream.wait_for_end().await;
    let error = agent.call("echo", "{}").await.unwrap_err();
    assert!(error.contains("Session not found"), "{error}");
    rig.stop().await;
    assert!(Agent::try_connect(Era::Legacy, &rig.url()).await.is_err());
    rig.resume().await;
    let agent = Agent::connect(Era::Legacy, &rig.url()).await;
    assert_eq!(agent.end_session().await, 200);
    assert_eq!(agent.end_session().await, 404);
    assert_eq!((rig.counters().sessions_opened, rig.counters().sessions), (2, 0));
}

#[tokio::test]
async fn progress_and_cancellation_work_in_both_eras() {
    let rig = FakeHttpServer::start(
        Script::new("slow", ServerEra::Dual).on("prompts/list", Rule::always(Action::Hang)),
    )
    .await;
    for (expected, era) in Era::ALL.into_iter().enumerate() {
        let agent = Agent::connect(era, &rig.url()).await;
        let params =
            r#"{"name":"sleep","arguments":{"ms":20,"steps":2},"_meta":{"progressToken":"t\u0031"}}"#;
        let mut exchange = agent.start_request("tools/call", params).await.unwrap();
        for step in 1..=2 {
            let notification = exchange.next_message().await.unwrap().unwrap();
            assert!(
                notification.contains(&format!(r#""progressToken":"t\u0031","progress":{step},"total":2"#)),
                "{notification}"
            );
        }
        assert!(exchange.next_message().await.unwrap().unwrap().contains("slept"));
        assert_eq!(exchange.next_message().await.unwrap(), None);

        let cancelled = rig.counters().cancelled;
        assert_eq!(cancelled, expected as u64);
        let pending = async {
            let mut exchange = agent.start_request("prompts/list", "{}").await.unwrap();
            exchange.result().await
        };
        let cancel = async {
            eventually("the request is in flight", async || (rig.counters().in_flight == 1).then_some(()))
                .await;
            if era == Era::Legacy {
                agent.notify("notifications/cancelled", r#"{"requestId":3}"#).await.unwrap();
                eventually("the cancellation is counted", async || {
                    (rig.counters().cancelled == 1).then_some(())
                })
                .await;
            }
        };
        // Dropping a modern request cancels it.
        tokio::select! {
            biased;
            () = cancel => {}
            result = pending => assert!(era == Era::Legacy, "{result:?}"),
        }
        eventually("no request is in flight", async || (rig.counters().in_flight == 0).then_some(())).await;
        assert_eq!(rig.counters().cancelled, cancelled + 1, "{era:?}");
    }
}

#[tokio::test]
async fn scripted_process_faults_happen() {
    let start = |rig: &FakeStdioServer| {
        let (program, script) = rig.command();
        let mut command = tokio::process::Command::new(program);
        command
            .arg(script)
            .stdin(Pipe::piped())
            .stdout(Pipe::piped())
            .stderr(Pipe::piped())
            .kill_on_drop(true);
        command.spawn().unwrap()
    };
    let mut script = Script::default();
    script.stdio.exit_at_start = Some(7);
    script.stdio.stderr = vec!["no such luck".into()];
    let rig = FakeStdioServer::new(script);
    let output = start(&rig).wait_with_output().await.unwrap();
    assert_eq!(output.status.code(), Some(7));
    assert_eq!(output.stderr, b"no such luck\n");

    let mut script = Script::default();
    script.stdio.stdout = vec!["hello, I am no JSON".into()];
    script.stdio.stderr_flood = 200_000;
    let rig = FakeStdioServer::new(script);
    let mut child = start(&rig);
    drop(child.stdin.take());
    let output = child.wait_with_output().await.unwrap();
    assert!(output.status.success());
    assert_eq!(output.stdout, b"hello, I am no JSON\n");

    let mut script = Script::default();
    script.stdio.ignore_sigterm = true;
    script.stdio.ignore_eof = true;
    script.stdio.grandchild = true;
    let rig = FakeStdioServer::new(script);
    let mut child = start(&rig);
    let process = eventually("the process and its child are registered", async || {
        rig.grandchildren().pop()?;
        rig.live_processes().pop()
    })
    .await;
    drop(child.stdin.take());
    let pid = rustix::process::Pid::from_raw(i32::try_from(process.pid()).unwrap()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    // The process still responds after the end of stdin and SIGTERM.
    process.counters().await;
    process.kill();
    within("the end of the process is detected", process.wait_for_exit()).await;
    child.wait().await.unwrap();
    let grandchild = rig.grandchildren().pop().unwrap();
    assert!(grandchild.is_alive());
    drop(rig);
    within("the grandchild ends with its test", grandchild.wait_for_exit()).await;
}

#[tokio::test]
async fn child_process_serves_http() {
    let rig = FakeStdioServer::new(Script::new("process", ServerEra::Dual));
    let (program, script) = rig.command();
    let mut command = tokio::process::Command::new(program);
    command.args(["--http", "127.0.0.1:0"]).arg(script).stdout(Pipe::null()).kill_on_drop(true);
    let _child = command.spawn().unwrap();
    let process = eventually("the process is registered", async || rig.live_processes().pop()).await;
    let url = process.info().url.clone().unwrap();
    for era in Era::ALL {
        let agent = Agent::connect(era, &url).await;
        let report: serde_json::Value = serde_json::from_str(&agent.call_text("report", "{}").await).unwrap();
        assert_eq!(report["pid"], process.pid());
        assert_eq!(report["modern"], era == Era::Modern);
    }
    assert_eq!(process.counters().await.calls(), 2);
}
