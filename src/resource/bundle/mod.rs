//! The files of one skill, checked: SKILL.md with its frontmatter, and what stands beside it.
//!
//! Promises that a [`Bundle`] is whole, within the limits, and immutable. Never reads a file: sources do.

mod contents;
mod error;
mod file;
mod frontmatter;

pub use contents::Bundle;
pub use error::SkillError;
pub use file::{SKILL_FILE, SkillFile, SkillLimits, is_part_of_skill};
