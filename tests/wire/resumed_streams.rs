//! Tests of event streams that end early: a call's response is fetched from the stream that continues its first one, and a
//! notification stream continues after its last event.

use std::time::Duration;

use evenkeel::wire::{ConnectionEvent, ConnectionEvents};
use tokio::time::Instant;

use super::{TestServer, TransportKind, call, connect};
use crate::rig::{Action, FakeHttpServer, Rule, Script, ServerEra};
use crate::support::{eventually, within};

/// Returns the action that responds with a whole event stream.
fn stream(events: &str) -> Action {
    Action::Http {
        status: 200,
        headers: [("Content-Type".to_owned(), "text/event-stream".to_owned())].into(),
        body: events.into(),
    }
}

#[tokio::test]
async fn response_is_polled_for() {
    let mut script = Script::new("polled", ServerEra::Legacy).tools(&["echo", "sleep"]);
    script.http.polling = Some(300);
    let server = TestServer::start(TransportKind::Http, script).await;
    let (connection, _events) = connect(&server).await.unwrap();
    let echo = call(&connection, "echo", r#"{"text":"hello"}"#).await.unwrap().unwrap();
    assert!(echo.contains("hello"), "{echo}");
    let polls_before = server.counters().await.count("GET");
    call(&connection, "sleep", r#"{"ms":1000,"steps":1}"#).await.unwrap().unwrap();
    let counters = server.counters().await;
    let polls = counters.count("GET") - polls_before;
    assert!((2..=5).contains(&polls), "{polls} polls in a second");
    assert_eq!(counters.complaints, Vec::<String>::new());
    connection.close().await;
}

#[tokio::test]
async fn many_calls_are_polled_for_at_the_same_time() {
    let mut script = Script::new("polled", ServerEra::Legacy).tools(&["echo"]);
    script.http.polling = Some(100);
    let server = TestServer::start(TransportKind::Http, script).await;
    let (connection, _events) = connect(&server).await.unwrap();
    let calls = (0..20).map(|number| {
        let connection = connection.clone();
        async move {
            let text = format!("number {number}");
            let result = call(&connection, "echo", &format!(r#"{{"text":"{text}"}}"#)).await;
            assert!(result.unwrap().unwrap().contains(&text));
        }
    });
    futures_util::future::join_all(calls).await;
    connection.close().await;
}

#[tokio::test]
async fn stream_that_breaks_is_continued_after_failures() {
    let response = |id: u64| {
        let result = r#"{"content":[{"type":"text","text":"late"}]}"#;
        format!("id: 9\ndata: {{\"jsonrpc\":\"2.0\",\"id\":{id},\"result\":{result}}}\n\n")
    };
    let responses: String = (1..20).map(response).collect();
    let script = Script::new("breaking", ServerEra::Legacy)
        .tools(&["echo"])
        .on("tools/call", Rule::times(1, stream("id: 1\nretry: 100\ndata:\n\n")))
        .on("GET", Rule::times(1, Action::status(503)))
        .on("GET", Rule::times(1, Action::Drop))
        .on("GET", Rule::times(1, stream("id: 2\ndata:\n\n")))
        .on("GET", Rule::times(1, stream(&responses)));
    let server = TestServer::start(TransportKind::Http, script).await;
    let (connection, _events) = connect(&server).await.unwrap();
    let result = call(&connection, "echo", "{}").await.unwrap().unwrap();
    assert!(result.contains("late"), "{result}");
    assert_eq!(server.counters().await.count("GET"), 4);
    call(&connection, "echo", "{}").await.unwrap().unwrap();
    connection.close().await;
}

#[tokio::test]
async fn call_fails_if_the_server_does_not_continue_its_stream() {
    for (event, status, expected) in [
        ("id: 1\ndata:\n\n", Some(405), "does not continue it: HTTP 405"),
        ("id: 1\ndata:\n\n", Some(400), "does not continue it: HTTP 400"),
        ("data:\n\n", None, "the server ended the stream before the response"),
    ] {
        let mut script = Script::new("brief", ServerEra::Legacy)
            .tools(&["echo"])
            .on("tools/call", Rule::times(1, stream(event)));
        if let Some(status) = status {
            script = script.on("GET", Rule::always(Action::status(status)));
        }
        let server = TestServer::start(TransportKind::Http, script).await;
        let (connection, _events) = connect(&server).await.unwrap();
        let error = call(&connection, "echo", "{}").await.unwrap_err();
        assert!(error.to_string().contains(expected) && error.dispatched, "{error}");
        assert!(!error.ends_connection(), "{error}");
        call(&connection, "echo", "{}").await.unwrap().unwrap();
        connection.close().await;
    }
}

async fn next_unheard(events: &mut ConnectionEvents) -> Option<String> {
    let unheard = async {
        loop {
            if let ConnectionEvent::ChangesUnheard(why) = events.next().await {
                return why.map(|why| why.to_string());
            }
        }
    };
    within("the state of the stream is reported", unheard).await
}

/// A stream with ids loses nothing: its end is no reason to read the lists.
#[tokio::test]
async fn notification_stream_continues_after_its_last_event() {
    let script = Script::new("polling", ServerEra::Legacy)
        .on("GET", Rule::times(3, stream("id: 7\nretry: 500\ndata:\n\n")));
    let rig = FakeHttpServer::start(script).await;
    let server = TestServer::Http(rig);
    let (connection, mut events) = connect(&server).await.unwrap();
    events.subscribe().await.unwrap();
    let start = Instant::now();
    let TestServer::Http(rig) = &server else { unreachable!() };
    let open = eventually("the stream stays open", async || (rig.counters().streams == 1).then_some(()));
    tokio::select! {
        () = open => {}
        event = events.next() => panic!("{event:?}"),
    }
    assert!(start.elapsed() > Duration::from_millis(1400), "after {:?}", start.elapsed());
    assert_eq!(rig.counters().count("GET"), 4);
    connection.close().await;
}

#[tokio::test]
async fn stream_that_cannot_be_kept_open_is_reported_until_it_can() {
    let mut script = Script::new("brief", ServerEra::Legacy).on("GET", Rule::times(5, stream(": hello\n\n")));
    script.http.comments = Some(500);
    let server = TestServer::start(TransportKind::Http, script).await;
    let (connection, mut events) = connect(&server).await.unwrap();
    events.subscribe().await.unwrap();
    let why = next_unheard(&mut events).await.expect("changes are not heard");
    assert!(why.contains("cannot be kept open"), "{why}");
    // The sixth stream stays open. Comments alone show that it works, long before the check of a silent stream.
    let heard = tokio::time::timeout(Duration::from_secs(50), async {
        loop {
            let event = events.next().await;
            if let ConnectionEvent::ChangesUnheard(None) = event {
                let opened = server.counters().await;
                assert_eq!(opened.count("GET"), 6);
                break;
            }
        }
    });
    heard.await.expect("changes are heard again");
    connection.close().await;
}
