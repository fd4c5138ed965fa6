//! The stream of notices: whatever the server does with it, changes are noticed, and it is not asked without end.

use std::time::Duration;

use evenkeel::wire::{ConnectionEvent, ConnectionEvents, ListKind};
use tokio::time::Instant;

use super::{Over, Upstream, call, connect};
use crate::rig::{Command, Era as RigEra, Http, Rule, Script, Stdio, Then};
use crate::support::{eventually, within};

/// The notices that a legacy server sends on GET, and a modern one on `subscriptions/listen`, by the rig's name.
const STREAMS: [(RigEra, &str); 2] = [(RigEra::Legacy, "GET"), (RigEra::Modern, "subscriptions/listen")];

async fn changes(events: &mut ConnectionEvents, list: ListKind) {
    let change = async {
        loop {
            match events.next().await {
                ConnectionEvent::Changed(changed) if changed == list => return,
                ConnectionEvent::Changed(_) => {}
                ConnectionEvent::Lost(error) => panic!("the connection was lost: {error}"),
            }
        }
    };
    within(&format!("{list:?} counts as changed"), change).await;
}

#[tokio::test]
async fn a_stream_that_is_refused_is_opened_again_and_the_lists_read_then() {
    for (era, method) in STREAMS {
        for status in [409, 400, 401, 403, 500] {
            let case = format!("{era:?} {status}");
            let script = Script::new("refusing", era).on(method, Rule::times(1, Then::status(status)));
            let upstream = Upstream::start(Over::Http, script).await;
            let (link, mut events) = connect(&upstream).await.unwrap();
            events.begin().await.unwrap_or_else(|error| panic!("{case}: {error}"));
            // Whatever changed since the lists were read is learned once the stream is open.
            changes(&mut events, ListKind::Tools).await;
            assert_eq!(upstream.counters().await.of(method), 2, "{case}");
            upstream.play(Script::new("refusing", era).tools(&["late"])).await;
            changes(&mut events, ListKind::Tools).await;
            link.close().await;
        }
    }
}

#[tokio::test]
async fn a_stream_that_was_open_is_opened_again_after_a_refusal() {
    for status in [409, 400, 401, 403] {
        let rig = Http::start(Script::new("refusing", RigEra::Legacy)).await;
        let upstream = Upstream::Http(rig);
        let (link, mut events) = connect(&upstream).await.unwrap();
        events.begin().await.unwrap();
        let Upstream::Http(rig) = &upstream else { unreachable!() };
        rig.edit(|script| {
            script.on.insert("GET".into(), vec![Rule::times(2, Then::status(status))]);
        });
        rig.tell(Command::CloseStreams);
        changes(&mut events, ListKind::Tools).await;
        assert_eq!(rig.counters().of("GET"), 4, "{status}: opened, refused twice, opened");
        call(&link, "echo", "{}").await.unwrap().unwrap();
        assert_eq!(rig.counters().initializes(), 1, "{status}");
        link.close().await;
    }
}

#[tokio::test]
async fn a_server_that_says_that_it_has_no_stream_is_not_asked_again() {
    for (sessions, status) in [(true, 405), (false, 405), (false, 404)] {
        let mut script = Script::new("plain", RigEra::Legacy).on("GET", Rule::always(Then::status(status)));
        script.http.sessions = sessions;
        let upstream = Upstream::start(Over::Http, script).await;
        let (link, mut events) = connect(&upstream).await.unwrap();
        events.begin().await.unwrap();
        let quiet = tokio::time::timeout(Duration::from_secs(3), events.next()).await;
        assert!(quiet.is_err(), "{sessions} {status}: {quiet:?}");
        assert_eq!(upstream.counters().await.of("GET"), 1, "{sessions} {status}");
        link.close().await;
    }
}

/// However often whoever reads the events is interrupted.
#[tokio::test]
async fn a_stream_that_ends_at_once_is_opened_less_and_less_often() {
    let empty = Then::Http {
        status: 200,
        headers: [("Content-Type".to_owned(), "text/event-stream".to_owned())].into(),
        body: ": hello\n\n".into(),
    };
    for (era, method) in STREAMS {
        let script = Script::new("brief", era).on(method, Rule::always(empty.clone()));
        let upstream = Upstream::start(Over::Http, script).await;
        let (link, mut events) = connect(&upstream).await.unwrap();
        events.begin().await.unwrap();
        let begun = Instant::now();
        while begun.elapsed() < Duration::from_secs(6) {
            let _ = tokio::time::timeout(Duration::from_millis(7), events.next()).await;
        }
        // At the earliest after 0, 0.25, 0.75, 1.75, 3.75 and 7.75 s.
        let opened = upstream.counters().await.of(method);
        assert!((3..=6).contains(&opened), "{era:?}: opened {opened} times");
        link.close().await;
    }
}

#[tokio::test]
async fn a_stream_whose_head_is_late_is_opened_once() {
    let script = Script::new("late", RigEra::Legacy).on("GET", Rule { times: Some(1), ..Rule::delay(2_500) });
    let upstream = Upstream::start(Over::Http, script).await;
    let (link, mut events) = connect(&upstream).await.unwrap();
    events.begin().await.unwrap();
    let begun = Instant::now();
    let mut changed = false;
    while !changed && begun.elapsed() < Duration::from_secs(30) {
        changed = tokio::time::timeout(Duration::from_millis(7), events.next()).await.is_ok();
    }
    assert!(changed, "the lists are read again once it is open");
    assert_eq!(upstream.counters().await.of("GET"), 1);
    link.close().await;
}

#[tokio::test]
async fn a_subscription_that_a_process_ends_is_made_again() {
    let upstream = Upstream::Stdio(Stdio::new(Script::new("brief", RigEra::Modern)));
    let (link, mut events) = connect(&upstream).await.unwrap();
    events.begin().await.unwrap();
    let Upstream::Stdio(rig) = &upstream else { unreachable!() };
    let process = rig.alive().pop().unwrap();
    process.tell(Command::CloseStreams).await.unwrap();
    changes(&mut events, ListKind::Tools).await;
    upstream.wait("it is subscribed again", |seen| seen.of("subscriptions/listen") == 2).await;
    upstream.play(Script::new("brief", RigEra::Modern).tools(&["late"])).await;
    changes(&mut events, ListKind::Tools).await;
    link.close().await;
}

#[tokio::test]
async fn requests_of_a_server_are_answered_one_after_another() {
    const ASKED: u32 = 3_000;
    let mut script = Script::new("curious", RigEra::Legacy).tools(&["echo"]);
    script.capabilities = None;
    let upstream = Upstream::start(Over::Http, script).await;
    let (link, mut events) = connect(&upstream).await.unwrap();
    events.begin().await.unwrap();
    let reading = tokio::spawn(async move { events.next().await });
    let Upstream::Http(rig) = &upstream else { unreachable!() };
    eventually("the stream is open", async || (rig.counters().streams == 1).then_some(())).await;
    let before = rig.counters().connections;
    rig.tell(Command::AskForRoots(ASKED));
    // As many as may wait are answered, the rest is not.
    eventually("they are answered", async || (rig.counters().answers >= 1_000).then_some(())).await;
    call(&link, "echo", "{}").await.unwrap().unwrap();
    let seen = rig.counters();
    assert!(seen.connections <= before + 2, "{} connections more", seen.connections - before);
    assert!(seen.answers < u64::from(ASKED));
    assert_eq!(seen.initializes(), 1);
    reading.abort();
    link.close().await;
}
