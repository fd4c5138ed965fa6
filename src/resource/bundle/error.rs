use std::fmt;

use crate::text::is_invisible;

/// What is wrong with a skill, for the person who wrote it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SkillError {
    /// The file, by its path in the skill; empty for the folder itself.
    pub file: String,
    /// The line, from 1.
    pub line: Option<u32>,
    /// What is wrong and what is allowed.
    pub message: String,
    /// The line itself, in quotes.
    pub excerpt: Option<String>,
}

impl SkillError {
    /// One of a whole file, or of the skill's folder.
    pub fn for_file(file: &str, message: impl Into<String>) -> Self {
        Self { file: file.to_owned(), line: None, message: message.into(), excerpt: None }
    }

    /// One of a line.
    pub fn at_line(file: &str, line: u32, message: impl Into<String>) -> Self {
        Self { line: Some(line), ..Self::for_file(file, message) }
    }
}

/// `SKILL.md:3: what is wrong: "the line"`.
impl fmt::Display for SkillError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.file.replace(is_invisible, "\u{fffd}"))?;
        if let Some(line) = self.line {
            write!(f, ":{line}")?;
        }
        if !self.file.is_empty() {
            f.write_str(": ")?;
        }
        f.write_str(&self.message)?;
        self.excerpt.as_ref().map_or(Ok(()), |excerpt| write!(f, ": {excerpt}"))
    }
}
