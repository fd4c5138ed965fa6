//! Tests of notification streams: no list change is missed, whatever the server does with the stream, and the number of
//! requests is bounded.

use std::time::Duration;

use evenkeel::resource::{DigestKey, Endpoint, HttpEndpoint, HttpTransportKind, ProtocolMode, Transport};
use evenkeel::wire::{ConnectionContext, ConnectionEvent, ConnectionEvents, ListKind, open};
use http::header::AUTHORIZATION;
use tokio::time::Instant;

use super::{PROBE_TIMEOUT, TestServer, TransportKind, call, connect};
use crate::rig::{Action, ControlCommand, FakeHttpServer, FakeStdioServer, Rule, Script, ServerEra};
use crate::support::{eventually, within};

/// The request that opens the stream in each era, by its name in the fake server's script.
const STREAM_REQUESTS: [(ServerEra, &str); 2] =
    [(ServerEra::Legacy, "GET"), (ServerEra::Modern, "subscriptions/listen")];

async fn wait_for_list_change(events: &mut ConnectionEvents, list: ListKind) {
    let change = async {
        loop {
            match events.next().await {
                ConnectionEvent::ListChanged(changed) if changed == list => return,
                ConnectionEvent::Lost(error) => panic!("the connection was lost: {error}"),
                _ => {}
            }
        }
    };
    within(&format!("{list:?} counts as changed"), change).await;
}

#[tokio::test]
async fn stream_request_carries_the_credentials() {
    for (era, _) in STREAM_REQUESTS {
        let mut script = Script::new("locked", era).tools(&["early"]);
        script.http.authorization = Some("Bearer s3cret".into());
        let rig = FakeHttpServer::start(script).await;
        let transport = Transport::Http(HttpEndpoint {
            kind: HttpTransportKind::StreamableHttp,
            url: rig.url().parse().unwrap(),
            headers: vec![(AUTHORIZATION, "Bearer s3cret".to_owned().into())],
            ca: None,
            oauth: None,
        });
        let endpoint = Endpoint::new(transport, ProtocolMode::Auto, &DigestKey::new(b"test"));
        let context = ConnectionContext::default();
        let opened = open(&endpoint, None, PROBE_TIMEOUT, &context);
        let (connection, mut events) = within("the connection opens", opened).await.unwrap();
        events.subscribe().await.unwrap();
        rig.edit_script(|script| script.tools = Script::new("locked", era).tools(&["late"]).tools);
        wait_for_list_change(&mut events, ListKind::Tools).await;
        assert_eq!(rig.counters().complaints, Vec::<String>::new(), "{era:?}");
        connection.close().await;
    }
}

#[tokio::test]
async fn refused_stream_is_reopened_and_lists_count_as_changed() {
    for (era, method) in STREAM_REQUESTS {
        for status in [409, 400, 401, 403, 500] {
            let case = format!("{era:?} {status}");
            let script = Script::new("refusing", era).on(method, Rule::times(1, Action::status(status)));
            let server = TestServer::start(TransportKind::Http, script).await;
            let (connection, mut events) = connect(&server).await.unwrap();
            events.subscribe().await.unwrap_or_else(|error| panic!("{case}: {error}"));
            // The lists count as changed once the stream is open, because a change may have been missed.
            wait_for_list_change(&mut events, ListKind::Tools).await;
            assert_eq!(server.counters().await.count(method), 2, "{case}");
            server.set_script(Script::new("refusing", era).tools(&["late"])).await;
            wait_for_list_change(&mut events, ListKind::Tools).await;
            connection.close().await;
        }
    }
}

#[tokio::test]
async fn closed_stream_is_reopened_after_refusals() {
    for status in [409, 400, 401, 403] {
        let rig = FakeHttpServer::start(Script::new("refusing", ServerEra::Legacy)).await;
        let server = TestServer::Http(rig);
        let (connection, mut events) = connect(&server).await.unwrap();
        events.subscribe().await.unwrap();
        let TestServer::Http(rig) = &server else { unreachable!() };
        rig.edit_script(|script| {
            script.on.insert("GET".into(), vec![Rule::times(2, Action::status(status))]);
        });
        rig.send_command(ControlCommand::CloseStreams);
        wait_for_list_change(&mut events, ListKind::Tools).await;
        assert_eq!(rig.counters().count("GET"), 4, "{status}: opened, refused twice, opened");
        call(&connection, "echo", "{}").await.unwrap().unwrap();
        assert_eq!(rig.counters().initializes(), 1, "{status}");
        connection.close().await;
    }
}

#[tokio::test]
async fn stream_not_offered_is_not_requested_again() {
    for (sessions, status) in [(true, 405), (false, 405), (false, 404)] {
        let mut script =
            Script::new("plain", ServerEra::Legacy).on("GET", Rule::always(Action::status(status)));
        script.http.sessions = sessions;
        let server = TestServer::start(TransportKind::Http, script).await;
        let (connection, mut events) = connect(&server).await.unwrap();
        events.subscribe().await.unwrap();
        // Without a session, a server cannot send notifications: its `listChanged` means nothing.
        if sessions {
            let event = within("the missing stream is reported", events.next()).await;
            assert!(matches!(event, ConnectionEvent::ChangesUnheard(Some(_))), "{event:?}");
        }
        let quiet = tokio::time::timeout(Duration::from_secs(3), events.next()).await;
        assert!(quiet.is_err(), "{sessions} {status}: {quiet:?}");
        assert_eq!(server.counters().await.count("GET"), 1, "{sessions} {status}");
        connection.close().await;
    }
}

/// The backoff holds even if the task that reads the events is interrupted often.
#[tokio::test]
async fn short_lived_stream_is_reopened_with_backoff() {
    let empty = Action::Http {
        status: 200,
        headers: [("Content-Type".to_owned(), "text/event-stream".to_owned())].into(),
        body: ": hello\n\n".into(),
    };
    for (era, method) in STREAM_REQUESTS {
        let script = Script::new("brief", era).on(method, Rule::always(empty.clone()));
        let server = TestServer::start(TransportKind::Http, script).await;
        let (connection, mut events) = connect(&server).await.unwrap();
        events.subscribe().await.unwrap();
        let start = Instant::now();
        while start.elapsed() < Duration::from_secs(6) {
            let _ = tokio::time::timeout(Duration::from_millis(7), events.next()).await;
        }
        // At the earliest after 0, 0.25, 0.75, 1.75, 3.75 and 7.75 s.
        let opened = server.counters().await.count(method);
        assert!((3..=6).contains(&opened), "{era:?}: opened {opened} times");
        connection.close().await;
    }
}

#[tokio::test]
async fn stream_with_a_slow_response_is_opened_once() {
    let script =
        Script::new("late", ServerEra::Legacy).on("GET", Rule { times: Some(1), ..Rule::delay(2_500) });
    let server = TestServer::start(TransportKind::Http, script).await;
    let (connection, mut events) = connect(&server).await.unwrap();
    events.subscribe().await.unwrap();
    let start = Instant::now();
    let mut changed = false;
    while !changed && start.elapsed() < Duration::from_secs(30) {
        changed = tokio::time::timeout(Duration::from_millis(7), events.next()).await.is_ok();
    }
    assert!(changed, "the lists count as changed once the stream is open");
    assert_eq!(server.counters().await.count("GET"), 1);
    connection.close().await;
}

#[tokio::test]
async fn ended_stdio_subscription_is_renewed() {
    let server = TestServer::Stdio(FakeStdioServer::new(Script::new("brief", ServerEra::Modern)));
    let (connection, mut events) = connect(&server).await.unwrap();
    events.subscribe().await.unwrap();
    let TestServer::Stdio(rig) = &server else { unreachable!() };
    let process = rig.live_processes().pop().unwrap();
    process.send_command(ControlCommand::CloseStreams).await.unwrap();
    wait_for_list_change(&mut events, ListKind::Tools).await;
    server
        .wait_until("the subscription is renewed", |counters| counters.count("subscriptions/listen") == 2)
        .await;
    server.set_script(Script::new("brief", ServerEra::Modern).tools(&["late"])).await;
    wait_for_list_change(&mut events, ListKind::Tools).await;
    connection.close().await;
}

#[tokio::test]
async fn server_requests_are_answered_one_at_a_time() {
    const REQUESTS: u32 = 3_000;
    let mut script = Script::new("curious", ServerEra::Legacy).tools(&["echo"]);
    script.capabilities = None;
    let server = TestServer::start(TransportKind::Http, script).await;
    let (connection, mut events) = connect(&server).await.unwrap();
    events.subscribe().await.unwrap();
    let reading = tokio::spawn(async move { events.next().await });
    let TestServer::Http(rig) = &server else { unreachable!() };
    eventually("the stream is open", async || (rig.counters().streams == 1).then_some(())).await;
    let before = rig.counters().connections;
    rig.send_command(ControlCommand::AskForRoots(REQUESTS));
    // The requests that fit in the queue get a response; the others are dropped.
    eventually("the queued requests get responses", async || (rig.counters().answers >= 1_000).then_some(()))
        .await;
    call(&connection, "echo", "{}").await.unwrap().unwrap();
    let counters = rig.counters();
    assert!(counters.connections <= before + 2, "{} connections more", counters.connections - before);
    assert!(counters.answers < u64::from(REQUESTS));
    assert_eq!(counters.initializes(), 1);
    reading.abort();
    connection.close().await;
}
