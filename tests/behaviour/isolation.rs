//! A faulty server affects no other: the problem is reported on its own status, and other servers are neither slowed
//! nor stopped.

use std::time::{Duration, Instant};

use crate::control_servers::ControlServers;
use crate::fixture::{EvenkeelFixture, error_text};
use crate::rig::{Action, ControlCommand, FakeHttpServer, FakeStdioServer, Rule, Script, ServerEra};
use crate::support::http::send;
use crate::support::{Era, eventually, within};

/// Fast retries, to keep tests short.
const FAST_RETRY: &str = "retry: { initial: 100ms, max: 200ms }";

fn silent_script() -> Script {
    Script::new("silent", ServerEra::Legacy)
        .on("server/discover", Rule::always(Action::Hang))
        .on("initialize", Rule::always(Action::Hang))
}

#[tokio::test]
async fn hanging_servers_do_not_block_nineteen_healthy_ones() {
    let (long_timeout, short_timeout, over_http) = (
        FakeStdioServer::new(silent_script()),
        FakeStdioServer::new(silent_script()),
        FakeHttpServer::start(silent_script()).await,
    );
    let fixture = EvenkeelFixture::start(&[
        ("hung", &format!("{}\ntimeouts: {{ connect: 10m }}", long_timeout.spec(""))),
        ("hung-http", &format!("{}\ntimeouts: {{ connect: 10m }}", over_http.spec())),
        (
            "short-timeout",
            &format!(
                "{}\ntimeouts: {{ start: 1s }}\nretry: {{ initial: 1h, max: 1h }}",
                short_timeout.spec("")
            ),
        ),
    ])
    .await;
    let mut healthy = Vec::new();
    for number in 0..19 {
        let era = if number % 2 == 0 { ServerEra::Legacy } else { ServerEra::Modern };
        healthy.push(FakeHttpServer::start(Script::new("healthy", era).tools(&["echo"])).await);
    }
    for (number, rig) in healthy.iter().enumerate() {
        fixture.declared.write_server(&format!("healthy{number}"), &rig.spec());
    }
    for era in Era::ALL {
        let agent = fixture.agent(era).await;
        eventually("all nineteen are listed", async || (agent.tool_names().await.len() == 19).then_some(()))
            .await;
        for number in 0..19 {
            agent.call_text(&format!("healthy{number}_echo"), "{}").await;
        }
    }
    for name in ["hung", "hung-http"] {
        let ready = fixture.evenkeel.condition(name, "Ready").await.unwrap();
        assert_eq!((&*ready.status, &*ready.reason), ("False", "Connecting"), "{name}");
    }
    let ready = fixture.evenkeel.wait_for("short-timeout", "Ready", "False", "Timeout").await;
    assert!(
        ready.message.contains("within 1 s") && ready.message.contains("spec.timeouts.start"),
        "{ready:?}"
    );
    assert!(ready.message.contains("retrying at") && ready.message.contains("attempt 2"), "{ready:?}");
    for process in short_timeout.processes() {
        within("the unresponsive process is killed", process.wait_for_exit()).await;
    }
    eventually("the process of the first attempt is recorded", async || {
        (long_timeout.processes().len() == 1).then_some(())
    })
    .await;
    assert!(long_timeout.live_processes().len() == 1, "the attempt is still in progress");
}

#[tokio::test]
async fn crash_at_start_reports_exit_code_and_stderr_then_crash_loop() {
    let fixture = EvenkeelFixture::start(&[]).await;
    let controls = ControlServers::attach(&fixture).await;
    let mut script = Script::default();
    script.stdio.exit_at_start = Some(7);
    script.stdio.stderr = vec!["reading the configuration".into(), "fatal: token is missing".into()];
    let rig = FakeStdioServer::new(script);
    fixture.declared.write_server("crash", &format!("{}\nretry: {{ initial: 1s, max: 1s }}", rig.spec("")));
    let message = fixture.evenkeel.wait_for_event("crash", "Exited").await;
    assert!(message.contains('7') && message.contains("fatal: token is missing"), "{message}");
    let ready = fixture.evenkeel.wait_for("crash", "Ready", "False", "CrashLoop").await;
    assert!(
        ready.message.contains("3 times in a row") && ready.message.contains("token is missing"),
        "{ready:?}"
    );
    assert!(
        fixture.evenkeel.condition("crash", "Stalled").await.is_none(),
        "a crash loop may recover without user action"
    );

    rig.edit_script(|script| script.stdio.exit_at_start = None);
    fixture.evenkeel.wait_until_attached("crash").await;
    controls.assert_untouched(&fixture).await;
}

#[tokio::test]
async fn missing_command_is_reported_and_found_once_installed() {
    let rig = FakeStdioServer::new(Script::new("late", ServerEra::Dual));
    let (program, script) = rig.command();
    let fixture = EvenkeelFixture::start(&[]).await;
    let path = fixture.declared.path().join(".bin");
    std::fs::create_dir(&path).unwrap();
    let path = path.join("late-server");
    let spec = format!(
        "stdio: {{ command: \"{}\", args: [\"{}\"] }}\n{FAST_RETRY}",
        path.display(),
        script.display()
    );
    fixture.declared.write_server("late", &spec);
    let ready = fixture.evenkeel.wait_for("late", "Ready", "False", "CommandNotFound").await;
    assert!(ready.message.contains("late-server"), "{ready:?}");
    fixture.evenkeel.wait_for("late", "Stalled", "True", "CommandNotFound").await;
    std::os::unix::fs::symlink(program, path).unwrap();
    fixture.evenkeel.wait_until_attached("late").await;
    assert!(fixture.evenkeel.condition("late", "Stalled").await.is_none());
}

#[tokio::test]
async fn rejected_credentials_are_retried_slowly() {
    let start = async |wanted: &str| {
        let mut script = Script::new("locked", ServerEra::Legacy);
        script.http.authorization = Some(wanted.into());
        FakeHttpServer::start(script).await
    };
    let (open, closed) = (start("Bearer right").await, start("Bearer right").await);
    let header = |value| format!("headers: [{{ name: Authorization, value: Bearer {value} }}]");
    let with = |rig: &FakeHttpServer, value| {
        format!("http: {{ url: \"{}\", {} }}\n{FAST_RETRY}", rig.url(), header(value))
    };
    let fixture = EvenkeelFixture::start(&[
        ("open", &format!("{}\n{FAST_RETRY}", open.spec())),
        ("closed", &with(&closed, "hunter2")),
    ])
    .await;
    let ready = fixture.evenkeel.wait_for("open", "Ready", "False", "AuthRequired").await;
    assert!(ready.message.contains("401"), "{ready:?}");
    let ready = fixture.evenkeel.wait_for("closed", "Ready", "False", "CredentialsRejected").await;
    assert!(ready.message.contains("401") && ready.message.contains("`evenkeel mcp reload`"), "{ready:?}");
    fixture.evenkeel.wait_for("open", "Stalled", "True", "AuthRequired").await;
    fixture.evenkeel.wait_for("closed", "Stalled", "True", "CredentialsRejected").await;

    // Another server with the same retry delays fails a few times: by then these would have been retried.
    let attempts = (open.counters().connections, closed.counters().connections);
    let flaky =
        FakeHttpServer::start(Script::default().on("POST", Rule::times(5, Action::status(503)))).await;
    fixture.attach("flaky", &format!("{}\n{FAST_RETRY}", flaky.spec())).await;
    assert_eq!((open.counters().connections, closed.counters().connections), attempts);
    for name in ["open", "closed"] {
        let server = fixture.server(name).await;
        assert!(server["status"]["nextRetryTime"].is_string(), "{server}");
        assert!(!server["status"].to_string().contains("hunter2"), "{server}");
    }
    assert!(!fixture.evenkeel.stderr().contains("hunter2"));

    fixture.declared.write_server("closed", &with(&closed, "right"));
    fixture.evenkeel.wait_until_attached("closed").await;
    assert!(fixture.evenkeel.condition("closed", "Stalled").await.is_none());
}

#[tokio::test]
async fn revoked_credentials_are_reported_on_the_next_call() {
    let rig = FakeHttpServer::start(Script::default().tools(&["echo"])).await;
    let fixture =
        EvenkeelFixture::start(&[("s", &format!("{}\nhealth: {{ interval: 1h }}", rig.spec()))]).await;
    fixture.evenkeel.wait_until_attached("s").await;
    let agent = fixture.agent(Era::Legacy).await;
    agent.call_text("s_echo", "{}").await;
    rig.edit_script(|script| *script = script.clone().on("tools/call", Rule::times(1, Action::status(403))));
    error_text(&agent.call("s_echo", "{}").await.unwrap());
    agent.call_text("s_echo", "{}").await;
    assert_eq!(
        fixture.server("s").await["status"]["restarts"],
        0,
        "a forbidden call alone does not end the connection"
    );

    rig.edit_script(|script| *script = script.clone().on("POST", Rule::always(Action::status(401))));
    error_text(&agent.call("s_echo", "{}").await.unwrap());
    fixture.evenkeel.wait_for("s", "Stalled", "True", "AuthRequired").await;
    let attached = fixture.evenkeel.condition("s", "Attached").await.unwrap();
    assert_eq!(attached.reason, "Detached", "nothing is reconnecting: {attached:?}");
    assert!(fixture.evenkeel.condition("s", "Reconciling").await.is_none());

    // The server accepts requests again, and a user does not want to wait.
    rig.edit_script(|script| *script = Script::default().tools(&["echo"]));
    let mut reload = fixture.evenkeel.command(&["mcp", "reload", "s"]);
    reload.env("EVENKEEL_DIR", fixture.declared.path());
    // The fake server runs on this thread.
    let reloaded = tokio::task::spawn_blocking(move || reload.output()).await.unwrap().unwrap();
    assert!(reloaded.status.success(), "{}", String::from_utf8_lossy(&reloaded.stderr));
    fixture.evenkeel.wait_until_attached("s").await;
}

#[tokio::test]
async fn refusal_by_a_firewall_quotes_its_page_and_asks_for_no_credentials() {
    let page = "<!DOCTYPE html>\n<html><head>\n<title>Attention Required! | Cloudflare</title></head></html>";
    let headers = [("Content-Type".to_owned(), "text/html".to_owned())].into();
    let refusal = Action::Http { status: 403, headers, body: page.into() };
    let rig = FakeHttpServer::start(Script::default().on("POST", Rule::always(refusal))).await;
    let fixture = EvenkeelFixture::start(&[("s", &rig.spec())]).await;
    let ready = fixture.evenkeel.wait_for("s", "Ready", "False", "AuthRequired").await;
    for expected in ["403", "Attention Required! | Cloudflare", "next check at", "`evenkeel mcp reload`"] {
        assert!(ready.message.contains(expected), "{ready:?}");
    }
    assert!(!ready.message.contains("set spec.http.headers"), "{ready:?}");
    fixture.evenkeel.wait_for("s", "Stalled", "True", "AuthRequired").await;

    // A changed declaration is tried at once.
    rig.edit_script(|script| *script = Script::default());
    fixture.declared.write_server("s", &format!("{}\ngracePeriod: 50s", rig.spec()));
    fixture.evenkeel.wait_until_attached("s").await;
}

#[tokio::test]
async fn retry_after_delays_the_next_attempt() {
    let started_at = Instant::now();
    let busy = Action::status_with(429, "Retry-After", "3");
    let rig = FakeHttpServer::start(Script::default().on("POST", Rule::times(1, busy))).await;
    let fixture = EvenkeelFixture::start(&[("busy", &format!("{}\n{FAST_RETRY}", rig.spec()))]).await;
    let message = fixture.evenkeel.wait_for_event("busy", "ConnectFailed").await;
    assert!(message.contains("429"), "{message}");
    fixture.evenkeel.wait_until_attached("busy").await;
    assert!(started_at.elapsed() >= Duration::from_secs(3), "{:?}", started_at.elapsed());
}

/// Returns a server that responds with Retry-After to its first call, and one that does so at its handshake.
async fn servers_with_retry_after(seconds: &str) -> (FakeHttpServer, FakeHttpServer) {
    let busy = || Rule::times(1, Action::status_with(429, "Retry-After", seconds));
    let call = Script::new("call", ServerEra::Legacy).tools(&["echo"]).on("tools/call", busy());
    let start = Script::new("start", ServerEra::Legacy).on("server/discover", busy());
    (FakeHttpServer::start(call).await, FakeHttpServer::start(start).await)
}

#[tokio::test]
async fn no_request_is_sent_before_retry_after_expires() {
    let (call, start) = servers_with_retry_after("3600").await;
    let request_count = |rig: &FakeHttpServer| rig.counters().methods.values().sum::<u64>();
    let fixture = EvenkeelFixture::start(&[]).await;
    fixture.attach("call", &format!("{}\nhealth: {{ interval: 0s }}", call.spec())).await;
    eventually("the notification stream is open", async || (call.counters().streams == 1).then_some(()))
        .await;
    let agent = fixture.agent(Era::Legacy).await;
    fixture.declared.write_server("start", &format!("{}\n{FAST_RETRY}", start.spec()));
    fixture.evenkeel.wait_for("start", "Ready", "False", "ConnectFailed").await;
    error_text(&agent.call("call_echo", "{}").await.unwrap());
    let before = (request_count(&call), request_count(&start));

    // Neither the next call nor a changed list nor another prefix causes a request.
    call.send_command(ControlCommand::Notify("notifications/tools/list_changed".into()));
    fixture
        .declared
        .write_server("start", &format!("{}\n{FAST_RETRY}\nexpose: {{ prefix: other }}", start.spec()));
    let text = error_text(&agent.call("call_echo", "{}").await.unwrap());
    for part in ["not available", "no request before", "Nothing was sent", "may work again"] {
        assert!(text.contains(part), "{part}: {text}");
    }
    eventually("the changed prefix is observed", async || {
        (fixture.server("start").await["status"]["observedGeneration"] == 2).then_some(())
    })
    .await;
    assert_eq!((request_count(&call), request_count(&start)), before);
    assert!(fixture.server("start").await["status"]["nextRetryTime"].is_string());
}

#[tokio::test]
async fn requests_resume_when_retry_after_expires() {
    let (call, start) = servers_with_retry_after("3").await;
    let fixture = EvenkeelFixture::start(&[]).await;
    fixture.attach("call", &format!("{}\nhealth: {{ interval: 0s }}", call.spec())).await;
    eventually("the notification stream is open", async || (call.counters().streams == 1).then_some(()))
        .await;
    let agent = fixture.agent(Era::Legacy).await;
    let started_at = Instant::now();
    fixture.declared.write_server("start", &format!("{}\n{FAST_RETRY}", start.spec()));
    error_text(&agent.call("call_echo", "{}").await.unwrap());
    call.send_command(ControlCommand::Notify("notifications/tools/list_changed".into()));
    fixture.evenkeel.wait_for_event("start", "ConnectFailed").await;
    fixture
        .declared
        .write_server("start", &format!("{}\n{FAST_RETRY}\nexpose: {{ prefix: other }}", start.spec()));
    fixture.wait_for_generation("start", 2).await;
    assert!(started_at.elapsed() >= Duration::from_secs(3), "{:?}", started_at.elapsed());
    eventually("the changed list is read", async || (call.counters().tool_lists() >= 2).then_some(())).await;
    assert!(started_at.elapsed() >= Duration::from_secs(3), "{:?}", started_at.elapsed());
    agent.call_text("call_echo", "{}").await;
    agent.call_text("other_echo", "{}").await;
}

#[tokio::test]
async fn noise_on_stdout_and_stderr_does_not_disturb_calls() {
    let mut junk = Script::new("junk", ServerEra::Legacy).tools(&["echo"]);
    junk.stdio.stdout = vec![
        "Welcome! Listening on stdio.".into(),
        r#"{"jsonrpc":"2.0","id":999,"result":{}}"#.into(),
        r#"{"jsonrpc":"2.0","id":"#.into(),
        "[]".into(),
        "x".repeat(100_000),
    ];
    let mut flood = Script::new("flood", ServerEra::Modern).tools(&["echo"]);
    flood.stdio.stderr_flood = 20_000_000;
    let mut endless = Script::new("endless", ServerEra::Modern);
    endless.stdio.endless_line = true;
    let (junk, flood, endless) =
        (FakeStdioServer::new(junk), FakeStdioServer::new(flood), FakeStdioServer::new(endless));
    let fixture = EvenkeelFixture::start(&[
        ("junk", &junk.spec("")),
        ("flood", &format!("{}\nretry: {{ initial: 1h, max: 1h }}", flood.spec(""))),
        (
            "endless",
            &format!("{}\ntimeouts: {{ start: 2s }}\nretry: {{ initial: 1h, max: 1h }}", endless.spec("")),
        ),
    ])
    .await;
    fixture.evenkeel.wait_until_attached("junk").await;
    fixture.evenkeel.wait_until_attached("flood").await;
    for era in Era::ALL {
        let agent = fixture.agent(era).await;
        agent.call_text("junk_echo", "{}").await;
        agent.call_text("flood_echo", "{}").await;
    }
    let process = junk.live_processes().pop().unwrap();
    process.send_command(ControlCommand::Stdout("more of it in the middle".into())).await;
    fixture.agent(Era::Modern).await.call_text("junk_echo", "{}").await;

    let ready = fixture.evenkeel.wait_for("endless", "Ready", "False", "Timeout").await;
    assert!(ready.message.contains("2 s"), "{ready:?}");
    for process in endless.processes() {
        within("the process with the endless line is killed", process.wait_for_exit()).await;
    }
    let process = flood.live_processes().pop().unwrap();
    process.send_command(ControlCommand::Stderr("fatal: shutting down".into())).await;
    process.send_command(ControlCommand::Exit(3)).await;
    let ready = fixture.evenkeel.wait_for("flood", "Ready", "False", "Exited").await;
    assert!(ready.message.contains('3') && ready.message.len() <= 4096, "{ready:?}");
    // If the system reports peak memory: the flood was not buffered.
    if let Ok(status) = std::fs::read_to_string(format!("/proc/{}/status", fixture.evenkeel.pid())) {
        let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
        let peak: u64 = peak.trim().trim_end_matches("kB").trim().parse().unwrap();
        assert!(peak < 150_000, "{peak} kB at the peak");
    }
}

#[tokio::test]
async fn failed_tools_list_publishes_nothing_and_closes_the_connection() {
    let broken = || Rule::always(Action::error(-32603, "the database is gone"));
    let over_stdio = FakeStdioServer::new(Script::default().on("tools/list", broken()));
    let mut pages = Script::new("pages", ServerEra::Legacy)
        .on("tools/list", Rule::times(1, Action::Answer))
        .on("tools/list", broken());
    pages.page_size = 1;
    let pages = FakeHttpServer::start(pages).await;
    let never = "retry: { initial: 1h, max: 1h }";
    let fixture = EvenkeelFixture::start(&[
        ("whole", &format!("{}\n{never}", over_stdio.spec(""))),
        ("pages", &format!("{}\n{never}", pages.spec())),
    ])
    .await;
    for name in ["whole", "pages"] {
        let ready = fixture.evenkeel.wait_for(name, "Ready", "False", "ListFailed").await;
        assert!(ready.message.contains("the database is gone"), "{ready:?}");
        assert!(fixture.server(name).await["status"]["tools"].is_null());
    }
    for era in Era::ALL {
        assert_eq!(fixture.agent(era).await.tool_names().await, Vec::<String>::new());
    }
    for process in over_stdio.processes() {
        within("the process exits", process.wait_for_exit()).await;
    }
    eventually("the session is closed", async || (pages.counters().sessions == 0).then_some(())).await;

    // A changed declaration is tried at once, and all tools appear in one step.
    let [mut watcher, _] = fixture.watchers(&[]).await;
    pages.edit_script(|script| script.on.clear());
    fixture.declared.write_server("pages", &format!("{}\nretry: {{ initial: 2h, max: 2h }}", pages.spec()));
    watcher.wait_for_tools(&["pages_echo", "pages_report"]).await;
}

#[tokio::test]
async fn unresponsive_server_is_reconnected_after_failed_health_checks() {
    let script = |era| {
        let check = if era == ServerEra::Modern { "server/discover" } else { "ping" };
        // The handshake of a modern server uses the same method.
        let opening = u32::from(era == ServerEra::Modern);
        // A server that answers a list instead of a ping is healthy.
        Script::new("deaf", era)
            .tools(&["echo"])
            .on(check, Rule::times(opening, Action::Answer))
            .on(check, Rule::times(2, Action::Hang))
            .on("tools/list", Rule::times(1, Action::Answer))
            .on("tools/list", Rule::times(2, Action::Hang))
    };
    let (process, http) = (
        FakeStdioServer::new(script(ServerEra::Legacy)),
        FakeHttpServer::start(script(ServerEra::Modern)).await,
    );
    let fixture = EvenkeelFixture::start(&[]).await;
    let controls = ControlServers::attach(&fixture).await;
    let health = "health: { interval: 5s, failures: 2 }\nretry: { initial: 5s, max: 5s }";
    fixture.attach("process", &format!("{}\n{health}", process.spec(""))).await;
    fixture.attach("http", &format!("{}\n{health}", http.spec())).await;
    for name in ["process", "http"] {
        let message = fixture.evenkeel.wait_for_event(name, "Unhealthy").await;
        assert!(message.contains("2 health checks in a row failed"), "{message}");
        assert!(message.contains("no response within 5 s"), "{message}");
        assert!(message.contains("spec.health"), "{message}");
        fixture.evenkeel.wait_until_attached(name).await;
    }
    for process in &process.processes()[..1] {
        within("the unresponsive process is killed", process.wait_for_exit()).await;
    }
    controls.assert_untouched(&fixture).await;
}

#[tokio::test]
async fn server_busy_with_a_call_is_not_unhealthy() {
    let script = |name| {
        let silent = Rule::always(Action::Hang);
        Script::new(name, ServerEra::Legacy).tools(&["echo", "sleep"]).on("ping", silent)
    };
    let (busy, stuck) = (FakeStdioServer::new(script("busy")), FakeStdioServer::new(script("stuck")));
    stuck.edit_script(|script| {
        let list = vec![Rule::times(1, Action::Answer), Rule::always(Action::Hang)];
        script
            .on
            .extend([("tools/call".into(), vec![Rule::always(Action::Hang)]), ("tools/list".into(), list)]);
    });
    let fixture = EvenkeelFixture::start(&[]).await;
    let health = "health: { interval: 5s, failures: 1 }";
    fixture.attach("busy", &format!("{}\n{health}", busy.spec(""))).await;
    fixture.attach("stuck", &format!("{}\n{health}\ntimeouts: {{ call: 1s }}", stuck.spec(""))).await;
    let (silent, with_progress, lost) = (
        fixture.agent(Era::Modern).await,
        fixture.agent(Era::Legacy).await,
        fixture.agent(Era::Legacy).await,
    );
    // Longer than the failure of a health check takes; one of the two calls sends no progress meanwhile.
    let (silent, with_progress, lost) = tokio::join!(
        silent.call_text("busy_sleep", r#"{"ms":18000}"#),
        with_progress.call_text("busy_sleep", r#"{"ms":18000,"steps":30}"#),
        lost.call("stuck_echo", "{}"),
    );
    assert_eq!((&*silent, &*with_progress), ("slept", "slept"));
    assert!(error_text(&lost.unwrap()).contains("did not respond within 1 s"));
    assert_eq!(busy.processes().len(), 1);
    // Once the call has timed out, a silent server counts as unhealthy.
    let ready = eventually("the stuck server is reconnected", async || {
        fixture.server("stuck").await["status"]["restarts"].as_u64().filter(|restarts| *restarts > 0)
    });
    ready.await;
    within("the process of the stuck server is killed", stuck.processes()[0].wait_for_exit()).await;
}

#[tokio::test]
async fn oversized_list_fails_and_reports_its_size() {
    let mut script = Script::new("long", ServerEra::Legacy);
    let tool = |number| {
        let text = "x".repeat(1 << 20);
        let tool =
            format!(r#"{{"name":"t{number}","description":"{text}","inputSchema":{{"type":"object"}}}}"#);
        serde_json::value::RawValue::from_string(tool).unwrap()
    };
    script.tools = (0..20).map(tool).collect();
    script.page_size = 1;
    let rig = FakeHttpServer::start(script).await;
    let fixture =
        EvenkeelFixture::start(&[("long", &format!("{}\nretry: {{ initial: 1h, max: 1h }}", rig.spec()))])
            .await;
    let ready = fixture.evenkeel.wait_for("long", "Ready", "False", "ListFailed").await;
    assert!(ready.message.contains("16 MiB: 16 items"), "{ready:?}");
    assert_eq!(rig.counters().tool_lists(), 16);
}

#[tokio::test]
async fn readyz_waits_once_for_required_servers() {
    let mut late = FakeHttpServer::start(Script::default()).await;
    late.stop().await;
    let fixture = EvenkeelFixture::start(&[
        ("late", &format!("{}\nrequired: true\n{FAST_RETRY}", late.spec())),
        ("missing", "stdio: { command: no-such-server }\nrequired: true"),
        ("whatever", "stdio: { command: no-such-server }"),
    ])
    .await;
    let controls = ControlServers::attach(&fixture).await;
    let readyz = fixture.evenkeel.admin("/readyz");
    let get_readyz = async || {
        let response = send(hyper::Method::GET, &readyz, &[], "").await.unwrap();
        (response.status, response.text().await.unwrap())
    };
    for name in ["late", "missing"] {
        eventually("the failure is reported", async || {
            let (status, text) = get_readyz().await;
            (status == 503 && text.contains(&format!("McpServer/default/{name}: "))).then_some(())
        })
        .await;
    }
    let (_, text) = get_readyz().await;
    assert!(text.contains("ConnectFailed") && text.contains("CommandNotFound"), "{text}");
    assert!(!text.contains("whatever") && !text.contains("stdio-legacy"), "{text}");

    fixture.declared.remove("missing.yaml");
    late.resume().await;
    eventually("readyz reports ready", async || (get_readyz().await.0 == 200).then_some(())).await;
    // Readiness is permanent: a server that fails later does not make the instance unready.
    late.stop().await;
    fixture.evenkeel.wait_for("late", "Ready", "False", "ConnectFailed").await;
    assert_eq!(get_readyz().await.0, 200);
    controls.assert_untouched(&fixture).await;
}
