//! Streams that tell agents of changes: the GET stream of a session, and `subscriptions/listen`.
//!
//! Level-triggered: a stream compares the version of its view with what its agent knows, and says that the
//! list changed. Nothing is queued, so an agent that reads slowly costs nothing and misses nothing.

use std::collections::VecDeque;
use std::future::pending;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::Stream;
use futures_util::stream::unfold;
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};

use super::Gateway;
use super::agent_subscriptions::{AgentNotification, AgentSubscriptions, Notifications};
use super::answer;
use super::body::{KEEP_ALIVE, event};
use super::session::{OpenStream, TOLD};
use crate::catalog::View;
use crate::upstream::{PublishedNotification, ViewName};
use crate::wire::{JsonRpcId, ListKind, json_string};

/// A resource changed that the agent watches.
const UPDATED: &str = "notifications/resources/updated";
/// A quiet stream says so.
const KEEP_ALIVE_EVERY: Duration = Duration::from_secs(15);
/// An agent that listens may have listed so long before, and would not hear of a change in between.
const LISTED_BEFORE: Duration = Duration::from_secs(5);

/// What every stream has.
pub(super) struct StreamContext {
    pub(super) gateway: Arc<Gateway>,
    pub(super) view: ViewName,
}

/// The GET stream of a legacy session.
pub(super) fn session_stream(source: StreamContext, stream: OpenStream) -> impl Stream<Item = Bytes> + Send {
    let session = stream.session.clone();
    let (ears, untold) = session.new_ears(&source.gateway.listeners).unzip();
    // What the agent has is known better by its session.
    let watcher = Watcher::new(source, |_, _| 0, ears, untold.unwrap_or_default());
    unfold((watcher, stream, session), async |(mut watcher, stream, session)| {
        let woken = loop {
            let changed = session.interested();
            if watcher.ears.is_none() && stream.tells() {
                watcher.ears = session.take_ears();
            }
            tokio::select! {
                woken = watcher.wait(
                    |list, version| session.may_miss(list, version) && stream.tells(),
                    |told, view| {
                        let heard = stream.tells().then(|| session.sift(told, |namespace| view.shows(namespace)));
                        heard.unwrap_or_default()
                    },
                ) => break woken,
                () = changed => {}
                () = session.ended() => return None,
            }
        };
        let bytes = match woken {
            Woken::Changed(list) => event(message(list.notice(), None).as_bytes()),
            Woken::News(AgentNotification::Updated(uri)) => {
                event(message(UPDATED, Some(&uri_member(&uri))).as_bytes())
            }
            Woken::News(AgentNotification::Logged(message)) => event(&message),
            Woken::Quiet => KEEP_ALIVE,
            Woken::Stopped => return None,
        };
        Some((bytes, (watcher, stream, session)))
    })
}

/// The stream that answers `subscriptions/listen`: what was accepted, then notices, and at the end a result.
pub(super) fn listen_stream(
    source: StreamContext,
    id: JsonRpcId,
    lists: Vec<ListKind>,
    mut interest: AgentSubscriptions,
) -> impl Stream<Item = Bytes> + Send {
    enum Next {
        Acknowledge,
        Notices,
        End,
    }
    let changed_lately =
        |view: &View, list| view.changed_at(list).is_some_and(|at| at.elapsed() < LISTED_BEFORE);
    let told = |view: &View, list| if changed_lately(view, list) { 0 } else { view.version(list) + 1 };
    let watcher = Watcher::new(source, told, interest.take_ears(), Vec::new());
    let meta = format!(
        r#""_meta":{{"io.modelcontextprotocol/subscriptionId":{}}}"#,
        String::from_utf8_lossy(id.as_bytes())
    );
    let listener = Listener { id, meta, lists, interest };
    unfold((watcher, listener, Next::Acknowledge), move |(mut watcher, listener, next)| async move {
        let notice = |method: &str, more: &str| {
            let members = format!("{}{more}", listener.meta);
            event(message(method, Some(&members)).as_bytes())
        };
        let bytes = match next {
            Next::Acknowledge => notice("notifications/subscriptions/acknowledged", &listener.accepted()),
            Next::Notices => {
                let woken = watcher.wait(
                    |list, _| listener.lists.contains(&list),
                    |told, view| listener.interest.sift(told, |namespace| view.shows(namespace)),
                );
                match woken.await {
                    Woken::Changed(list) => notice(list.notice(), ""),
                    Woken::News(AgentNotification::Updated(uri)) => {
                        notice(UPDATED, &format!(",{}", uri_member(&uri)))
                    }
                    // Log messages belong to requests in this era.
                    Woken::News(AgentNotification::Logged(_)) | Woken::Quiet => KEEP_ALIVE,
                    Woken::Stopped => {
                        let end = format!(r#"{{"resultType":"complete",{}}}"#, listener.meta);
                        let end = event(&answer::result(&listener.id, &[end.as_bytes()]));
                        return Some((end, (watcher, listener, Next::End)));
                    }
                }
            }
            Next::End => return None,
        };
        Some((bytes, (watcher, listener, Next::Notices)))
    })
}

/// Who listens.
struct Listener {
    id: JsonRpcId,
    /// The member that every notice carries.
    meta: String,
    lists: Vec<ListKind>,
    interest: AgentSubscriptions,
}

impl Listener {
    /// What it is told of, as a member of the acknowledgement.
    fn accepted(&self) -> String {
        let lists = self.lists.iter().map(|list| format!(r#""{}":true"#, list.filter()));
        let uris: Vec<_> = self.interest.watched().collect();
        let uris =
            (!uris.is_empty()).then(|| format!(r#""resourceSubscriptions":{}"#, serde_json::json!(uris)));
        let accepted: Vec<_> = lists.chain(uris).collect();
        format!(r#","notifications":{{{}}}"#, accepted.join(","))
    }
}

fn message(method: &str, params: Option<&str>) -> String {
    let params = params.map(|params| format!(r#","params":{{{params}}}"#)).unwrap_or_default();
    format!(r#"{{"jsonrpc":"2.0","method":"{method}"{params}}}"#)
}

fn uri_member(uri: &str) -> String {
    format!(r#""uri":{}"#, json_string(uri))
}

/// Waits for changes of one view's lists, and for what servers tell.
struct Watcher {
    source: StreamContext,
    changes: watch::Receiver<u64>,
    /// The version of each list last told, plus one.
    told: [(ListKind, u64); 3],
    ears: Option<Notifications>,
    /// What was heard and is not told yet.
    untold: VecDeque<AgentNotification>,
    /// When something was sent last.
    sent: Instant,
}

enum Woken {
    Changed(ListKind),
    News(AgentNotification),
    Quiet,
    Stopped,
}

impl Watcher {
    fn new(
        source: StreamContext,
        told: impl Fn(&View, ListKind) -> u64,
        ears: Option<Notifications>,
        untold: Vec<AgentNotification>,
    ) -> Self {
        source.gateway.metrics.streams.inc();
        let changes = source.gateway.catalog.changes();
        let told = {
            let generation = source.gateway.catalog.load();
            let view = generation.view(&source.view);
            TOLD.map(|list| (list, told(view, list)))
        };
        Self { source, changes, told, ears, untold: untold.into(), sent: Instant::now() }
    }

    /// Waits until there is something to send. Not told are changes that the agent is said not to miss. Cancel
    /// safe.
    async fn wait(
        &mut self,
        misses: impl Fn(ListKind, u64) -> bool,
        sift: impl Fn(Option<&PublishedNotification>, &ViewName) -> Vec<AgentNotification>,
    ) -> Woken {
        loop {
            if let Some(list) = self.changed(&misses) {
                self.sent = Instant::now();
                return Woken::Changed(list);
            }
            if let Some(news) = self.untold.pop_front() {
                self.sent = Instant::now();
                return Woken::News(news);
            }
            tokio::select! {
                changed = self.changes.changed() => if changed.is_err() {
                    return Woken::Stopped;
                },
                told = hear(&mut self.ears) => self.untold.extend(sift(told.as_deref(), &self.source.view)),
                () = sleep_until(self.sent + KEEP_ALIVE_EVERY) => {
                    self.sent = Instant::now();
                    return Woken::Quiet;
                }
                () = self.source.gateway.stop.cancelled() => return Woken::Stopped,
            }
        }
    }

    /// A list that is another than the agent was told of.
    fn changed(&mut self, misses: impl Fn(ListKind, u64) -> bool) -> Option<ListKind> {
        let generation = self.source.gateway.catalog.load();
        let view = generation.view(&self.source.view);
        self.told.iter_mut().find_map(|(list, told)| {
            let version = view.version(*list);
            (version + 1 > *told && misses(*list, version)).then(|| {
                *told = version + 1;
                *list
            })
        })
    }
}

/// The next thing that a server told; `None` stands for what was lost, since it came too fast.
async fn hear(ears: &mut Option<Notifications>) -> Option<Arc<PublishedNotification>> {
    let Some(ears) = ears else {
        return pending().await;
    };
    match ears.recv().await {
        Ok(told) => Some(told),
        Err(RecvError::Lagged(_)) => None,
        Err(RecvError::Closed) => pending().await,
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        self.source.gateway.metrics.streams.dec();
    }
}
