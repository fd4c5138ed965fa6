//! One file that is being read: what was found in it so far, and what is wrong with it. Pure.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::excerpt::{ParseError, truncated};
use super::object::{ObjectSpec, ParsedObject, TargetMode, key};
use super::path::display_path;
use super::positions::Position;
use crate::resource::{McpServerSpec, ObjectKey, Origin, Problem, Reason, SkillSpec, SourceProblem};

/// More faults of one file are not told.
const MAX_FAULTS_PER_FILE: usize = 20;

/// What one file holds.
#[derive(Debug, Default)]
pub struct ParsedFile {
    /// The servers whose names could be read, in the order of the file.
    pub servers: Vec<ParsedObject<McpServerSpec>>,
    /// The skills likewise.
    pub skills: Vec<ParsedObject<SkillSpec>>,
    /// What is wrong, for the person who wrote it.
    pub faults: Vec<SourceProblem>,
    /// What is read and has no effect.
    pub warnings: Vec<SourceProblem>,
    /// Documents of other API groups.
    pub foreign_documents: usize,
    /// The first document that may be one of ours though nothing in it says so: an object that is no longer found in
    /// this file may be in there.
    pub unrecognized: Option<Box<SourceProblem>>,
    /// Set if the file, or a document of ours in it, could not be read as far as its name: an object that is
    /// no longer found in this file may be in there, so it stays as it was.
    pub unidentified: Option<Problem>,
}

impl ParsedFile {
    /// Tells whether it declares nothing, and something in it is not understood.
    pub fn is_ambiguous(&self) -> bool {
        let unclear = self.unidentified.is_some() || self.unrecognized.is_some();
        unclear && self.servers.is_empty() && self.skills.is_empty()
    }

    /// What is known of a file that cannot be read: `why` completes a sentence that begins with its path.
    pub fn unreadable(path: &Arc<PathBuf>, why: &str) -> Self {
        let mut file = FileParser::new(path, &TargetMode::Directory);
        file.report_unidentified(ParseError::at_line(1, format!("the file {why}")));
        file.parsed
    }
}

/// A file that is being read: what was found in it so far.
pub struct FileParser<'a> {
    path: &'a Arc<PathBuf>,
    pub target: &'a TargetMode,
    pub parsed: ParsedFile,
}

impl<'a> FileParser<'a> {
    /// A file of which nothing is read yet.
    pub fn new(path: &'a Arc<PathBuf>, destination: &'a TargetMode) -> Self {
        Self { path, target: destination, parsed: ParsedFile::default() }
    }

    /// A document that should be one of ours, but does not say which.
    pub fn report_unidentified(&mut self, mistake: ParseError) {
        let told = format!("{}: {}", self.location(mistake.position), truncated(&mistake.message));
        self.parsed.unidentified = Some(Problem::new(Reason::ParseError, told));
        self.add_fault(Reason::ParseError, mistake);
    }

    /// Counts a document of somebody else, or, with a mistake, one that may be ours all the same.
    pub fn add_foreign(&mut self, unread: Option<ParseError>) {
        self.parsed.foreign_documents += 1;
        self.report_unrecognized(unread);
    }

    /// Notes something that declares nothing, though it may have been meant to.
    pub fn report_unrecognized(&mut self, mistake: Option<ParseError>) {
        if let Some(mistake) = mistake.filter(|_| self.parsed.unrecognized.is_none()) {
            self.parsed.unrecognized = Some(Box::new(self.source_problem(Reason::ParseError, mistake)));
        }
    }

    /// An object that cannot be accepted: each mistake is a fault of the file, and together they are why.
    pub fn reject<S: ObjectSpec>(
        &mut self,
        key: &ObjectKey,
        reason: Reason,
        mistakes: Vec<ParseError>,
    ) -> Problem {
        let mut told = String::new();
        for mistake in mistakes {
            if told.is_empty() {
                told = format!("{}: {}", self.location(mistake.position), mistake.message);
            } else {
                told = format!("{told}; line {}: {}", mistake.position.line, mistake.message);
            }
            let message = format!("{} {key}: {}", S::KIND, mistake.message);
            self.add_fault(reason, ParseError { message, ..mistake });
        }
        Problem::new(reason, truncated(&told))
    }

    /// The folder of a skill that is declared by where it is. What is in it is another matter.
    pub fn add_skill_folder(&mut self) {
        let name = self.path.parent().and_then(Path::file_name).map(|name| name.to_string_lossy());
        let Ok(key) = key(name.as_deref(), self.target.namespace()) else {
            let message = "the folder of a skill must have a name of lower-case letters, digits and hyphens";
            return self.report_unidentified(ParseError::at_line(1, message.into()));
        };
        let spec = SkillSpec {
            inline: None,
            path: Some(".".into()),
            config_map_ref: None,
            server_refs: Vec::new(),
            suspend: false,
        };
        self.parsed.skills.push(ParsedObject {
            key,
            line: 1,
            labels: BTreeMap::new(),
            annotations: BTreeMap::new(),
            document: "".into(),
            spec: Ok(spec),
        });
    }

    /// Something that has no effect.
    pub fn warn(&mut self, mistake: ParseError) {
        let fault = self.source_problem(Reason::InvalidSpec, mistake);
        push_capped(&mut self.parsed.warnings, fault);
    }

    fn add_fault(&mut self, reason: Reason, mistake: ParseError) {
        let fault = self.source_problem(reason, mistake);
        push_capped(&mut self.parsed.faults, fault);
    }

    fn source_problem(
        &self,
        reason: Reason,
        ParseError { position: place, message, excerpt }: ParseError,
    ) -> SourceProblem {
        SourceProblem {
            origin: Some(Origin::File { path: Arc::clone(self.path), line: place.line }),
            column: place.column,
            problem: Problem::new(reason, truncated(&message)),
            excerpt,
        }
    }

    fn location(&self, Position { line, column }: Position) -> String {
        let column = column.map_or_else(String::new, |column| format!(":{column}"));
        format!("{}:{line}{column}", display_path(self.path))
    }
}

fn push_capped(faults: &mut Vec<SourceProblem>, fault: SourceProblem) {
    match faults.len() {
        ..MAX_FAULTS_PER_FILE => faults.push(fault),
        MAX_FAULTS_PER_FILE => {
            let message = "there is more to be said of this file";
            faults.push(SourceProblem::new(fault.origin, Problem::new(fault.problem.reason, message)));
        }
        _ => {}
    }
}
