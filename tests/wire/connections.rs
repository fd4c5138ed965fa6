//! Tests of healthy connections.

use std::time::Duration;

use evenkeel::wire::{
    ConnectionContext, ConnectionEvent, Era, HealthRequest, ListKind, RequestParams, ResponseMessage,
    UpstreamRequest, open,
};

use super::{TestServer, TransportKind, call, connect, request};
use crate::rig::{Action, Counters, ODD_RESULT, ODD_TOOL, ResponseFormat, Rule, Script, ServerEra};
use crate::support::within;

/// Returns every kind of healthy server, with the era that the handshake must select.
fn healthy_servers() -> Vec<(TransportKind, Script, Era)> {
    let mut servers = Vec::new();
    for (rig, era) in
        [(ServerEra::Legacy, Era::Legacy), (ServerEra::Modern, Era::Modern), (ServerEra::Dual, Era::Modern)]
    {
        let script = Script::new("healthy", rig).tools(&["odd", "echo", "sleep", "reply", "fail"]);
        servers.push((TransportKind::Stdio, script.clone(), era));
        for format in [ResponseFormat::Mixed, ResponseFormat::Json, ResponseFormat::Stream] {
            let mut script = script.clone();
            script.http.answers = format;
            script.http.priming = format == ResponseFormat::Stream;
            servers.push((TransportKind::Http, script, era));
        }
    }
    let mut without_sessions =
        Script::new("healthy", ServerEra::Legacy).tools(&["odd", "echo", "sleep", "reply", "fail"]);
    without_sessions.http.sessions = false;
    without_sessions.http.get_stream = false;
    let mut over_sse = without_sessions.clone();
    over_sse.http.sse = true;
    servers.extend([
        (TransportKind::Http, without_sessions, Era::Legacy),
        (TransportKind::Http, over_sse, Era::Legacy),
    ]);
    servers
}

#[tokio::test]
async fn lists_calls_and_errors_pass_verbatim() {
    for (transport, script, era) in healthy_servers() {
        let case = format!("{transport:?} {:?} {:?}", script.era, script.http);
        let server = TestServer::start(transport, script).await;
        let (connection, _events) = connect(&server).await.unwrap_or_else(|error| panic!("{case}: {error}"));
        assert_eq!(connection.handshake().era, era, "{case}");
        assert!(connection.handshake().capabilities.tools == Some(true), "{case}");
        assert_eq!(connection.handshake().description.server_info.name, "healthy", "{case}");

        let list = request(&connection, "tools/list", "{}").await.unwrap().unwrap();
        assert!(list.contains(ODD_TOOL), "{case}: {list}");
        assert_eq!(call(&connection, "odd", "{}").await.unwrap().unwrap(), ODD_RESULT, "{case}");
        let error = r#"{"code":-7,"message":"no","data": {"x":[1.0e+2]},"x-more":1}"#;
        let failed = call(&connection, "fail", &format!(r#"{{"error":{error}}}"#)).await.unwrap();
        assert_eq!(failed.unwrap_err(), error, "{case}");

        let params = r#"{"name":"echo","arguments":{"x": [1.0e+2,"\u00e9\/"],"a":1,"a":2},"x-new":{"k" : null},"_meta":{"example.com/kept": 1E2}}"#;
        let echoed = request(&connection, "tools/call", params).await.unwrap().unwrap();
        let echoed: serde_json::Value = serde_json::from_str(&echoed).unwrap();
        let echoed = echoed["content"][0]["text"].as_str().unwrap();
        for part in [
            r#""arguments":{"x": [1.0e+2,"\u00e9\/"],"a":1,"a":2}"#,
            r#""x-new":{"k" : null}"#,
            r#""example.com/kept""#,
        ] {
            assert!(echoed.contains(part), "{case}: {part} in {echoed}");
        }
        connection.check_health(HealthRequest::Ping).await.unwrap_or_else(|error| panic!("{case}: {error}"));

        let counters = server.counters().await;
        assert_eq!(counters.complaints, Vec::<String>::new(), "{case}");
        assert_eq!(counters.cancelled + counters.abandoned, 0, "{case}: {counters:?}");
        assert_eq!(counters.initializes(), u64::from(era == Era::Legacy), "{case}");
        connection.close().await;
        match &server {
            TestServer::Http(rig) => assert_eq!(rig.counters().sessions, 0, "{case}: the session is ended"),
            TestServer::Stdio(rig) => {
                assert_eq!(rig.existing_pids(), [0_u32; 0], "{case}: the process is gone");
            }
        }
    }
}

/// Many servers are downloaded before they start, and answer the probe only then.
#[tokio::test]
async fn slow_start_does_not_downgrade_a_modern_server() {
    let opened = async |transport| {
        let late = Rule { times: Some(1), ..Rule::delay(5_000) };
        let server =
            TestServer::start(transport, Script::new("late", ServerEra::Modern).on("server/discover", late));
        let server = server.await;
        let (endpoint, context) = (server.endpoint(), ConnectionContext::default());
        let opening = open(&endpoint, None, Duration::from_secs(1), &context);
        let (connection, _events) = within("the connection opens", opening)
            .await
            .unwrap_or_else(|error| panic!("{transport:?}: {error}"));
        assert_eq!(connection.handshake().era, Era::Modern, "{transport:?}");
        call(&connection, "echo", "{}").await.unwrap().unwrap();
        assert_eq!(
            server.counters().await.initializes(),
            1,
            "{transport:?}: it was treated as a legacy server"
        );
        connection.close().await;
    };
    tokio::join!(opened(TransportKind::Stdio), opened(TransportKind::Http));
}

#[tokio::test]
async fn idle_connections_that_would_expire_are_closed() {
    let server = TestServer::start(TransportKind::Http, Script::new("idle", ServerEra::Legacy)).await;
    let (connection, _events) = connect(&server).await.unwrap();
    call(&connection, "echo", "{}").await.unwrap().unwrap();
    let before = server.counters().await.connections;
    connection.close_idle_connections(Duration::from_secs(5));
    call(&connection, "echo", "{}").await.unwrap().unwrap();
    assert_eq!(server.counters().await.connections, before, "the idle connection is reused");
    connection.close_idle_connections(Duration::from_mins(1));
    call(&connection, "echo", "{}").await.unwrap().unwrap();
    assert_eq!(server.counters().await.connections, before + 1, "the idle connection was closed");
    connection.close().await;
}

#[tokio::test]
async fn answered_request_is_a_sign_of_life_and_a_refused_one_is_not() {
    for format in [ResponseFormat::Json, ResponseFormat::Stream] {
        let mut script = Script::new("s", ServerEra::Legacy);
        script.http.answers = format;
        let refusing = Rule::always(Action::Http {
            status: 400,
            headers: [("Content-Type".to_owned(), "application/json".to_owned())].into(),
            body: r#"{"jsonrpc":"2.0","id":null,"error":{"code":-32600,"message":"no"}}"#.to_owned(),
        });
        let server = TestServer::start(TransportKind::Http, script.clone()).await;
        let (connection, _events) = connect(&server).await.unwrap();
        let _ = connection.received_since_last_check();
        call(&connection, "echo", "{}").await.unwrap().unwrap();
        assert!(connection.received_since_last_check(), "{format:?}");
        server.set_script(script.on("tools/call", refusing)).await;
        call(&connection, "echo", "{}").await.unwrap().unwrap_err();
        assert!(!connection.received_since_last_check(), "{format:?}");
        connection.close().await;
    }
}

#[tokio::test]
async fn tools_list_change_is_reported() {
    for (transport, script, era) in
        healthy_servers().into_iter().filter(|(_, script, _)| script.http.get_stream)
    {
        if (transport, era) != (TransportKind::Stdio, Era::Modern) {
            assert_list_change_is_reported(transport, script).await;
        }
    }
}

#[tokio::test]
async fn tools_list_change_of_a_modern_stdio_server_is_reported() {
    assert_list_change_is_reported(TransportKind::Stdio, Script::new("modern", ServerEra::Modern)).await;
}

async fn assert_list_change_is_reported(transport: TransportKind, script: Script) {
    let case = format!("{transport:?} {:?} {:?}", script.era, script.http);
    let server = TestServer::start(transport, script.clone()).await;
    let (connection, mut events) = connect(&server).await.unwrap();
    events.subscribe().await.unwrap_or_else(|error| panic!("{case}: {error}"));
    // A response shows that the server has processed all earlier messages, including `initialized`.
    request(&connection, "tools/list", "{}").await.unwrap().unwrap();
    server.set_script(script.clone().tools(&["late"])).await;
    let event = within(&format!("{case}: the change is reported"), events.next()).await;
    assert!(matches!(event, ConnectionEvent::ListChanged(ListKind::Tools)), "{case}: {event:?}");
    let list = request(&connection, "tools/list", "{}").await.unwrap().unwrap();
    assert!(list.contains(r#""name":"late""#), "{case}: {list}");
    assert_eq!(server.counters().await.complaints, Vec::<String>::new(), "{case}");
    connection.close().await;
}

#[tokio::test]
async fn progress_carries_the_callers_token() {
    for (transport, script, _) in healthy_servers() {
        let case = format!("{transport:?} {:?} {:?}", script.era, script.http);
        let server = TestServer::start(transport, script).await;
        let (connection, _events) = connect(&server).await.unwrap();
        let params =
            r#"{"name":"sleep","arguments":{"ms":20,"steps":2},"_meta":{"progressToken":"t\u0031"}}"#;
        let sleep = RequestParams::parse(params).unwrap();
        let request =
            UpstreamRequest { params: &sleep, name: Some("sleep"), ..UpstreamRequest::new("tools/call") };
        let mut exchange = connection.call(request).await.unwrap();
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
            matches!(within("the response", exchange.next()).await, Ok(ResponseMessage::Response(_))),
            "{case}"
        );
        connection.close().await;
    }
}

#[tokio::test]
async fn dropped_call_is_cancelled() {
    for (transport, script, era) in healthy_servers() {
        // A legacy server that has not started its response is covered by the next test.
        if (transport, era, script.http.answers) != (TransportKind::Http, Era::Legacy, ResponseFormat::Json) {
            assert_dropped_call_is_cancelled(transport, script, era).await;
        }
    }
}

#[tokio::test]
async fn call_dropped_before_the_response_is_cancelled() {
    let mut script = Script::new("late", ServerEra::Legacy).tools(&["sleep"]);
    script.http.answers = ResponseFormat::Json;
    assert_dropped_call_is_cancelled(TransportKind::Http, script, Era::Legacy).await;
}

async fn assert_dropped_call_is_cancelled(transport: TransportKind, script: Script, era: Era) {
    let case = format!("{transport:?} {:?} {:?}", script.era, script.http);
    let server = TestServer::start(transport, script).await;
    let (connection, _events) = connect(&server).await.unwrap();
    let long = RequestParams::parse(r#"{"name":"sleep","arguments":{"ms":600000}}"#).unwrap();
    let request =
        UpstreamRequest { params: &long, name: Some("sleep"), ..UpstreamRequest::new("tools/call") };
    let call = async { connection.call(request).await.unwrap().response().await };
    tokio::select! {
        response = call => panic!("{case}: {response:?}"),
        () = server.wait_until("the call is in flight", |counters| counters.in_flight == 1) => {}
    }
    server.wait_until("the call is cancelled", |counters| counters.in_flight == 0).await;
    let counters = server.counters().await;
    assert_eq!(counters.complaints, Vec::<String>::new(), "{case}");
    if era == Era::Modern || transport == TransportKind::Stdio {
        assert_eq!((counters.cancelled, counters.abandoned), (1, 0), "{case}");
    } else {
        // The server may detect the closed connection before the notification arrives.
        assert_eq!(counters.cancelled + counters.abandoned, 1, "{case}");
        let notified = |counters: &Counters| counters.count("notifications/cancelled") == 1;
        server.wait_until(&format!("{case}: the notification is sent"), notified).await;
    }
    connection.close().await;
}
