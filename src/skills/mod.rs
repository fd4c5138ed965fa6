//! Agent Skills: what one is, which of the declared ones are offered, the directories where agents look, and what
//! is served of them over MCP.
//!
//! Promises that a skill is offered whole or not at all, that one skill's change touches that skill alone, and
//! that in a directory only what evenkeel wrote there is ever changed or taken away. Never runs anything that
//! is in a skill, never follows a link, and touches no connection.

mod content;
mod directory;
mod library;
mod serve;
mod skill_resources;
mod skill_state;
mod skill_states;
mod sync;

pub use serve::serve;
pub use skill_state::{MissingServer, SkillState, SkillStates};
pub use skill_states::track_skill_states;
pub use sync::{SyncOptions, SyncOutcome, SyncResults, sync};
