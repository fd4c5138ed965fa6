use std::sync::Arc;

use super::Problem;
use super::declared::Origin;

/// Which source it is, for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SourceId {
    /// What it is: `directory`, `cluster`. Also the name of the one object of the kind `Source`.
    pub kind: &'static str,
    /// Where it is: the path as given, absolute; or the API server and its namespaces.
    pub location: String,
}

/// The state of the source itself: what the `Source` kind tells in directory mode.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct SourceState {
    /// True once the first complete look is done; nothing is planned before.
    pub synced: bool,
    /// True once all skills are known: a skill that is not declared before may be yet to come.
    pub skills_synced: bool,
    /// The git commit, `-dirty` if the tree is, else a digest.
    pub revision: Arc<str>,
    /// How changes are noticed.
    pub watch_method: WatchMethod,
    /// What could not be read, in the order of the files.
    pub problems: Vec<SourceProblem>,
    /// What was read and has no effect, so that its author may have meant something else.
    pub warnings: Vec<SourceProblem>,
    /// Documents of other API groups, which are none of our business.
    pub foreign_documents: usize,
    /// Where an API server was asked and nothing is declared: a name may be mistyped.
    pub empty_scope: Option<String>,
}

/// How changes are noticed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum WatchMethod {
    /// By file events or API watches, and a timer.
    #[default]
    Events,
    /// By the timer alone.
    Polling,
}

/// Something in the source that could not be read, for the person who wrote it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SourceProblem {
    /// Where, as far as it is known.
    pub origin: Option<Origin>,
    /// The column in that line, from 1.
    pub column: Option<u32>,
    /// What is wrong and what to do, in one sentence.
    pub problem: Problem,
    /// The lines around it with a caret at the place, without values that may be secret.
    pub excerpt: Option<String>,
}

impl SourceProblem {
    /// A fault of a whole file, or of no file at all.
    pub fn new(origin: Option<Origin>, problem: Problem) -> Self {
        Self { origin, column: None, problem, excerpt: None }
    }

    /// `file:line:column`, as far as it is known.
    pub fn location(&self) -> Option<String> {
        let origin = self.origin.as_ref()?;
        Some(self.column.map_or_else(|| origin.to_string(), |column| format!("{origin}:{column}")))
    }
}
