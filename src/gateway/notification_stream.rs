//! Notification streams: the GET stream of a session, and `subscriptions/listen`.
//!
//! List changes are level-triggered: a stream compares the version of a list with the version that its agent has, and
//! sends a notification if they differ. They are not queued, so a slow agent costs no memory and misses no change.

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

/// The notification for a change of a subscribed resource.
const RESOURCE_UPDATED_METHOD: &str = "notifications/resources/updated";
/// The time without a notification after which a stream sends a keep-alive comment.
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(15);
/// The age up to which a list change is notified again to an agent that starts to listen. The agent may have requested
/// the list just before the change.
const RECENT_CHANGE_WINDOW: Duration = Duration::from_secs(5);

/// The gateway and the view of a stream.
pub(super) struct StreamContext {
    pub(super) gateway: Arc<Gateway>,
    pub(super) view: ViewName,
}

/// Returns the GET stream of a legacy session.
pub(super) fn session_stream(context: StreamContext, stream: OpenStream) -> impl Stream<Item = Bytes> + Send {
    let session = stream.session.clone();
    let (receiver, missed) = session.receiver_for_new_stream(&context.gateway.subscriptions).unzip();
    // The session records the list versions of the agent.
    let watcher = ViewWatcher::new(context, |_, _| 0, receiver, missed.unwrap_or_default());
    unfold((watcher, stream, session), async |(mut watcher, stream, session)| {
        let event = loop {
            let changed = session.subscriptions_changed();
            if watcher.receiver.is_none() && stream.is_newest() {
                watcher.receiver = session.take_receiver();
            }
            tokio::select! {
                event = watcher.wait(
                    |list, version| session.may_be_outdated(list, version) && stream.is_newest(),
                    |notification, view| {
                        let selected = stream.is_newest().then(|| {
                            session.select_notifications(notification, |namespace| view.shows(namespace))
                        });
                        selected.unwrap_or_default()
                    },
                ) => break event,
                () = changed => {}
                () = session.ended() => return None,
            }
        };
        let bytes = match event {
            StreamEvent::ListChanged(list) => {
                sse_event(notification_message(list.changed_notification(), None).as_bytes())
            }
            StreamEvent::Notification(AgentNotification::ResourceUpdated(uri)) => {
                sse_event(notification_message(RESOURCE_UPDATED_METHOD, Some(&uri_member(&uri))).as_bytes())
            }
            StreamEvent::Notification(AgentNotification::Message(message)) => sse_event(&message),
            StreamEvent::Quiet => KEEP_ALIVE_COMMENT,
            StreamEvent::Stopped => return None,
        };
        Some((bytes, (watcher, stream, session)))
    })
}

/// Returns the response stream of `subscriptions/listen`: the acknowledgement, then notifications, and a result at the
/// end.
pub(super) fn listen_stream(
    context: StreamContext,
    id: JsonRpcId,
    lists: Vec<ListKind>,
    mut subscriptions: AgentSubscriptions,
) -> impl Stream<Item = Bytes> + Send {
    enum ListenState {
        Acknowledge,
        Notify,
        End,
    }
    let recently_changed =
        |view: &View, list| view.changed_at(list).is_some_and(|at| at.elapsed() < RECENT_CHANGE_WINDOW);
    let notified = |view: &View, list| if recently_changed(view, list) { 0 } else { view.version(list) + 1 };
    let watcher = ViewWatcher::new(context, notified, subscriptions.take_receiver(), Vec::new());
    let meta_member = format!(
        r#""_meta":{{"io.modelcontextprotocol/subscriptionId":{}}}"#,
        String::from_utf8_lossy(id.as_bytes())
    );
    let subscription = ListenSubscription { id, meta_member, lists, subscriptions };
    unfold(
        (watcher, subscription, ListenState::Acknowledge),
        move |(mut watcher, subscription, next)| async move {
            let encode = |method: &str, more: &str| {
                let members = format!("{}{more}", subscription.meta_member);
                sse_event(notification_message(method, Some(&members)).as_bytes())
            };
            let bytes = match next {
                ListenState::Acknowledge => {
                    encode("notifications/subscriptions/acknowledged", &subscription.accepted_filter())
                }
                ListenState::Notify => {
                    let event = watcher.wait(
                        |list, _| subscription.lists.contains(&list),
                        |notification, view| {
                            subscription
                                .subscriptions
                                .select_notifications(notification, |namespace| view.shows(namespace))
                        },
                    );
                    match event.await {
                        StreamEvent::ListChanged(list) => encode(list.changed_notification(), ""),
                        StreamEvent::Notification(AgentNotification::ResourceUpdated(uri)) => {
                            encode(RESOURCE_UPDATED_METHOD, &format!(",{}", uri_member(&uri)))
                        }
                        // In this era such messages are sent only in the response to a request.
                        StreamEvent::Notification(AgentNotification::Message(_)) | StreamEvent::Quiet => {
                            KEEP_ALIVE_COMMENT
                        }
                        StreamEvent::Stopped => {
                            let end = format!(r#"{{"resultType":"complete",{}}}"#, subscription.meta_member);
                            let end =
                                sse_event(&response::result_message(&subscription.id, &[end.as_bytes()]));
                            return Some((end, (watcher, subscription, ListenState::End)));
                        }
                    }
                }
                ListenState::End => return None,
            };
            Some((bytes, (watcher, subscription, ListenState::Notify)))
        },
    )
}

/// The state of one `subscriptions/listen` request.
struct ListenSubscription {
    id: JsonRpcId,
    /// The `_meta` member that every notification of the stream carries.
    meta_member: String,
    lists: Vec<ListKind>,
    subscriptions: AgentSubscriptions,
}

impl ListenSubscription {
    /// Returns the accepted filter, as a member of the acknowledgement.
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

/// Waits for list changes of one view, and for notifications of its servers.
struct ViewWatcher {
    context: StreamContext,
    changes: watch::Receiver<u64>,
    /// The version of each list that was last notified, plus one.
    notified_versions: [(ListKind, u64); 3],
    receiver: Option<NotificationReceiver>,
    /// The notifications that were received and not yet sent.
    pending: VecDeque<AgentNotification>,
    /// The time of the last event.
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
        context: StreamContext,
        notified_versions: impl Fn(&View, ListKind) -> u64,
        receiver: Option<NotificationReceiver>,
        pending: Vec<AgentNotification>,
    ) -> Self {
        context.gateway.metrics.streams.inc();
        let changes = context.gateway.catalog.changes();
        let notified_versions = {
            let generation = context.gateway.catalog.load();
            let view = generation.view(&context.view);
            NOTIFIED_LISTS.map(|list| (list, notified_versions(view, list)))
        };
        Self {
            context,
            changes,
            notified_versions,
            receiver,
            pending: pending.into(),
            last_sent_at: Instant::now(),
        }
    }

    /// Waits for the next event of the stream. A list change is skipped if `is_outdated` is false for it. Cancel safe.
    async fn wait(
        &mut self,
        is_outdated: impl Fn(ListKind, u64) -> bool,
        select: impl Fn(Option<&PublishedNotification>, &ViewName) -> Vec<AgentNotification>,
    ) -> StreamEvent {
        loop {
            if let Some(list) = self.next_changed_list(&is_outdated) {
                self.last_sent_at = Instant::now();
                return StreamEvent::ListChanged(list);
            }
            if let Some(notification) = self.pending.pop_front() {
                self.last_sent_at = Instant::now();
                return StreamEvent::Notification(notification);
            }
            tokio::select! {
                changed = self.changes.changed() => if changed.is_err() {
                    return StreamEvent::Stopped;
                },
                notification = receive(&mut self.receiver) => {
                    self.pending.extend(select(notification.as_deref(), &self.context.view));
                }
                () = sleep_until(self.last_sent_at + KEEP_ALIVE_INTERVAL) => {
                    self.last_sent_at = Instant::now();
                    return StreamEvent::Quiet;
                }
                () = self.context.gateway.stop.cancelled() => return StreamEvent::Stopped,
            }
        }
    }

    /// Returns a list that changed since its last notification, and marks it as notified.
    fn next_changed_list(&mut self, is_outdated: impl Fn(ListKind, u64) -> bool) -> Option<ListKind> {
        let generation = self.context.gateway.catalog.load();
        let view = generation.view(&self.context.view);
        self.notified_versions.iter_mut().find_map(|(list, notified)| {
            let version = view.version(*list);
            (version + 1 > *notified && is_outdated(*list, version)).then(|| {
                *notified = version + 1;
                *list
            })
        })
    }
}

/// Receives the next notification of a server; `None` stands for notifications that were lost because they arrived too
/// fast.
async fn receive(receiver: &mut Option<NotificationReceiver>) -> Option<Arc<PublishedNotification>> {
    let Some(receiver) = receiver else {
        return pending().await;
    };
    match receiver.recv().await {
        Ok(notification) => Some(notification),
        Err(RecvError::Lagged(_)) => None,
        Err(RecvError::Closed) => pending().await,
    }
}

impl Drop for ViewWatcher {
    fn drop(&mut self) {
        self.context.gateway.metrics.streams.dec();
    }
}
