//! Servers that speak HTTP+SSE of 2024-11-05.

use std::collections::BTreeMap;

use evenkeel::resource::{
    DigestKey, Endpoint, HttpEndpoint, HttpTransportKind, ProtocolMode, Reason, Transport,
};
use evenkeel::wire::{ConnectionContext, ConnectionEvent, ListKind, ProtocolViolation, open};

use super::{PROBE_TIMEOUT, TestServer, TransportKind, call, connect};
use crate::rig::{Action, ControlCommand, Rule, Script, ServerEra};
use crate::support::within;

fn sse_script() -> Script {
    let mut script = Script::new("s", ServerEra::Legacy).tools(&["echo", "sleep"]);
    (script.http.sse, script.http.sessions) = (true, false);
    script
}

fn status(status: u16) -> Action {
    Action::Http { status, headers: BTreeMap::new(), body: String::new() }
}

async fn start(script: Script) -> TestServer {
    TestServer::start(TransportKind::Http, script).await
}

fn send_command(server: &TestServer, command: ControlCommand) {
    let TestServer::Http(rig) = server else { unreachable!() };
    rig.send_command(command);
}

#[tokio::test]
async fn messages_of_the_server_arrive_on_its_stream() {
    let server = start(sse_script()).await;
    let (connection, mut events) = connect(&server).await.unwrap();
    call(&connection, "echo", "{}").await.unwrap().unwrap();
    let event = within("the transport is reported", events.next()).await;
    assert!(
        matches!(event, ConnectionEvent::ProtocolViolation(ProtocolViolation::DeprecatedTransport)),
        "{event:?}"
    );
    send_command(&server, ControlCommand::Notify("notifications/tools/list_changed".into()));
    let event = within("the change is reported", events.next()).await;
    assert!(matches!(event, ConnectionEvent::ListChanged(ListKind::Tools)), "{event:?}");
    // The server's requests are answered.
    send_command(&server, ControlCommand::AskForRoots(3));
    tokio::select! {
        () = server.wait_until("the requests are answered", |counters| counters.answers == 3) => {}
        event = events.next() => panic!("{event:?}"),
    }
    connection.close().await;
    server.wait_until("the stream is closed", |counters| counters.streams == 0).await;
}

#[tokio::test]
async fn end_of_the_stream_is_the_end_of_the_connection() {
    let server = start(sse_script()).await;
    let (connection, mut events) = connect(&server).await.unwrap();
    let calling = tokio::spawn({
        let connection = connection.clone();
        async move { call(&connection, "sleep", r#"{"ms":600000}"#).await }
    });
    server.wait_until("the call is in flight", |counters| counters.in_flight == 1).await;
    send_command(&server, ControlCommand::CloseStreams);
    let error = within("the call fails", calling).await.unwrap().unwrap_err();
    assert!(error.dispatched && error.problem.message.contains("ended the event stream"), "{error}");
    let lost = async {
        loop {
            if let ConnectionEvent::Lost(error) = events.next().await {
                break error;
            }
        }
    };
    let error = within("the end is reported", lost).await;
    assert!(error.problem.message.contains("ended the event stream"), "{error}");
}

/// A proxy may end a silent stream after a minute, and here that is the end of the connection.
#[tokio::test]
async fn stream_is_not_silent_for_long_even_during_a_call() {
    let server = start(sse_script()).await;
    let (connection, _events) = connect(&server).await.unwrap();
    let calling = tokio::spawn({
        let connection = connection.clone();
        async move { call(&connection, "sleep", r#"{"ms":27000}"#).await }
    });
    server.wait_until("a ping is sent", |counters| counters.count("ping") == 1).await;
    assert!(server.counters().await.in_flight >= 1, "the call is in flight");
    within("the call ends", calling).await.unwrap().unwrap().unwrap();
    connection.close().await;
}

#[tokio::test]
async fn rejected_post_fails_its_request_only_unless_the_session_is_unknown() {
    let server = start(sse_script().on("tools/call", Rule::times(1, status(500)))).await;
    let (connection, _events) = connect(&server).await.unwrap();
    let error = call(&connection, "echo", "{}").await.unwrap_err();
    assert!(error.problem.message.contains("500"), "{error}");
    call(&connection, "echo", "{}").await.unwrap().unwrap();
    server.set_script(sse_script().on("tools/call", Rule::always(status(404)))).await;
    let error = call(&connection, "echo", "{}").await.unwrap_err();
    assert!(error.problem.message.contains("session"), "{error}");
    assert!(connection.end_problem().is_some());
}

/// Returns a script whose event stream is this text.
fn stream_script(content_type: &str, body: &str) -> Script {
    let headers = BTreeMap::from([("content-type".to_owned(), content_type.to_owned())]);
    sse_script().on("GET", Rule::always(Action::Http { status: 200, headers, body: body.to_owned() }))
}

#[tokio::test]
async fn endpoint_must_be_of_the_same_origin() {
    const EVENTS: &str = "text/event-stream";
    for (content_type, body, expected) in [
        (EVENTS, "event: endpoint\ndata: https://example.com/messages\n\n", "has another origin"),
        (EVENTS, "event: endpoint\ndata: //example.com/messages\n\n", "has another origin"),
        (EVENTS, "event: endpoint\ndata: http://[/\n\n", "is not a URL"),
        (EVENTS, ": no endpoint\n\n", "before it named the endpoint"),
        ("text/html", "<html>", "not an event stream"),
    ] {
        let error = connect(&start(stream_script(content_type, body)).await).await.unwrap_err();
        assert!(error.problem.message.contains(expected), "{body}: {error}");
        assert_ne!(error.problem.reason, Reason::Timeout, "{body}: {error}");
    }
    let refused = start(sse_script().on("GET", Rule::always(status(401)))).await;
    assert_eq!(connect(&refused).await.unwrap_err().problem.reason, Reason::AuthRequired);
}

#[tokio::test]
async fn refusal_at_the_usual_path_names_the_transport() {
    for (path, hint) in [("/sse", true), ("/v1/sse/", true), ("/mcp", false)] {
        let refusing = Script::new("s", ServerEra::Legacy).on("POST", Rule::always(status(405)));
        let server = start(refusing).await;
        let TestServer::Http(rig) = &server else { unreachable!() };
        let url = format!("http://{}{path}", rig.address()).parse().unwrap();
        let kind = HttpTransportKind::StreamableHttp;
        let transport =
            Transport::Http(HttpEndpoint { kind, url, headers: Vec::new(), ca: None, oauth: None });
        let endpoint = Endpoint::new(transport, ProtocolMode::Auto, &DigestKey::new(b"test"));
        let context = ConnectionContext::default();
        let opening = open(&endpoint, None, PROBE_TIMEOUT, &context);
        let message = within("the attempt fails", opening).await.unwrap_err().problem.message;
        assert_eq!(message.contains("set spec.http.transport to SSE"), hint, "{path}: {message}");
    }
}
