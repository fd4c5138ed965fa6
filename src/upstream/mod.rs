//! What servers and skills give to agents: sections with what they list, and the way to whoever answers.
//!
//! Promises that a call takes no lock that another server's calls take, and that a handle lives as long as its server is
//! declared, whatever its connection does. Never connects: the fleet holds the [`UpstreamControl`] of each server.

mod handle;
mod item;
mod lists;
mod matcher;
mod responder;
mod section;
mod subscriptions;
mod view_name;

pub use handle::{CallGuard, CallRefusal, DrainingConnection, UpstreamControl, UpstreamHandle};
pub use item::Item;
pub use lists::ServerLists;
pub use matcher::NameMatcher;
pub use responder::{LocalResponder, Responder, SkillEntry};
pub use section::Section;
pub use subscriptions::{
    LogSubscription, NotificationContent, PublishedNotification, RequestedNotifications,
    ResourceSubscription, SubscriptionChanges, Subscriptions,
};
pub use view_name::ViewName;
