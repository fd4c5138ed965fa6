//! What passes over a healthy link.

use std::time::Duration;

use evenkeel::wire::{ConnectionEvent, Era, ListKind, RequestParams, ResponseMessage, UpstreamRequest};

use super::{TestServer, TransportKind, call, connect, request};
use crate::rig::{Counters, ODD_RESULT, ODD_TOOL, ResponseFormat, Rule, Script, ServerEra};
use crate::support::within;

/// Every kind of healthy server, with the era that must be agreed on.
fn healthy_servers() -> Vec<(TransportKind, Script, Era)> {
    let mut servers = Vec::new();
    for (rig, era) in
        [(ServerEra::Legacy, Era::Legacy), (ServerEra::Modern, Era::Modern), (ServerEra::Dual, Era::Modern)]
    {
        let script = Script::new("healthy", rig).tools(&["odd", "echo", "sleep", "reply", "fail"]);
        servers.push((TransportKind::Stdio, script.clone(), era));
        for answers in [ResponseFormat::Mixed, ResponseFormat::Json, ResponseFormat::Stream] {
            let mut script = script.clone();
            script.http.answers = answers;
            script.http.priming = answers == ResponseFormat::Stream;
            servers.push((TransportKind::Http, script, era));
        }
    }
    let mut without_sessions =
        Script::new("healthy", ServerEra::Legacy).tools(&["odd", "echo", "sleep", "reply", "fail"]);
    without_sessions.http.sessions = false;
    without_sessions.http.get_stream = false;
    servers.push((TransportKind::Http, without_sessions, Era::Legacy));
    servers
}

#[tokio::test]
async fn lists_calls_and_errors_pass_verbatim() {
    for (over, script, era) in healthy_servers() {
        let case = format!("{over:?} {:?} {:?}", script.era, script.http);
        let upstream = TestServer::start(over, script).await;
        let (link, _events) = connect(&upstream).await.unwrap_or_else(|error| panic!("{case}: {error}"));
        assert_eq!(link.handshake().era, era, "{case}");
        assert!(link.handshake().capabilities.tools == Some(true), "{case}");
        assert_eq!(link.handshake().description.server_info.name, "healthy", "{case}");

        let list = request(&link, "tools/list", "{}").await.unwrap().unwrap();
        assert!(list.contains(ODD_TOOL), "{case}: {list}");
        assert_eq!(call(&link, "odd", "{}").await.unwrap().unwrap(), ODD_RESULT, "{case}");
        let error = r#"{"code":-7,"message":"no","data": {"x":[1.0e+2]},"x-more":1}"#;
        let failed = call(&link, "fail", &format!(r#"{{"error":{error}}}"#)).await.unwrap();
        assert_eq!(failed.unwrap_err(), error, "{case}");

        let params = r#"{"name":"echo","arguments":{"x": [1.0e+2,"\u00e9\/"],"a":1,"a":2},"x-new":{"k" : null},"_meta":{"example.com/kept": 1E2}}"#;
        let echoed = request(&link, "tools/call", params).await.unwrap().unwrap();
        let echoed: serde_json::Value = serde_json::from_str(&echoed).unwrap();
        let echoed = echoed["content"][0]["text"].as_str().unwrap();
        for part in [
            r#""arguments":{"x": [1.0e+2,"\u00e9\/"],"a":1,"a":2}"#,
            r#""x-new":{"k" : null}"#,
            r#""example.com/kept""#,
        ] {
            assert!(echoed.contains(part), "{case}: {part} in {echoed}");
        }
        link.check_health().await.unwrap_or_else(|error| panic!("{case}: {error}"));

        let seen = upstream.counters().await;
        assert_eq!(seen.complaints, Vec::<String>::new(), "{case}");
        assert_eq!(seen.cancelled + seen.abandoned, 0, "{case}: {seen:?}");
        assert_eq!(seen.initializes(), u64::from(era == Era::Legacy), "{case}");
        link.close().await;
        match &upstream {
            TestServer::Http(rig) => assert_eq!(rig.counters().sessions, 0, "{case}: the session is ended"),
            TestServer::Stdio(rig) => {
                assert_eq!(rig.existing_pids(), [0_u32; 0], "{case}: the process is gone")
            }
        }
    }
}

/// The probe waits for 10 s, and many servers are fetched before they start.
#[tokio::test]
async fn slow_start_does_not_downgrade_a_modern_server() {
    let opened = async |over| {
        let late = Rule { times: Some(1), ..Rule::delay(11_000) };
        let upstream =
            TestServer::start(over, Script::new("late", ServerEra::Modern).on("server/discover", late));
        let upstream = upstream.await;
        let (link, _events) = connect(&upstream).await.unwrap_or_else(|error| panic!("{over:?}: {error}"));
        assert_eq!(link.handshake().era, Era::Modern, "{over:?}");
        call(&link, "echo", "{}").await.unwrap().unwrap();
        assert_eq!(upstream.counters().await.initializes(), 1, "{over:?}: it was taken for a legacy one");
        link.close().await;
    };
    tokio::join!(opened(TransportKind::Stdio), opened(TransportKind::Http));
}

#[tokio::test]
async fn idle_connections_that_would_expire_are_closed() {
    let upstream = TestServer::start(TransportKind::Http, Script::new("idle", ServerEra::Legacy)).await;
    let (link, _events) = connect(&upstream).await.unwrap();
    link.check_health().await.unwrap();
    let before = upstream.counters().await.connections;
    link.close_idle_connections(Duration::from_secs(5));
    link.check_health().await.unwrap();
    assert_eq!(upstream.counters().await.connections, before, "the one that is there is used again");
    link.close_idle_connections(Duration::from_mins(1));
    link.check_health().await.unwrap();
    assert_eq!(upstream.counters().await.connections, before + 1, "it was closed");
    link.close().await;
}

#[tokio::test]
async fn tools_list_change_is_reported() {
    for (over, script, era) in healthy_servers().into_iter().filter(|(_, script, _)| script.http.get_stream) {
        if (over, era) != (TransportKind::Stdio, Era::Modern) {
            assert_list_change_is_reported(over, script).await;
        }
    }
}

#[tokio::test]
async fn tools_list_change_of_a_modern_stdio_server_is_reported() {
    assert_list_change_is_reported(TransportKind::Stdio, Script::new("modern", ServerEra::Modern)).await;
}

async fn assert_list_change_is_reported(over: TransportKind, script: Script) {
    let case = format!("{over:?} {:?} {:?}", script.era, script.http);
    let upstream = TestServer::start(over, script.clone()).await;
    let (link, mut events) = connect(&upstream).await.unwrap();
    events.subscribe().await.unwrap_or_else(|error| panic!("{case}: {error}"));
    // An answer shows that the server has taken all that was said before, `initialized` among it.
    request(&link, "tools/list", "{}").await.unwrap().unwrap();
    upstream.set_script(script.clone().tools(&["late"])).await;
    let event = within(&format!("{case}: the change is told"), events.next()).await;
    assert!(matches!(event, ConnectionEvent::ListChanged(ListKind::Tools)), "{case}: {event:?}");
    let list = request(&link, "tools/list", "{}").await.unwrap().unwrap();
    assert!(list.contains(r#""name":"late""#), "{case}: {list}");
    assert_eq!(upstream.counters().await.complaints, Vec::<String>::new(), "{case}");
    link.close().await;
}

#[tokio::test]
async fn progress_carries_the_callers_token() {
    for (over, script, _) in healthy_servers() {
        let case = format!("{over:?} {:?} {:?}", script.era, script.http);
        let upstream = TestServer::start(over, script).await;
        let (link, _events) = connect(&upstream).await.unwrap();
        let params =
            r#"{"name":"sleep","arguments":{"ms":20,"steps":2},"_meta":{"progressToken":"t\u0031"}}"#;
        let sleep = RequestParams::parse(params).unwrap();
        let request =
            UpstreamRequest { params: &sleep, name: Some("sleep"), ..UpstreamRequest::new("tools/call") };
        let mut exchange = link.call(request).await.unwrap();
        for step in 1..=2 {
            match within("progress", exchange.next()).await.unwrap() {
                ResponseMessage::Progress(message) => {
                    let message = String::from_utf8(message.to_vec()).unwrap();
                    assert!(message.contains(r#""progressToken":"t\u0031""#), "{case}: {message}");
                    assert!(message.contains(&format!(r#""progress":{step},"#)), "{case}: {message}");
                    assert!(message.contains(r#""x-later":[1.0e+2]"#), "{case}: {message}");
                }
                other => panic!("{case}: {other:?}"),
            }
        }
        assert!(
            matches!(within("the answer", exchange.next()).await, Ok(ResponseMessage::Response(_))),
            "{case}"
        );
        link.close().await;
    }
}

#[tokio::test]
async fn dropped_call_is_cancelled() {
    for (over, script, era) in healthy_servers() {
        // A legacy server that has not begun its answer is another test.
        if (over, era, script.http.answers) != (TransportKind::Http, Era::Legacy, ResponseFormat::Json) {
            assert_dropped_call_is_cancelled(over, script, era).await;
        }
    }
}

#[tokio::test]
async fn call_dropped_before_the_response_is_cancelled() {
    let mut script = Script::new("late", ServerEra::Legacy).tools(&["sleep"]);
    script.http.answers = ResponseFormat::Json;
    assert_dropped_call_is_cancelled(TransportKind::Http, script, Era::Legacy).await;
}

async fn assert_dropped_call_is_cancelled(over: TransportKind, script: Script, era: Era) {
    let case = format!("{over:?} {:?} {:?}", script.era, script.http);
    let upstream = TestServer::start(over, script).await;
    let (link, _events) = connect(&upstream).await.unwrap();
    let long = RequestParams::parse(r#"{"name":"sleep","arguments":{"ms":600000}}"#).unwrap();
    let request =
        UpstreamRequest { params: &long, name: Some("sleep"), ..UpstreamRequest::new("tools/call") };
    let call = async { link.call(request).await.unwrap().response().await };
    tokio::select! {
        answer = call => panic!("{case}: {answer:?}"),
        () = upstream.wait_until("the call is at work", |seen| seen.in_flight == 1) => {}
    }
    upstream.wait_until("the call is cancelled", |seen| seen.in_flight == 0).await;
    let seen = upstream.counters().await;
    assert_eq!(seen.complaints, Vec::<String>::new(), "{case}");
    if era == Era::Modern || over == TransportKind::Stdio {
        assert_eq!((seen.cancelled, seen.abandoned), (1, 0), "{case}");
    } else {
        // The closed connection may be noticed before the notification arrives.
        assert_eq!(seen.cancelled + seen.abandoned, 1, "{case}");
        let told = |seen: &Counters| seen.count("notifications/cancelled") == 1;
        upstream.wait_until(&format!("{case}: the notification is sent"), told).await;
    }
    link.close().await;
}
