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
use super::item::items;
use super::media::Representation;
use super::parameters::Parameters;
use super::selectors::Selector;
use crate::admin::answer::ErrorResponse;
use crate::admin::app::App;
use crate::report::StatusSnapshot;

/// How long a watch lasts at most, in seconds; a client goes on with the next.
const LONGEST: u64 = 3600;
/// How often a watcher is told how far it is, if it wants to know.
const BOOKMARKS: Duration = Duration::from_mins(1);

/// Where a watch stands. It looks at the store only when its reader has taken what came before, and compares: so
/// nothing queues up, and a slow reader misses only states that did not last.
struct Watch {
    app: App,
    store: watch::Receiver<StatusSnapshot>,
    scope: Selector,
    shape: Representation,
    /// What the client has been shown, and has not taken yet.
    shown: StatusSnapshot,
    ready: VecDeque<Told>,
    bookmarks: Option<Interval>,
    end: Instant,
}

/// What a watcher is told.
enum Told {
    Change(ObjectChange),
    /// Everything up to a version was told.
    Bookmark {
        version: u64,
        initial_end: bool,
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
    let mut store = app.sources.store.clone();
    let now = store.borrow_and_update().clone();
    let version = now.resource_version;
    let from = asked.version.filter(|from| *from > 0);
    if from.is_some_and(|from| from > version) {
        return Err(ErrorResponse::too_new(version));
    }
    let mut ready = VecDeque::new();
    // Without a version, a watch begins with what is there, unless that is not wanted.
    if asked.initial_events.unwrap_or(from.is_none()) {
        let there = items(&now, scope.resource).filter(|item| scope.admits(item));
        ready.extend(
            there.map(|item| Told::Change(ObjectChange { kind: "ADDED", version: item.version, item })),
        );
        if asked.initial_events == Some(true) {
            ready.push_back(Told::Bookmark { version, initial_end: true });
        }
    } else if let Some(from) = from.filter(|from| *from < version) {
        match app.history.since(from) {
            Some(shown) => ready.extend(changes(&scope, &shown, &now, from).into_iter().map(Told::Change)),
            None => ready.push_back(Told::Expired),
        }
    }
    app.history.note(&now);
    let bookmarks = asked.bookmarks.then(|| {
        let mut bookmarks = interval(BOOKMARKS);
        bookmarks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        bookmarks.reset();
        bookmarks
    });
    let lasts = asked.timeout.unwrap_or(LONGEST).clamp(1, LONGEST);
    let watch = Watch {
        app: app.clone(),
        store,
        scope,
        shape,
        shown: now,
        ready,
        bookmarks,
        end: Instant::now() + Duration::from_secs(lasts),
    };
    let lines = unfold(Some(watch), async |watch| {
        let mut watch = watch?;
        let told = watch.next().await?;
        let line = watch.line(&told);
        let rest = (!matches!(told, Told::Expired)).then_some(watch);
        Some((Ok::<_, Infallible>(line), rest))
    });
    Ok(([(CONTENT_TYPE, "application/json")], Body::from_stream(lines)).into_response())
}

impl Watch {
    async fn next(&mut self) -> Option<Told> {
        loop {
            if let Some(told) = self.ready.pop_front() {
                return Some(told);
            }
            tokio::select! {
                () = self.app.sources.stop.cancelled() => return None,
                () = sleep_until(self.end) => return None,
                changed = self.store.changed() => changed.ok()?,
                () = tick(self.bookmarks.as_mut()) => {
                    return Some(Told::Bookmark { version: self.shown.resource_version, initial_end: false });
                }
            }
            let now = self.store.borrow_and_update().clone();
            let changes = changes(&self.scope, &self.shown, &now, self.shown.resource_version);
            if !changes.is_empty() {
                // The client may come back with the version of any of them.
                self.app.history.note(&self.shown);
                self.app.history.note(&now);
            }
            self.ready.extend(changes.into_iter().map(Told::Change));
            self.shown = now;
        }
    }

    fn line(&self, told: &Told) -> Bytes {
        let resource = self.scope.resource;
        let (kind, object) = match told {
            Told::Change(ObjectChange { kind, item, version }) => {
                (*kind, self.shape.object(resource, item, *version))
            }
            Told::Bookmark { version, initial_end } => {
                ("BOOKMARK", self.shape.bookmark(resource, *version, *initial_end))
            }
            Told::Expired => ("ERROR", json!(ErrorResponse::expired().status)),
        };
        line(kind, &object)
    }
}

fn line(kind: &str, object: &Value) -> Bytes {
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
