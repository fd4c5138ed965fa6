//! The upstream servers and skills as the gateway sees them: sections with their lists, and handles for calls.
//!
//! Promises that a call never takes a lock that is shared with calls to other servers, and that a handle exists as long
//! as its server is declared, independent of its connection. Never connects; the fleet holds the [`UpstreamControl`] of
//! each server.

mod call_slot;
mod caller_connections;
mod caller_id;
mod handle;
mod handle_requests;
mod item;
mod item_rules;
mod lists;
mod matcher;
mod responder;
mod section;
mod subscriptions;
mod view_name;

pub use call_slot::CallSlot;
pub use caller_connections::{
    CallerConnectionKey, CallerConnections, CallerRequest, ConnectRefusal, ConnectRequest,
};
pub use caller_id::CallerId;
pub use handle::{CallGuard, CallRefusal, DrainingConnection, UpstreamControl, UpstreamHandle};
pub use handle_requests::HandleRequest;
pub use item::Item;
pub use item_rules::{AcceptedItem, LeftOutItem, read_item};
pub use lists::ServerLists;
pub use matcher::NameMatcher;
pub use responder::{LocalResponder, Responder, SkillEntry};
pub use section::Section;
pub use subscriptions::{
    ElicitationSubscription, LogSubscription, NotificationContent, PublishedNotification,
    RequestedNotifications, ResourceSubscription, SubscriptionChanges, Subscriptions,
};
pub use view_name::ViewName;
