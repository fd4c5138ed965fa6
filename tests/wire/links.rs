//! What passes over a healthy link.

use std::time::Duration;

use evenkeel::wire::{ConnectionEvent, Era, ListKind, RequestParams, ResponseMessage, UpstreamRequest};

use super::{Over, Upstream, call, connect, request};
use crate::rig::{Answers, Counters, Era as RigEra, ODD_RESULT, ODD_TOOL, Rule, Script};
use crate::support::within;

/// Every kind of healthy server, with the era that must be agreed on.
fn servers() -> Vec<(Over, Script, Era)> {
    let mut servers = Vec::new();
    for (rig, era) in
        [(RigEra::Legacy, Era::Legacy), (RigEra::Modern, Era::Modern), (RigEra::Dual, Era::Modern)]
    {
        let script = Script::new("healthy", rig).tools(&["odd", "echo", "sleep", "reply", "fail"]);
        servers.push((Over::Stdio, script.clone(), era));
        for answers in [Answers::Mixed, Answers::Json, Answers::Stream] {
            let mut script = script.clone();
            script.http.answers = answers;
            script.http.priming = answers == Answers::Stream;
            servers.push((Over::Http, script, era));
        }
    }
    let mut without_sessions =
        Script::new("healthy", RigEra::Legacy).tools(&["odd", "echo", "sleep", "reply", "fail"]);
    without_sessions.http.sessions = false;
    without_sessions.http.get_stream = false;
    servers.push((Over::Http, without_sessions, Era::Legacy));
    servers
}

#[tokio::test]
async fn pass_lists_calls_and_errors_byte_for_byte_and_keep_the_rules() {
    for (over, script, era) in servers() {
        let case = format!("{over:?} {:?} {:?}", script.era, script.http);
        let upstream = Upstream::start(over, script).await;
        let (link, _events) = connect(&upstream).await.unwrap_or_else(|error| panic!("{case}: {error}"));
        assert_eq!(link.peer().era, era, "{case}");
        assert!(link.peer().capabilities.tools == Some(true), "{case}");
        assert_eq!(link.peer().about.server_info.name, "healthy", "{case}");

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
        link.check().await.unwrap_or_else(|error| panic!("{case}: {error}"));

        let seen = upstream.counters().await;
        assert_eq!(seen.complaints, Vec::<String>::new(), "{case}");
        assert_eq!(seen.cancelled + seen.abandoned, 0, "{case}: {seen:?}");
        assert_eq!(seen.initializes(), u64::from(era == Era::Legacy), "{case}");
        link.close().await;
        match &upstream {
            Upstream::Http(rig) => assert_eq!(rig.counters().sessions, 0, "{case}: the session is ended"),
            Upstream::Stdio(rig) => assert_eq!(rig.left(), [0_u32; 0], "{case}: the process is gone"),
        }
    }
}

/// The probe waits for 10 s, and many servers are fetched before they start.
#[tokio::test]
async fn are_modern_however_slow_the_server_was_to_start() {
    let opened = async |over| {
        let late = Rule { times: Some(1), ..Rule::delay(11_000) };
        let upstream = Upstream::start(over, Script::new("late", RigEra::Modern).on("server/discover", late));
        let upstream = upstream.await;
        let (link, _events) = connect(&upstream).await.unwrap_or_else(|error| panic!("{over:?}: {error}"));
        assert_eq!(link.peer().era, Era::Modern, "{over:?}");
        call(&link, "echo", "{}").await.unwrap().unwrap();
        assert_eq!(upstream.counters().await.initializes(), 1, "{over:?}: it was taken for a legacy one");
        link.close().await;
    };
    tokio::join!(opened(Over::Stdio), opened(Over::Http));
}

#[tokio::test]
async fn keep_no_connection_for_a_pause_that_it_would_not_outlast() {
    let upstream = Upstream::start(Over::Http, Script::new("idle", RigEra::Legacy)).await;
    let (link, _events) = connect(&upstream).await.unwrap();
    link.check().await.unwrap();
    let before = upstream.counters().await.connections;
    link.rest(Duration::from_secs(5));
    link.check().await.unwrap();
    assert_eq!(upstream.counters().await.connections, before, "the one that is there is used again");
    link.rest(Duration::from_mins(1));
    link.check().await.unwrap();
    assert_eq!(upstream.counters().await.connections, before + 1, "it was closed");
    link.close().await;
}

#[tokio::test]
async fn tell_that_the_tools_changed() {
    for (over, script, era) in servers().into_iter().filter(|(_, script, _)| script.http.get_stream) {
        if (over, era) != (Over::Stdio, Era::Modern) {
            tells_a_change(over, script).await;
        }
    }
}

#[tokio::test]
async fn tell_that_the_tools_of_a_modern_process_changed() {
    tells_a_change(Over::Stdio, Script::new("modern", RigEra::Modern)).await;
}

async fn tells_a_change(over: Over, script: Script) {
    let case = format!("{over:?} {:?} {:?}", script.era, script.http);
    let upstream = Upstream::start(over, script.clone()).await;
    let (link, mut events) = connect(&upstream).await.unwrap();
    events.begin().await.unwrap_or_else(|error| panic!("{case}: {error}"));
    // An answer shows that the server has taken all that was said before, `initialized` among it.
    request(&link, "tools/list", "{}").await.unwrap().unwrap();
    upstream.play(script.clone().tools(&["late"])).await;
    let event = within(&format!("{case}: the change is told"), events.next()).await;
    assert!(matches!(event, ConnectionEvent::Changed(ListKind::Tools)), "{case}: {event:?}");
    let list = request(&link, "tools/list", "{}").await.unwrap().unwrap();
    assert!(list.contains(r#""name":"late""#), "{case}: {list}");
    assert_eq!(upstream.counters().await.complaints, Vec::<String>::new(), "{case}");
    link.close().await;
}

#[tokio::test]
async fn carry_progress_with_the_callers_token() {
    for (over, script, _) in servers() {
        let case = format!("{over:?} {:?} {:?}", script.era, script.http);
        let upstream = Upstream::start(over, script).await;
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
            matches!(within("the answer", exchange.next()).await, Ok(ResponseMessage::Answer(_))),
            "{case}"
        );
        link.close().await;
    }
}

#[tokio::test]
async fn cancel_what_is_dropped() {
    for (over, script, era) in servers() {
        // A legacy server that has not begun its answer is another test.
        if (over, era, script.http.answers) != (Over::Http, Era::Legacy, Answers::Json) {
            cancels(over, script, era).await;
        }
    }
}

#[tokio::test]
async fn cancel_what_is_dropped_before_the_answer_begins() {
    let mut script = Script::new("late", RigEra::Legacy).tools(&["sleep"]);
    script.http.answers = Answers::Json;
    cancels(Over::Http, script, Era::Legacy).await;
}

async fn cancels(over: Over, script: Script, era: Era) {
    let case = format!("{over:?} {:?} {:?}", script.era, script.http);
    let upstream = Upstream::start(over, script).await;
    let (link, _events) = connect(&upstream).await.unwrap();
    let long = RequestParams::parse(r#"{"name":"sleep","arguments":{"ms":600000}}"#).unwrap();
    let request =
        UpstreamRequest { params: &long, name: Some("sleep"), ..UpstreamRequest::new("tools/call") };
    let call = async { link.call(request).await.unwrap().answer().await };
    tokio::select! {
        answer = call => panic!("{case}: {answer:?}"),
        () = upstream.wait("the call is at work", |seen| seen.in_flight == 1) => {}
    }
    upstream.wait("the call is cancelled", |seen| seen.in_flight == 0).await;
    let seen = upstream.counters().await;
    assert_eq!(seen.complaints, Vec::<String>::new(), "{case}");
    if era == Era::Modern || over == Over::Stdio {
        assert_eq!((seen.cancelled, seen.abandoned), (1, 0), "{case}");
    } else {
        // The closed connection may be noticed before the notification arrives.
        assert_eq!(seen.cancelled + seen.abandoned, 1, "{case}");
        let told = |seen: &Counters| seen.of("notifications/cancelled") == 1;
        upstream.wait(&format!("{case}: the notification is sent"), told).await;
    }
    link.close().await;
}
