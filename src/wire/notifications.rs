//! Dispatches messages of a server that belong to no request: to its log, to agents, and to the list refresh.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::Notify;

use super::response::RpcResponse;
use super::secret_mask::SecretMask;
use super::server_message::{self, ReadMessage, ServerMessage};
use super::{ListKind, ProtocolViolation, ServerDescription, ServerLog, lenient};

/// A notification of a server for agents.
#[derive(Clone, Copy, Debug)]
pub enum ServerNotification<'a> {
    /// A subscribed resource changed. Holds the server's own URI.
    ResourceUpdated(&'a str),
    /// A log message. Holds the whole JSON-RPC notification.
    LogMessage(&'a Bytes),
    /// An elicitation by URL is complete. Holds its id and the whole JSON-RPC notification.
    ElicitationComplete(&'a str, &'a Bytes),
}

/// A function that is called with each notification of a server. Cheap to clone.
#[derive(Clone)]
pub struct NotificationHandler(Arc<dyn Fn(ServerNotification<'_>) + Send + Sync>);

impl NotificationHandler {
    /// Wraps a function, which must not block.
    pub fn new(handle: impl Fn(ServerNotification<'_>) + Send + Sync + 'static) -> Self {
        Self(Arc::new(handle))
    }

    /// Calls the function.
    pub fn call(&self, notification: ServerNotification<'_>) {
        (self.0)(notification);
    }
}

impl fmt::Debug for NotificationHandler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("NotificationHandler")
    }
}

/// An event for the owner of a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum DispatchedEvent {
    /// A list changed, or may have changed.
    ListChanged(ListKind),
    /// The server describes itself otherwise than before.
    DescriptionChanged(Arc<ServerDescription>),
    /// The server violated the protocol for the first time in this way, which was tolerated.
    ProtocolViolation(ProtocolViolation),
    /// The list changes that the server declares are not heard, for this reason; `None` if they are again.
    ChangesUnheard(Option<Arc<str>>),
}

/// The receiver of one connection's messages that belong to no request. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub(super) struct NotificationDispatcher(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    log: ServerLog,
    /// The level of text that is not a message in `log`: where it came from.
    unreadable_level: &'static str,
    mask: SecretMask,
    handler: Option<NotificationHandler>,
    /// The events that were not reported yet, each once: a burst of notifications is one change.
    pending_events: Mutex<Vec<DispatchedEvent>>,
    /// The violations that were reported, each once.
    violations: Mutex<Vec<ProtocolViolation>>,
    event_added: Notify,
    /// Set by every message of the server, cleared by [`NotificationDispatcher::received_since_last_check`].
    received: AtomicBool,
    /// Notified if a response calls for a health check.
    health_check_requested: Notify,
}

impl NotificationDispatcher {
    /// `unreadable_level` is the level of text that is not a message in the log: `stdout` or `http`.
    pub(super) fn new(
        log: ServerLog,
        unreadable_level: &'static str,
        handler: Option<NotificationHandler>,
        mask: SecretMask,
    ) -> Self {
        Self(Arc::new(Inner { log, unreadable_level, mask, handler, ..Inner::default() }))
    }

    /// Reads a message. Records a violation of the protocol that is tolerated, and adds text that is not a message to the
    /// server's log.
    pub(super) fn read(&self, message: Bytes) -> (Bytes, ServerMessage) {
        let ReadMessage { text, kind, violation } = server_message::read(message);
        if let Some(violation) = violation {
            self.record_violation(violation);
            tracing::debug!(%violation, "the server sent an invalid MCP message");
            if let ServerMessage::Unreadable(_) = kind {
                self.0.log.push_unreadable(self.0.unreadable_level, &text, &self.0.mask);
            }
        }
        (text, kind)
    }

    /// Adds a line about text that could not be read to the server's log.
    pub(super) fn log_unreadable(&self, text: &str) {
        self.0.log.push_unreadable(self.0.unreadable_level, text.as_bytes(), &self.0.mask);
    }

    /// Returns the first response in a body. An empty body holds none.
    pub(super) fn read_response(&self, body: Bytes) -> Option<RpcResponse> {
        if body.is_empty() {
            return None;
        }
        lenient::messages(body).find_map(|message| match self.read(message) {
            (_, ServerMessage::Response(_, response)) => Some(response),
            _ => None,
        })
    }

    /// Records a violation of the protocol that is tolerated.
    pub(super) fn record_violation(&self, violation: ProtocolViolation) {
        let mut violations = self.0.violations.lock();
        if !violations.contains(&violation) {
            violations.push(violation);
            drop(violations);
            self.add_event(DispatchedEvent::ProtocolViolation(violation));
        }
    }

    /// Returns the mask that redacts, in the server's texts, the values that evenkeel passed to it.
    pub(super) fn mask(&self) -> &SecretMask {
        &self.0.mask
    }

    /// Records that a message of the server arrived.
    pub(super) fn mark_received(&self) {
        self.0.received.store(true, Ordering::Relaxed);
    }

    /// True if a message has arrived since the last call of this method.
    pub(super) fn received_since_last_check(&self) -> bool {
        self.0.received.swap(false, Ordering::Relaxed)
    }

    /// Requests an immediate health check, after a response that makes the session or the credentials doubtful.
    pub(super) fn request_health_check(&self) {
        self.0.health_check_requested.notify_one();
    }

    /// Waits until a health check is requested. Cancel safe; only one task may wait.
    pub(super) async fn health_check_requested(&self) {
        self.0.health_check_requested.notified().await;
    }

    /// Handles a message that belongs to no request.
    pub(super) fn dispatch(&self, kind: &ServerMessage, message: &Bytes) {
        match kind {
            ServerMessage::ListChanged(list) => self.mark_list_changed(*list),
            ServerMessage::ResourceUpdated(uri) => {
                if let Some(handler) = &self.0.handler {
                    handler.call(ServerNotification::ResourceUpdated(uri));
                }
            }
            ServerMessage::ElicitationComplete(id) => {
                if let Some(handler) = &self.0.handler {
                    handler.call(ServerNotification::ElicitationComplete(id, message));
                }
            }
            ServerMessage::LogMessage => {
                self.record_log_message(message);
                if let Some(handler) = &self.0.handler {
                    handler.call(ServerNotification::LogMessage(message));
                }
            }
            _ => {}
        }
    }

    /// Adds a log message to the server's log. The caller of its request gets it as well.
    pub(super) fn record_log_message(&self, message: &Bytes) {
        self.0.log.push_notification(message, &self.0.mask);
    }

    /// Marks a list as changed, or possibly changed.
    pub(super) fn mark_list_changed(&self, list: ListKind) {
        self.add_event(DispatchedEvent::ListChanged(list));
    }

    /// Reports that the server describes itself otherwise than before.
    pub(super) fn report_description(&self, description: Arc<ServerDescription>) {
        self.add_event(DispatchedEvent::DescriptionChanged(description));
    }

    /// Reports why the list changes that the server declares are not heard, and `None` when they are again.
    pub(super) fn report_unheard(&self, why: Option<Arc<str>>) {
        self.add_event(DispatchedEvent::ChangesUnheard(why));
    }

    fn add_event(&self, event: DispatchedEvent) {
        let mut pending = self.0.pending_events.lock();
        if !pending.contains(&event) {
            pending.push(event);
        }
        self.0.event_added.notify_one();
    }

    /// Waits for the next event. Cancel safe; only one task may wait.
    pub(super) async fn next_event(&self) -> DispatchedEvent {
        loop {
            let event = {
                let mut pending = self.0.pending_events.lock();
                if pending.is_empty() { None } else { Some(pending.remove(0)) }
            };
            match event {
                Some(event) => return event,
                None => self.0.event_added.notified().await,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    #[test]
    fn burst_of_list_changes_is_reported_once_per_list() {
        let dispatcher = NotificationDispatcher::default();
        for list in [ListKind::Tools, ListKind::Resources, ListKind::Tools, ListKind::Tools] {
            dispatcher.mark_list_changed(list);
        }
        let next = || dispatcher.next_event().now_or_never();
        assert_eq!(next(), Some(DispatchedEvent::ListChanged(ListKind::Tools)));
        assert_eq!(next(), Some(DispatchedEvent::ListChanged(ListKind::Resources)));
        assert_eq!(next(), None);
        dispatcher.mark_list_changed(ListKind::Prompts);
        assert_eq!(next(), Some(DispatchedEvent::ListChanged(ListKind::Prompts)));
    }

    #[test]
    fn violation_is_reported_once_and_unreadable_text_is_logged_redacted() {
        let log = ServerLog::default();
        let dispatcher = NotificationDispatcher::new(log.clone(), "stdout", None, SecretMask::default());
        let read = |text: &'static str| dispatcher.read(Bytes::from_static(text.as_bytes())).1;
        assert!(matches!(read("Listening on port 3000"), ServerMessage::Unreadable(None)));
        assert!(matches!(read("Ready."), ServerMessage::Unreadable(None)));
        assert!(matches!(read(r#"{"jsonrpc":"2.0","id":1,"result":{}}"#), ServerMessage::Response(..)));
        let next = || dispatcher.next_event().now_or_never();
        assert_eq!(next(), Some(DispatchedEvent::ProtocolViolation(ProtocolViolation::NotJson)));
        assert_eq!(next(), None);
        let lines = log.read(0).lines;
        let lines: Vec<_> = lines.iter().map(|line| (&*line.level, &*line.text)).collect();
        assert_eq!(lines, [("stdout", "Listening on port 3000"), ("stdout", "Ready.")]);
    }
}
