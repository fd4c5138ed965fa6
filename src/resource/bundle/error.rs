use std::fmt;

use crate::text::is_invisible;

/// An error in a skill, addressed to its author.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SkillError {
    /// The path of the file inside the skill; empty for the skill folder itself.
    pub file: String,
    /// The line, starting at 1.
    pub line: Option<u32>,
    /// A message that says what is wrong and what is allowed.
    pub message: String,
    /// The text of the line, in quotes.
    pub excerpt: Option<String>,
}

impl SkillError {
    /// Creates an error about a whole file, or about the skill folder if `file` is empty.
    pub fn for_file(file: &str, message: impl Into<String>) -> Self {
        Self { file: file.to_owned(), line: None, message: message.into(), excerpt: None }
    }

    /// Creates an error about one line of a file.
    pub fn at_line(file: &str, line: u32, message: impl Into<String>) -> Self {
        Self { line: Some(line), ..Self::for_file(file, message) }
    }
}

/// Formats the error as `SKILL.md:3: message: "text of the line"`.
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
