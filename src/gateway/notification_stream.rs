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
use super::agent_subscriptions::{AgentNotification, AgentSubscriptions, NotificationReceiver};
use super::body::{KEEP_ALIVE_COMMENT, sse_event};
use super::response;
use super::session::{NOTIFIED_LISTS, OpenStream};
use crate::catalog::View;
use crate::upstream::{PublishedNotification, ViewName};
use crate::wire::{JsonRpcId, ListKind, json_string};

/// A resource changed that the agent watches.
const RESOURCE_UPDATED_METHOD: &str = "notifications/resources/updated";
/// A quiet stream says so.
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(15);
/// An agent that listens may have listed so long before, and would not hear of a change in between.
const RECENT_CHANGE_WINDOW: Duration = Duration::from_secs(5);

/// What every stream has.
pub(super) struct StreamContext {
    pub(super) gateway: Arc<Gateway>,
    pub(super) view: ViewName,
}

/// The GET stream of a legacy session.
pub(super) fn session_stream(source: StreamContext, stream: OpenStream) -> impl Stream<Item = Bytes> + Send {
    let session = stream.session.clone();
    let (ears, untold) = session.receiver_for_new_stream(&source.gateway.subscriptions).unzip();
    // What the agent has is known better by its session.
    let watcher = ViewWatcher::new(source, |_, _| 0, ears, untold.unwrap_or_default());
    unfold((watcher, stream, session), async |(mut watcher, stream, session)| {
        let woken = loop {
            let changed = session.subscriptions_changed();
            if watcher.receiver.is_none() && stream.is_newest() {
                watcher.receiver = session.take_receiver();
            }
            tokio::select! {
                woken = watcher.wait(
                    |list, version| session.may_be_outdated(list, version) && stream.is_newest(),
                    |told, view| {
                        let heard = stream.is_newest().then(|| session.select_notifications(told, |namespace| view.shows(namespace)));
                        heard.unwrap_or_default()
                    },
                ) => break woken,
                () = changed => {}
                () = session.ended() => return None,
            }
        };
        let bytes = match woken {
            StreamEvent::ListChanged(list) => {
                sse_event(notification_message(list.changed_notification(), None).as_bytes())
            }
            StreamEvent::Notification(AgentNotification::ResourceUpdated(uri)) => {
                sse_event(notification_message(RESOURCE_UPDATED_METHOD, Some(&uri_member(&uri))).as_bytes())
            }
            StreamEvent::Notification(AgentNotification::LogMessage(message)) => sse_event(&message),
            StreamEvent::Quiet => KEEP_ALIVE_COMMENT,
            StreamEvent::Stopped => return None,
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
    enum ListenState {
        Acknowledge,
        Notify,
        End,
    }
    let changed_lately =
        |view: &View, list| view.changed_at(list).is_some_and(|at| at.elapsed() < RECENT_CHANGE_WINDOW);
    let told = |view: &View, list| if changed_lately(view, list) { 0 } else { view.version(list) + 1 };
    let watcher = ViewWatcher::new(source, told, interest.take_receiver(), Vec::new());
    let meta = format!(
        r#""_meta":{{"io.modelcontextprotocol/subscriptionId":{}}}"#,
        String::from_utf8_lossy(id.as_bytes())
    );
    let listener = ListenSubscription { id, meta_member: meta, lists, subscriptions: interest };
    unfold((watcher, listener, ListenState::Acknowledge), move |(mut watcher, listener, next)| async move {
        let notice = |method: &str, more: &str| {
            let members = format!("{}{more}", listener.meta_member);
            sse_event(notification_message(method, Some(&members)).as_bytes())
        };
        let bytes = match next {
            ListenState::Acknowledge => {
                notice("notifications/subscriptions/acknowledged", &listener.accepted_filter())
            }
            ListenState::Notify => {
                let woken = watcher.wait(
                    |list, _| listener.lists.contains(&list),
                    |told, view| {
                        listener.subscriptions.select_notifications(told, |namespace| view.shows(namespace))
                    },
                );
                match woken.await {
                    StreamEvent::ListChanged(list) => notice(list.changed_notification(), ""),
                    StreamEvent::Notification(AgentNotification::ResourceUpdated(uri)) => {
                        notice(RESOURCE_UPDATED_METHOD, &format!(",{}", uri_member(&uri)))
                    }
                    // Log messages belong to requests in this era.
                    StreamEvent::Notification(AgentNotification::LogMessage(_)) | StreamEvent::Quiet => {
                        KEEP_ALIVE_COMMENT
                    }
                    StreamEvent::Stopped => {
                        let end = format!(r#"{{"resultType":"complete",{}}}"#, listener.meta_member);
                        let end = sse_event(&response::result_message(&listener.id, &[end.as_bytes()]));
                        return Some((end, (watcher, listener, ListenState::End)));
                    }
                }
            }
            ListenState::End => return None,
        };
        Some((bytes, (watcher, listener, ListenState::Notify)))
    })
}

/// Who listens.
struct ListenSubscription {
    id: JsonRpcId,
    /// The member that every notice carries.
    meta_member: String,
    lists: Vec<ListKind>,
    subscriptions: AgentSubscriptions,
}

impl ListenSubscription {
    /// What it is told of, as a member of the acknowledgement.
    fn accepted_filter(&self) -> String {
        let lists = self.lists.iter().map(|list| format!(r#""{}":true"#, list.listen_filter_member()));
        let uris: Vec<_> = self.subscriptions.resource_uris().collect();
        let uris =
            (!uris.is_empty()).then(|| format!(r#""resourceSubscriptions":{}"#, serde_json::json!(uris)));
        let accepted: Vec<_> = lists.chain(uris).collect();
        format!(r#","notifications":{{{}}}"#, accepted.join(","))
    }
}

fn notification_message(method: &str, params: Option<&str>) -> String {
    let params = params.map(|params| format!(r#","params":{{{params}}}"#)).unwrap_or_default();
    format!(r#"{{"jsonrpc":"2.0","method":"{method}"{params}}}"#)
}

fn uri_member(uri: &str) -> String {
    format!(r#""uri":{}"#, json_string(uri))
}

/// Waits for changes of one view's lists, and for what servers tell.
struct ViewWatcher {
    context: StreamContext,
    changes: watch::Receiver<u64>,
    /// The version of each list last told, plus one.
    notified_versions: [(ListKind, u64); 3],
    receiver: Option<NotificationReceiver>,
    /// What was heard and is not told yet.
    pending: VecDeque<AgentNotification>,
    /// When something was sent last.
    last_sent_at: Instant,
}

enum StreamEvent {
    ListChanged(ListKind),
    Notification(AgentNotification),
    Quiet,
    Stopped,
}

impl ViewWatcher {
    fn new(
        source: StreamContext,
        told: impl Fn(&View, ListKind) -> u64,
        ears: Option<NotificationReceiver>,
        untold: Vec<AgentNotification>,
    ) -> Self {
        source.gateway.metrics.streams.inc();
        let changes = source.gateway.catalog.changes();
        let told = {
            let generation = source.gateway.catalog.load();
            let view = generation.view(&source.view);
            NOTIFIED_LISTS.map(|list| (list, told(view, list)))
        };
        Self {
            context: source,
            changes,
            notified_versions: told,
            receiver: ears,
            pending: untold.into(),
            last_sent_at: Instant::now(),
        }
    }

    /// Waits until there is something to send. Not told are changes that the agent is said not to miss. Cancel
    /// safe.
    async fn wait(
        &mut self,
        misses: impl Fn(ListKind, u64) -> bool,
        sift: impl Fn(Option<&PublishedNotification>, &ViewName) -> Vec<AgentNotification>,
    ) -> StreamEvent {
        loop {
            if let Some(list) = self.next_changed_list(&misses) {
                self.last_sent_at = Instant::now();
                return StreamEvent::ListChanged(list);
            }
            if let Some(news) = self.pending.pop_front() {
                self.last_sent_at = Instant::now();
                return StreamEvent::Notification(news);
            }
            tokio::select! {
                changed = self.changes.changed() => if changed.is_err() {
                    return StreamEvent::Stopped;
                },
                told = receive(&mut self.receiver) => self.pending.extend(sift(told.as_deref(), &self.context.view)),
                () = sleep_until(self.last_sent_at + KEEP_ALIVE_INTERVAL) => {
                    self.last_sent_at = Instant::now();
                    return StreamEvent::Quiet;
                }
                () = self.context.gateway.stop.cancelled() => return StreamEvent::Stopped,
            }
        }
    }

    /// A list that is another than the agent was told of.
    fn next_changed_list(&mut self, misses: impl Fn(ListKind, u64) -> bool) -> Option<ListKind> {
        let generation = self.context.gateway.catalog.load();
        let view = generation.view(&self.context.view);
        self.notified_versions.iter_mut().find_map(|(list, told)| {
            let version = view.version(*list);
            (version + 1 > *told && misses(*list, version)).then(|| {
                *told = version + 1;
                *list
            })
        })
    }
}

/// The next thing that a server told; `None` stands for what was lost, since it came too fast.
async fn receive(ears: &mut Option<NotificationReceiver>) -> Option<Arc<PublishedNotification>> {
    let Some(ears) = ears else {
        return pending().await;
    };
    match ears.recv().await {
        Ok(told) => Some(told),
        Err(RecvError::Lagged(_)) => None,
        Err(RecvError::Closed) => pending().await,
    }
}

impl Drop for ViewWatcher {
    fn drop(&mut self) {
        self.context.gateway.metrics.streams.dec();
    }
}
