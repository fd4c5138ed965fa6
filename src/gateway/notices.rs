//! Streams that tell agents of changes: the GET stream of a session, and `subscriptions/listen`.
//!
//! Level-triggered: a stream compares the version of its view with what its agent knows, and says that the
//! list changed. Nothing is queued, so an agent that reads slowly costs nothing and misses nothing.

use std::time::Duration;

use bytes::Bytes;
use futures_util::Stream;
use futures_util::stream::unfold;
use prometheus_client::metrics::gauge::Gauge;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use super::answer;
use super::body::{KEEP_ALIVE, event};
use super::session::OpenStream;
use crate::catalog::{Catalog, View, ViewName};
use crate::wire::Id;

/// A quiet stream says so.
const KEEP_ALIVE_EVERY: Duration = Duration::from_secs(15);
/// An agent that listens may have listed so long before, and would not hear of a change in between.
const LISTED_BEFORE: Duration = Duration::from_secs(5);

/// What every stream has.
pub(super) struct Source {
    pub(super) catalog: Catalog,
    pub(super) view: ViewName,
    /// Ends all streams.
    pub(super) stop: CancellationToken,
    /// Counts open streams.
    pub(super) open: Gauge,
}

/// The GET stream of a legacy session.
pub(super) fn session_stream(source: Source, stream: OpenStream) -> impl Stream<Item = Bytes> + Send {
    let mut watcher = Watcher::new(source);
    // What the agent has is known better by its session.
    watcher.told = 0;
    unfold((watcher, stream), async |(mut watcher, stream)| {
        let session = stream.session.clone();
        let woken = tokio::select! {
            woken = watcher.wait(|version| session.may_miss(version) && stream.tells()) => woken,
            () = session.ended() => return None,
        };
        let bytes = match woken {
            Woken::Changed => event(br#"{"jsonrpc":"2.0","method":"notifications/tools/list_changed"}"#),
            Woken::Quiet => KEEP_ALIVE,
            Woken::Stopped => return None,
        };
        Some((bytes, (watcher, stream)))
    })
}

/// The stream that answers `subscriptions/listen`: what was accepted, then notices, and at the end a result.
pub(super) fn listen_stream(source: Source, id: Id, tools: bool) -> impl Stream<Item = Bytes> + Send {
    enum Next {
        Acknowledge,
        Notices,
        End,
    }
    let mut watcher = Watcher::new(source);
    if tools && watcher.view(View::tools_changed_at).is_some_and(|at| at.elapsed() < LISTED_BEFORE) {
        watcher.told = 0;
    }
    unfold((watcher, id, Next::Acknowledge), move |(mut watcher, id, next)| async move {
        let meta = format!(
            r#""_meta":{{"io.modelcontextprotocol/subscriptionId":{}}}"#,
            String::from_utf8_lossy(id.as_bytes())
        );
        let notice = |method: &str, more: &str| {
            event(format!(r#"{{"jsonrpc":"2.0","method":"{method}","params":{{{meta}{more}}}}}"#).as_bytes())
        };
        match next {
            Next::Acknowledge => {
                let accepted = if tools {
                    r#","notifications":{"toolsListChanged":true}"#
                } else {
                    r#","notifications":{}"#
                };
                let acknowledged = notice("notifications/subscriptions/acknowledged", accepted);
                Some((acknowledged, (watcher, id, Next::Notices)))
            }
            Next::Notices => match watcher.wait(|_| tools).await {
                Woken::Changed => {
                    let changed = notice("notifications/tools/list_changed", "");
                    Some((changed, (watcher, id, Next::Notices)))
                }
                Woken::Quiet => Some((KEEP_ALIVE, (watcher, id, Next::Notices))),
                Woken::Stopped => {
                    let end = answer::result(&id, &format!(r#"{{"resultType":"complete",{meta}}}"#));
                    Some((event(&end), (watcher, id, Next::End)))
                }
            },
            Next::End => None,
        }
    })
}

/// Waits for changes of one view's list.
struct Watcher {
    source: Source,
    changes: watch::Receiver<u64>,
    /// The version last told, plus one.
    told: u64,
    /// When something was sent last.
    sent: Instant,
}

enum Woken {
    Changed,
    Quiet,
    Stopped,
}

impl Watcher {
    fn new(source: Source) -> Self {
        source.open.inc();
        let changes = source.catalog.changes();
        let mut watcher = Self { source, changes, told: 0, sent: Instant::now() };
        watcher.told = watcher.view(View::tools_version) + 1;
        watcher
    }

    fn view<T>(&self, read: impl FnOnce(&View) -> T) -> T {
        read(self.source.catalog.load().view(&self.source.view))
    }

    /// Waits until there is something to send. Not told are changes that the agent is said not to miss.
    async fn wait(&mut self, misses: impl Fn(u64) -> bool) -> Woken {
        loop {
            let version = self.view(View::tools_version);
            if version + 1 > self.told && misses(version) {
                self.told = version + 1;
                self.sent = Instant::now();
                return Woken::Changed;
            }
            tokio::select! {
                changed = self.changes.changed() => if changed.is_err() {
                    return Woken::Stopped;
                },
                () = sleep_until(self.sent + KEEP_ALIVE_EVERY) => {
                    self.sent = Instant::now();
                    return Woken::Quiet;
                }
                () = self.source.stop.cancelled() => return Woken::Stopped,
            }
        }
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        self.source.open.dec();
    }
}
