use std::sync::Arc;

use super::Problem;
use super::declared::Origin;

/// The identity of a source, for messages.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SourceId {
    /// The kind of the source: `directory` or `cluster`. Also the name of the only object of the kind `Source`.
    pub kind: &'static str,
    /// The location: the absolute form of the given path, or the API server and its namespaces.
    pub location: String,
}

/// The state of a source, which the `Source` kind shows.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct SourceState {
    /// True once the first scan is complete. Nothing is applied before.
    pub synced: bool,
    /// True once all skills have been read. Before that, a missing skill may still appear.
    pub skills_synced: bool,
    /// The git commit, with the suffix `-dirty` if the work tree differs from it; a digest outside git.
    pub revision: Arc<str>,
    /// The way in which changes are detected.
    pub watch_method: WatchMethod,
    /// The declarations that could not be read, in the order of the files.
    pub problems: Vec<SourceProblem>,
    /// Input that was read but has no effect, which may be a mistake of its author.
    pub warnings: Vec<SourceProblem>,
    /// The number of documents of other API groups, which are ignored.
    pub foreign_documents: usize,
    /// The queried part of a cluster in which nothing is declared. Its name may be mistyped.
    pub empty_scope: Option<String>,
}

/// The way in which changes are detected.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum WatchMethod {
    /// File events or API watches, in addition to a timer.
    #[default]
    Events,
    /// A timer only.
    Polling,
}

/// A problem with one declaration in a source, addressed to its author.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SourceProblem {
    /// The location, as far as it is known.
    pub origin: Option<Origin>,
    /// The column in that line, starting at 1.
    pub column: Option<u32>,
    /// The problem: what is wrong and what to do, in one sentence.
    pub problem: Problem,
    /// The surrounding lines with a caret at the location, without values that may be secret.
    pub excerpt: Option<String>,
}

impl SourceProblem {
    /// Creates a problem that is not tied to a column and has no excerpt.
    pub fn new(origin: Option<Origin>, problem: Problem) -> Self {
        Self { origin, column: None, problem, excerpt: None }
    }

    /// Returns `file:line:column`, as far as it is known.
    pub fn location(&self) -> Option<String> {
        let origin = self.origin.as_ref()?;
        Some(self.column.map_or_else(|| origin.to_string(), |column| format!("{origin}:{column}")))
    }
}
