//! The subscriptions of one agent to resource updates and log messages.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::broadcast;

use crate::upstream::{
    ElicitationSubscription, LogSubscription, NotificationContent, PublishedNotification,
    ResourceSubscription, Subscriptions,
};
use crate::wire::LogLevel;

/// The maximum number of resource subscriptions of one agent.
pub(super) const MAX_RESOURCE_SUBSCRIPTIONS: usize = 1_000;
/// The maximum number of elicitations by URL whose end one agent is notified of. The oldest ones are given up first.
const MAX_ELICITATIONS: usize = 64;

/// The subscriptions of one agent.
#[derive(Debug, Default)]
pub(super) struct AgentSubscriptions {
    /// By the URIs that are exposed to the agent.
    resources: BTreeMap<String, ResourceSubscription>,
    log: Option<LogSubscription>,
    /// The elicitations by URL that the agent got.
    elicitations: VecDeque<ElicitationSubscription>,
    receiver: Option<NotificationReceiver>,
}

/// The receiver of server notifications. Agents without subscriptions have none.
pub(super) type NotificationReceiver = broadcast::Receiver<Arc<PublishedNotification>>;

/// A notification for the agent.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum AgentNotification {
    /// The resource with this URI was updated.
    ResourceUpdated(String),
    /// A log message, or the end of an elicitation by URL, as the whole JSON-RPC notification.
    Message(Bytes),
}

impl AgentSubscriptions {
    /// Adds a resource subscription. False if the agent already has the maximum number.
    pub(super) fn subscribe_resource(
        &mut self,
        subscriptions: &Subscriptions,
        uri: String,
        subscription: ResourceSubscription,
    ) -> bool {
        let has_room = self.resources.len() < MAX_RESOURCE_SUBSCRIPTIONS || self.resources.contains_key(&uri);
        if has_room {
            self.resources.insert(uri, subscription);
            self.receiver.get_or_insert_with(|| subscriptions.notifications());
        }
        has_room
    }

    pub(super) fn unsubscribe_resource(&mut self, uri: &str) {
        self.resources.remove(uri);
    }

    pub(super) fn subscribe_log(&mut self, subscriptions: &Subscriptions, subscription: LogSubscription) {
        self.log = Some(subscription);
        self.receiver.get_or_insert_with(|| subscriptions.notifications());
    }

    pub(super) fn subscribe_elicitation(
        &mut self,
        subscriptions: &Subscriptions,
        subscription: ElicitationSubscription,
    ) {
        self.elicitations.push_back(subscription);
        if self.elicitations.len() > MAX_ELICITATIONS {
            self.elicitations.pop_front();
        }
        self.receiver.get_or_insert_with(|| subscriptions.notifications());
    }

    /// Returns the minimum level of log messages.
    pub(super) fn log_level(&self) -> Option<LogLevel> {
        self.log.as_ref().map(|subscription| subscription.level)
    }

    /// Takes the receiver, if there is one and no stream has taken it yet.
    pub(super) fn take_receiver(&mut self) -> Option<NotificationReceiver> {
        self.receiver.take()
    }

    /// Returns the receiver for a stream that replaces another, with the notifications that may have been missed in
    /// between.
    pub(super) fn receiver_for_new_stream(
        &mut self,
        subscriptions: &Subscriptions,
    ) -> Option<(NotificationReceiver, Vec<AgentNotification>)> {
        if let Some(receiver) = self.receiver.take() {
            return Some((receiver, Vec::new()));
        }
        let has_subscriptions =
            self.log.is_some() || !self.resources.is_empty() || !self.elicitations.is_empty();
        has_subscriptions.then(|| (subscriptions.notifications(), self.all_resources_updated()))
    }

    /// Returns the notifications for the agent that follow from a server's notification.
    ///
    /// `None` stands for lost notifications: every subscribed resource may have changed.
    pub(super) fn select_notifications(
        &self,
        notification: Option<&PublishedNotification>,
        is_visible: impl Fn(&str) -> bool,
    ) -> Vec<AgentNotification> {
        let Some(notification) = notification else { return self.all_resources_updated() };
        match &notification.content {
            NotificationContent::ResourceUpdated(uri) => {
                let subscribed = self.resources.iter();
                let matching = subscribed.filter(|(_, subscription)| {
                    subscription.server == notification.server && *subscription.uri == **uri
                });
                matching
                    .map(|(exposed_uri, _)| AgentNotification::ResourceUpdated(exposed_uri.clone()))
                    .collect()
            }
            NotificationContent::LogMessage(level, message) => {
                let requested = self.log_level().is_some_and(|requested| *level >= requested);
                let matching =
                    (requested && is_visible(&notification.server.namespace)).then(|| message.clone());
                matching.map(AgentNotification::Message).into_iter().collect()
            }
            NotificationContent::ElicitationComplete(id, message) => {
                let is_own = |subscription: &ElicitationSubscription| {
                    let (server, own_id) = &subscription.elicitation;
                    *server == notification.server && **own_id == **id
                };
                let matching = self.elicitations.iter().any(is_own).then(|| message.clone());
                matching.map(AgentNotification::Message).into_iter().collect()
            }
        }
    }

    /// Returns the URIs of the subscribed resources.
    pub(super) fn resource_uris(&self) -> impl Iterator<Item = &str> {
        self.resources.keys().map(String::as_str)
    }

    fn all_resources_updated(&self) -> Vec<AgentNotification> {
        self.resources.keys().cloned().map(AgentNotification::ResourceUpdated).collect()
    }
}
