use std::collections::VecDeque;
use std::convert::Infallible;
use std::time::Duration;

use axum::body::Body;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures_util::stream::unfold;
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::time::{Instant, Interval, MissedTickBehavior, interval, sleep_until};

use super::changes::{ObjectChange, changes};
use super::object_version::objects;
use super::parameters::Parameters;
use super::representation::Representation;
use super::selector::Selector;
use crate::admin::app::App;
use crate::admin::error_response::ErrorResponse;
use crate::report::StatusSnapshot;

/// How long a watch lasts at most, in seconds; a client goes on with the next.
const MAX_WATCH_SECONDS: u64 = 3600;
/// How often a watcher is told how far it is, if it wants to know.
const BOOKMARK_INTERVAL: Duration = Duration::from_mins(1);

/// Where a watch stands. It looks at the store only when its reader has taken what came before, and compares: so
/// nothing queues up, and a slow reader misses only states that did not last.
struct WatchStream {
    app: App,
    store: watch::Receiver<StatusSnapshot>,
    selector: Selector,
    representation: Representation,
    /// What the client has been shown, and has not taken yet.
    sent_snapshot: StatusSnapshot,
    pending: VecDeque<WatchEvent>,
    bookmark_interval: Option<Interval>,
    deadline: Instant,
}

/// What a watcher is told.
enum WatchEvent {
    Change(ObjectChange),
    /// Everything up to a version was told.
    Bookmark {
        version: u64,
        initial_events_end: bool,
    },
    /// The version to go on from is too long ago; nothing follows.
    Expired,
}

/// Begins a watch: with everything there is, or from the version that the client has seen.
pub(super) fn start(
    app: &App,
    scope: Selector,
    shape: Representation,
    asked: &Parameters,
) -> Result<Response, ErrorResponse> {
    let mut store = app.state.store.clone();
    let now = store.borrow_and_update().clone();
    let version = now.resource_version;
    let from = asked.resource_version.filter(|from| *from > 0);
    if from.is_some_and(|from| from > version) {
        return Err(ErrorResponse::resource_version_too_large(version));
    }
    let mut ready = VecDeque::new();
    // Without a version, a watch begins with what is there, unless that is not wanted.
    if asked.send_initial_events.unwrap_or(from.is_none()) {
        let there = objects(&now, scope.resource).filter(|item| scope.matches(item));
        ready.extend(there.map(|item| {
            WatchEvent::Change(ObjectChange { event_type: "ADDED", version: item.version, object: item })
        }));
        if asked.send_initial_events == Some(true) {
            ready.push_back(WatchEvent::Bookmark { version, initial_events_end: true });
        }
    } else if let Some(from) = from.filter(|from| *from < version) {
        match app.history.at_or_before(from) {
            Some(shown) => {
                ready.extend(changes(&scope, &shown, &now, from).into_iter().map(WatchEvent::Change))
            }
            None => ready.push_back(WatchEvent::Expired),
        }
    }
    app.history.record(&now);
    let bookmarks = asked.allow_bookmarks.then(|| {
        let mut bookmarks = interval(BOOKMARK_INTERVAL);
        bookmarks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        bookmarks.reset();
        bookmarks
    });
    let lasts = asked.timeout_seconds.unwrap_or(MAX_WATCH_SECONDS).clamp(1, MAX_WATCH_SECONDS);
    let watch = WatchStream {
        app: app.clone(),
        store,
        selector: scope,
        representation: shape,
        sent_snapshot: now,
        pending: ready,
        bookmark_interval: bookmarks,
        deadline: Instant::now() + Duration::from_secs(lasts),
    };
    let lines = unfold(Some(watch), async |watch| {
        let mut watch = watch?;
        let told = watch.next_event().await?;
        let line = watch.encode_event(&told);
        let rest = (!matches!(told, WatchEvent::Expired)).then_some(watch);
        Some((Ok::<_, Infallible>(line), rest))
    });
    Ok(([(CONTENT_TYPE, "application/json")], Body::from_stream(lines)).into_response())
}

impl WatchStream {
    async fn next_event(&mut self) -> Option<WatchEvent> {
        loop {
            if let Some(told) = self.pending.pop_front() {
                return Some(told);
            }
            tokio::select! {
                () = self.app.state.stop.cancelled() => return None,
                () = sleep_until(self.deadline) => return None,
                changed = self.store.changed() => changed.ok()?,
                () = tick(self.bookmark_interval.as_mut()) => {
                    return Some(WatchEvent::Bookmark { version: self.sent_snapshot.resource_version, initial_events_end: false });
                }
            }
            let now = self.store.borrow_and_update().clone();
            let changes =
                changes(&self.selector, &self.sent_snapshot, &now, self.sent_snapshot.resource_version);
            if !changes.is_empty() {
                // The client may come back with the version of any of them.
                self.app.history.record(&self.sent_snapshot);
                self.app.history.record(&now);
            }
            self.pending.extend(changes.into_iter().map(WatchEvent::Change));
            self.sent_snapshot = now;
        }
    }

    fn encode_event(&self, told: &WatchEvent) -> Bytes {
        let resource = self.selector.resource;
        let (kind, object) = match told {
            WatchEvent::Change(ObjectChange { event_type: kind, object: item, version }) => {
                (*kind, self.representation.render_object(resource, item, *version))
            }
            WatchEvent::Bookmark { version, initial_events_end: initial_end } => {
                ("BOOKMARK", self.representation.render_bookmark(resource, *version, *initial_end))
            }
            WatchEvent::Expired => ("ERROR", json!(ErrorResponse::expired().status)),
        };
        encode_line(kind, &object)
    }
}

fn encode_line(kind: &str, object: &Value) -> Bytes {
    let mut line = json!({ "type": kind, "object": object }).to_string();
    line.push('\n');
    line.into()
}

async fn tick(interval: Option<&mut Interval>) {
    match interval {
        Some(interval) => {
            interval.tick().await;
        }
        None => std::future::pending().await,
    }
}
