//! What servers and skills give to agents: sections with what they list, and the way to whoever answers.
//!
//! Promises that a call takes no lock that another server's calls take, and that a handle lives as long as its server is
//! declared, whatever its connection does. Never connects: the fleet holds the [`UpstreamControl`] of each server.

mod answered_by;
mod handle;
mod item;
mod listeners;
mod lists;
mod matcher;
mod section;
mod view_name;

pub use answered_by::{AnsweredBy, LocalAnswers, SkillEntry};
pub use handle::{CallGuard, Drain, Refusal, UpstreamControl, UpstreamHandle};
pub use item::Item;
pub use listeners::{Changes, Listeners, LogRequest, Subscription, Told, Wanted, Word};
pub use lists::Lists;
pub use matcher::Matcher;
pub use section::Section;
pub use view_name::ViewName;
