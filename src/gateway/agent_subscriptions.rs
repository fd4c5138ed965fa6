//! What one agent wants to hear beside changes of lists: updates of resources, and log messages.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::broadcast;

use crate::upstream::{
    LogSubscription, NotificationContent, PublishedNotification, ResourceSubscription, Subscriptions,
};
use crate::wire::LogLevel;

/// An agent may watch so many resources.
const MAX_RESOURCE_SUBSCRIPTIONS: usize = 1_000;

/// What one agent wants to hear.
#[derive(Debug, Default)]
pub(super) struct AgentSubscriptions {
    /// By the URIs that the agent knows.
    resources: BTreeMap<String, ResourceSubscription>,
    log: Option<LogSubscription>,
    receiver: Option<NotificationReceiver>,
}

/// Where it comes in. Agents that want nothing have none.
pub(super) type NotificationReceiver = broadcast::Receiver<Arc<PublishedNotification>>;

/// Something that the agent is to be told.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum AgentNotification {
    /// The resource with this URI changed.
    ResourceUpdated(String),
    /// A log message, as the whole notification.
    LogMessage(Bytes),
}

impl AgentSubscriptions {
    /// Wants to hear of a resource. False if that is one too many.
    pub(super) fn subscribe_resource(
        &mut self,
        listeners: &Subscriptions,
        uri: String,
        subscription: ResourceSubscription,
    ) -> bool {
        let room = self.resources.len() < MAX_RESOURCE_SUBSCRIPTIONS || self.resources.contains_key(&uri);
        if room {
            self.resources.insert(uri, subscription);
            self.receiver.get_or_insert_with(|| listeners.notifications());
        }
        room
    }

    pub(super) fn unsubscribe_resource(&mut self, uri: &str) {
        self.resources.remove(uri);
    }

    pub(super) fn subscribe_log(&mut self, listeners: &Subscriptions, request: LogSubscription) {
        self.log = Some(request);
        self.receiver.get_or_insert_with(|| listeners.notifications());
    }

    /// From which level on log messages are wanted.
    pub(super) fn log_level(&self) -> Option<LogLevel> {
        self.log.as_ref().map(|request| request.level)
    }

    /// The ears, if there are any and nobody has taken them yet.
    pub(super) fn take_receiver(&mut self) -> Option<NotificationReceiver> {
        self.receiver.take()
    }

    /// The ears of a stream that takes the place of another, with what may have been missed in between.
    pub(super) fn receiver_for_new_stream(
        &mut self,
        listeners: &Subscriptions,
    ) -> Option<(NotificationReceiver, Vec<AgentNotification>)> {
        if let Some(ears) = self.receiver.take() {
            return Some((ears, Vec::new()));
        }
        let wants = self.log.is_some() || !self.resources.is_empty();
        wants.then(|| (listeners.notifications(), self.all_resources_updated()))
    }

    /// What the agent is to be told of something that a server told.
    ///
    /// `None` stands for what was lost: all that the agent watches may have changed.
    pub(super) fn select_notifications(
        &self,
        told: Option<&PublishedNotification>,
        shows: impl Fn(&str) -> bool,
    ) -> Vec<AgentNotification> {
        let Some(told) = told else { return self.all_resources_updated() };
        match &told.content {
            NotificationContent::ResourceUpdated(uri) => {
                let watched = self.resources.iter();
                let meant = watched.filter(|(_, watch)| watch.server == told.server && *watch.uri == **uri);
                meant.map(|(known, _)| AgentNotification::ResourceUpdated(known.clone())).collect()
            }
            NotificationContent::LogMessage(level, message) => {
                let wanted = self.log_level().is_some_and(|wanted| *level >= wanted);
                let meant = (wanted && shows(&told.server.namespace)).then(|| message.clone());
                meant.map(AgentNotification::LogMessage).into_iter().collect()
            }
        }
    }

    /// The URIs that the agent watches.
    pub(super) fn resource_uris(&self) -> impl Iterator<Item = &str> {
        self.resources.keys().map(String::as_str)
    }

    fn all_resources_updated(&self) -> Vec<AgentNotification> {
        self.resources.keys().cloned().map(AgentNotification::ResourceUpdated).collect()
    }
}
