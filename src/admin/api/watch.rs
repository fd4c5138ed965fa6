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

/// The longest duration of a watch, in seconds. A client resumes with another one.
const MAX_WATCH_SECONDS: u64 = 3600;
/// The interval between bookmarks, for clients that allow them.
const BOOKMARK_INTERVAL: Duration = Duration::from_mins(1);

/// The state of a watch.
///
/// It compares snapshots only after its reader has received the previous events. Nothing queues up, and a slow reader
/// misses only states that did not last.
struct WatchStream {
    app: App,
    store: watch::Receiver<StatusSnapshot>,
    selector: Selector,
    representation: Representation,
    /// The snapshot up to which events were created; some of them may be in `pending`.
    sent_snapshot: StatusSnapshot,
    pending: VecDeque<WatchEvent>,
    bookmark_interval: Option<Interval>,
    deadline: Instant,
}

/// An event of a watch.
enum WatchEvent {
    Change(ObjectChange),
    /// All events up to a version were sent.
    Bookmark {
        version: u64,
        initial_events_end: bool,
    },
    /// The version to resume from is no longer in the history. Ends the watch.
    Expired,
}

/// Starts a watch with the existing objects, or from the resource version of the request.
pub(super) fn start(
    app: &App,
    selector: Selector,
    representation: Representation,
    parameters: &Parameters,
) -> Result<Response, ErrorResponse> {
    let mut store = app.state.store.clone();
    let now = store.borrow_and_update().clone();
    let version = now.resource_version;
    let from = parameters.resource_version.filter(|from| *from > 0);
    if from.is_some_and(|from| from > version) {
        return Err(ErrorResponse::resource_version_too_large(version));
    }
    let mut pending = VecDeque::new();
    // Without a version, a watch starts with the existing objects, unless `sendInitialEvents` is false.
    if parameters.send_initial_events.unwrap_or(from.is_none()) {
        let existing = objects(&now, selector.resource).filter(|item| selector.matches(item));
        pending.extend(existing.map(|item| {
            WatchEvent::Change(ObjectChange { event_type: "ADDED", version: item.version, object: item })
        }));
        if parameters.send_initial_events == Some(true) {
            pending.push_back(WatchEvent::Bookmark { version, initial_events_end: true });
        }
    } else if let Some(from) = from.filter(|from| *from < version) {
        match app.history.at_or_before(from) {
            Some(before) => {
                pending.extend(changes(&selector, &before, &now, from).into_iter().map(WatchEvent::Change));
            }
            None => pending.push_back(WatchEvent::Expired),
        }
    }
    app.history.record(&now);
    let bookmarks = parameters.allow_bookmarks.then(|| {
        let mut bookmarks = interval(BOOKMARK_INTERVAL);
        bookmarks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        bookmarks.reset();
        bookmarks
    });
    let duration_seconds =
        parameters.timeout_seconds.unwrap_or(MAX_WATCH_SECONDS).clamp(1, MAX_WATCH_SECONDS);
    let watch = WatchStream {
        app: app.clone(),
        store,
        selector,
        representation,
        sent_snapshot: now,
        pending,
        bookmark_interval: bookmarks,
        deadline: Instant::now() + Duration::from_secs(duration_seconds),
    };
    let lines = unfold(Some(watch), async |watch| {
        let mut watch = watch?;
        let event = watch.next_event().await?;
        let line = watch.encode_event(&event);
        let remaining = (!matches!(event, WatchEvent::Expired)).then_some(watch);
        Some((Ok::<_, Infallible>(line), remaining))
    });
    Ok(([(CONTENT_TYPE, "application/json")], Body::from_stream(lines)).into_response())
}

impl WatchStream {
    async fn next_event(&mut self) -> Option<WatchEvent> {
        loop {
            if let Some(event) = self.pending.pop_front() {
                return Some(event);
            }
            tokio::select! {
                () = self.app.state.stop.cancelled() => return None,
                () = sleep_until(self.deadline) => return None,
                changed = self.store.changed() => changed.ok()?,
                () = tick(self.bookmark_interval.as_mut()) => {
                    let version = self.sent_snapshot.resource_version;
                    return Some(WatchEvent::Bookmark { version, initial_events_end: false });
                }
            }
            let now = self.store.borrow_and_update().clone();
            let changes =
                changes(&self.selector, &self.sent_snapshot, &now, self.sent_snapshot.resource_version);
            if !changes.is_empty() {
                // The client may resume from the version of any of them.
                self.app.history.record(&self.sent_snapshot);
                self.app.history.record(&now);
            }
            self.pending.extend(changes.into_iter().map(WatchEvent::Change));
            self.sent_snapshot = now;
        }
    }

    fn encode_event(&self, event: &WatchEvent) -> Bytes {
        let resource = self.selector.resource;
        let (event_type, object) = match event {
            WatchEvent::Change(ObjectChange { event_type, object: item, version }) => {
                (*event_type, self.representation.render_object(resource, item, *version))
            }
            WatchEvent::Bookmark { version, initial_events_end } => {
                ("BOOKMARK", self.representation.render_bookmark(resource, *version, *initial_events_end))
            }
            WatchEvent::Expired => ("ERROR", json!(ErrorResponse::expired().status)),
        };
        encode_line(event_type, &object)
    }
}

fn encode_line(event_type: &str, object: &Value) -> Bytes {
    let mut line = json!({ "type": event_type, "object": object }).to_string();
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
