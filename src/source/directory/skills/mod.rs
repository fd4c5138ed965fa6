//! What the declared skills consist of: the text in a declaration, or the files of a folder. Blocks.
//!
//! Promises that a skill's files are those of one look, and that a skill which does not change keeps its content by the
//! same `Arc`. Never reads outside the folder of a skill.

mod contents;
mod folder;

pub use contents::SkillContents;
