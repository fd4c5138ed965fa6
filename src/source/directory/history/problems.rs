//! The problems of declarations that are not in force. Pure.

use std::path::PathBuf;
use std::sync::Arc;

use crate::resource::{ObjectKey, Origin, Problem, Reason, SourceProblem};
use crate::source::parse::{ObjectSpec, display_path, is_json};

/// True if a problem is in the file of an agent, which is written for another program.
pub fn is_in_agent_file(problem: &SourceProblem) -> bool {
    problem.origin.as_ref().and_then(Origin::file).is_some_and(|(path, _)| is_json(path))
}

/// Returns the problems in the order of their files and lines.
pub fn in_file_order<'a>(problems: impl Iterator<Item = &'a SourceProblem>) -> Vec<SourceProblem> {
    let mut problems: Vec<_> = problems.cloned().collect();
    problems.sort_by_key(|problem| {
        let file = problem.origin.as_ref().and_then(Origin::file);
        file.map(|(path, line)| (Arc::clone(path), line))
    });
    problems
}

/// Returns the problem of a declaration whose name another file declares.
pub fn duplicate_problem<S: ObjectSpec>(
    key: &ObjectKey,
    path: &Arc<PathBuf>,
    line: u32,
    in_force_path: &Arc<PathBuf>,
) -> SourceProblem {
    let message = format!(
        "{} {key} is already declared in {}, which stays in force; rename or remove one of them",
        S::KIND,
        display_path(in_force_path)
    );
    let origin = Origin::File { path: Arc::clone(path), line };
    SourceProblem::new(Some(origin), Problem::new(Reason::DuplicateName, message))
}
