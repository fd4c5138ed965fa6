//! The files of one skill, checked: SKILL.md with its frontmatter, and what stands beside it.
//!
//! Promises that a [`Bundle`] is whole, within the limits, and immutable. Never reads a file: sources do.

mod contents;
mod file;
mod frontmatter;
mod mistake;

pub use contents::Bundle;
pub use file::{File, Limits, SKILL_FILE, belongs};
pub use mistake::Mistake;
