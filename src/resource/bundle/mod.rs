//! The validated files of one skill: SKILL.md with its frontmatter, and the other files of the skill folder.
//!
//! Promises that a [`Bundle`] is complete, within the limits, and immutable. Never reads from disk; sources do.

mod contents;
mod error;
mod file;
mod frontmatter;
mod location;

pub use contents::Bundle;
pub use error::SkillError;
pub use file::{SKILL_FILE, SkillFile, SkillLimits, is_file_name, is_part_of_skill};
pub use location::SkillLocation;
