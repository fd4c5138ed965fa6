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
const RESOURCES: usize = 1_000;

/// What one agent wants to hear.
#[derive(Debug, Default)]
pub(super) struct AgentSubscriptions {
    /// By the URIs that the agent knows.
    resources: BTreeMap<String, ResourceSubscription>,
    log: Option<LogSubscription>,
    ears: Option<Notifications>,
}

/// Where it comes in. Agents that want nothing have none.
pub(super) type Notifications = broadcast::Receiver<Arc<PublishedNotification>>;

/// Something that the agent is to be told.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum AgentNotification {
    /// The resource with this URI changed.
    Updated(String),
    /// A log message, as the whole notification.
    Logged(Bytes),
}

impl AgentSubscriptions {
    /// Wants to hear of a resource. False if that is one too many.
    pub(super) fn watch(
        &mut self,
        listeners: &Subscriptions,
        uri: String,
        subscription: ResourceSubscription,
    ) -> bool {
        let room = self.resources.len() < RESOURCES || self.resources.contains_key(&uri);
        if room {
            self.resources.insert(uri, subscription);
            self.ears.get_or_insert_with(|| listeners.hear());
        }
        room
    }

    pub(super) fn unwatch(&mut self, uri: &str) {
        self.resources.remove(uri);
    }

    pub(super) fn log(&mut self, listeners: &Subscriptions, request: LogSubscription) {
        self.log = Some(request);
        self.ears.get_or_insert_with(|| listeners.hear());
    }

    /// From which level on log messages are wanted.
    pub(super) fn level(&self) -> Option<LogLevel> {
        self.log.as_ref().map(|request| request.level)
    }

    /// The ears, if there are any and nobody has taken them yet.
    pub(super) fn take_ears(&mut self) -> Option<Notifications> {
        self.ears.take()
    }

    /// The ears of a stream that takes the place of another, with what may have been missed in between.
    pub(super) fn new_ears(
        &mut self,
        listeners: &Subscriptions,
    ) -> Option<(Notifications, Vec<AgentNotification>)> {
        if let Some(ears) = self.ears.take() {
            return Some((ears, Vec::new()));
        }
        let wants = self.log.is_some() || !self.resources.is_empty();
        wants.then(|| (listeners.hear(), self.all()))
    }

    /// What the agent is to be told of something that a server told.
    ///
    /// `None` stands for what was lost: all that the agent watches may have changed.
    pub(super) fn sift(
        &self,
        told: Option<&PublishedNotification>,
        shows: impl Fn(&str) -> bool,
    ) -> Vec<AgentNotification> {
        let Some(told) = told else { return self.all() };
        match &told.word {
            NotificationContent::Updated(uri) => {
                let watched = self.resources.iter();
                let meant = watched.filter(|(_, watch)| watch.server == told.server && *watch.uri == **uri);
                meant.map(|(known, _)| AgentNotification::Updated(known.clone())).collect()
            }
            NotificationContent::Logged(level, message) => {
                let wanted = self.level().is_some_and(|wanted| *level >= wanted);
                let meant = (wanted && shows(&told.server.namespace)).then(|| message.clone());
                meant.map(AgentNotification::Logged).into_iter().collect()
            }
        }
    }

    /// The URIs that the agent watches.
    pub(super) fn watched(&self) -> impl Iterator<Item = &str> {
        self.resources.keys().map(String::as_str)
    }

    fn all(&self) -> Vec<AgentNotification> {
        self.resources.keys().cloned().map(AgentNotification::Updated).collect()
    }
}
