//! Reads the contents of the declared skills: the text of a declaration, or the files of a folder. Blocks.
//!
//! Promises that the files of a skill come from one scan, and that an unchanged skill keeps the `Arc` of its content.
//! Never reads outside the root of the tree.

mod contents;
mod folder;
mod read;

pub use contents::SkillContents;
