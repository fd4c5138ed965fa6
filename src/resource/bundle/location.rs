use super::error::SkillError;
use crate::resource::{Problem, Reason};

/// The place of a skill's files, for messages.
#[derive(Clone, Debug)]
pub enum SkillLocation {
    /// A folder.
    Folder(String),
    /// A field or object that holds the files.
    Text(String),
}

impl SkillLocation {
    /// Returns the message of an error with the full path of its file.
    pub fn message(&self, error: &SkillError) -> String {
        match self {
            // The error concerns the folder itself.
            Self::Folder(place) | Self::Text(place) if error.file.is_empty() => format!("{place}: {error}"),
            Self::Folder(folder) => format!("{folder}/{error}"),
            Self::Text(place) => format!("{place}, {error}"),
        }
    }

    /// Returns the problem of a skill that cannot be used.
    pub fn problem(&self, error: &SkillError) -> Problem {
        Problem::new(Reason::InvalidSpec, self.message(error))
    }
}
