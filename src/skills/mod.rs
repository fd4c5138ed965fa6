//! Agent Skills: which of the declared skills are offered, the directories that agents read them from, and their
//! tools, prompts and resources over MCP.
//!
//! Promises that a skill is offered completely or not at all, that a change of one skill affects that skill alone, and
//! that only entries that evenkeel wrote are ever changed or removed in a directory. Never runs anything that
//! is in a skill, never follows a link, and uses no connection.

mod content;
mod directories;
mod directory;
mod frontmatter;
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
