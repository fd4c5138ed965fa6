//! The parse of one file: its objects so far, and its problems. Pure.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::excerpt::{ParseError, truncated};
use super::names::slug;
use super::object::{ObjectSpec, ParsedObject, TargetMode};
use super::path::{display_path, is_json};
use super::positions::Position;
use crate::resource::{McpServerSpec, ObjectKey, Origin, Problem, Reason, SkillSpec, SourceProblem};

/// The number of faults reported for one file.
const MAX_FAULTS_PER_FILE: usize = 20;

/// The content of one file.
#[derive(Debug, Default)]
pub struct ParsedFile {
    /// The servers whose names could be read, in the order of the file.
    pub servers: Vec<ParsedObject<McpServerSpec>>,
    /// The skills whose names could be read, in the order of the file.
    pub skills: Vec<ParsedObject<SkillSpec>>,
    /// The errors, for the author of the file.
    pub faults: Vec<SourceProblem>,
    /// The errors of entries of an agent's file. They are told on the objects only, because the file is written for
    /// another program.
    pub rejected_entries: Vec<SourceProblem>,
    /// The entries that are read but have no effect.
    pub warnings: Vec<SourceProblem>,
    /// The number of documents of other API groups.
    pub foreign_documents: usize,
    /// The first document that does not identify itself as an evenkeel object but may be one: an object that is no
    /// longer found in this file may be in it.
    pub unrecognized: Option<Box<SourceProblem>>,
    /// Set if the file, or an evenkeel document in it, could not be read far enough to find its name: an object that is
    /// no longer found in this file may be in it, so it is kept as it was.
    pub unidentified: Option<Problem>,
}

impl ParsedFile {
    /// True if the file declares nothing and part of it is not recognized.
    pub fn is_ambiguous(&self) -> bool {
        let unclear = self.unidentified.is_some() || self.unrecognized.is_some();
        unclear && self.servers.is_empty() && self.skills.is_empty()
    }

    /// Returns the result for a file that cannot be read; `reason` completes a sentence that begins with its path.
    pub fn unreadable(path: &Arc<PathBuf>, reason: &str) -> Self {
        let mut file = FileParser::new(path, &TargetMode::Directory);
        file.report_unidentified(ParseError::at_line(1, format!("the file {reason}")));
        file.parsed
    }
}

/// The state of the parse of one file.
pub struct FileParser<'a> {
    path: &'a Arc<PathBuf>,
    pub target: &'a TargetMode,
    pub parsed: ParsedFile,
}

impl<'a> FileParser<'a> {
    /// Creates a parser for a file of which nothing has been parsed yet.
    pub fn new(path: &'a Arc<PathBuf>, destination: &'a TargetMode) -> Self {
        Self { path, target: destination, parsed: ParsedFile::default() }
    }

    /// Reports an evenkeel document whose object cannot be identified.
    pub fn report_unidentified(&mut self, error: ParseError) {
        let message = format!("{}: {}", self.location(error.position), truncated(&error.message));
        self.parsed.unidentified = Some(Problem::new(Reason::ParseError, message));
        let fault = self.source_problem(Reason::ParseError, error);
        push_capped(&mut self.parsed.faults, fault);
    }

    /// Counts a document of another API group; with an error, the document may be an evenkeel object after all.
    pub fn add_foreign(&mut self, error: Option<ParseError>) {
        self.parsed.foreign_documents += 1;
        self.report_unrecognized(error);
    }

    /// Records a document that declares nothing although it may have been meant to.
    pub fn report_unrecognized(&mut self, error: Option<ParseError>) {
        if let Some(error) = error.filter(|_| self.parsed.unrecognized.is_none()) {
            self.parsed.unrecognized = Some(Box::new(self.source_problem(Reason::ParseError, error)));
        }
    }

    /// Rejects an object: adds each error as a fault of the file (in the file of an agent: of the object only), and
    /// returns a problem that joins them.
    pub fn reject<S: ObjectSpec>(
        &mut self,
        key: &ObjectKey,
        reason: Reason,
        errors: Vec<ParseError>,
    ) -> Problem {
        let mut joined = String::new();
        for error in errors {
            if joined.is_empty() {
                joined = format!("{}: {}", self.location(error.position), error.message);
            } else {
                joined = format!("{joined}; line {}: {}", error.position.line, error.message);
            }
            let message = format!("{} {key}: {}", S::KIND, error.message);
            let fault = self.source_problem(reason, ParseError { message, ..error });
            let is_agent_file = is_json(self.path) && *self.target == TargetMode::Directory;
            let faults =
                if is_agent_file { &mut self.parsed.rejected_entries } else { &mut self.parsed.faults };
            push_capped(faults, fault);
        }
        Problem::new(reason, truncated(&joined))
    }

    /// Adds the skill that is declared by the location of its folder. The content of the folder is read elsewhere.
    pub fn add_skill_folder(&mut self) {
        let folder = self.path.parent().and_then(Path::file_name).unwrap_or_default();
        let key = ObjectKey::new(self.target.namespace(), slug(&folder.to_string_lossy(), "skill"));
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

    /// Reports an entry that has no effect.
    pub fn warn(&mut self, error: ParseError) {
        let fault = self.source_problem(Reason::InvalidSpec, error);
        push_capped(&mut self.parsed.warnings, fault);
    }

    fn source_problem(
        &self,
        reason: Reason,
        ParseError { position, message, excerpt }: ParseError,
    ) -> SourceProblem {
        SourceProblem {
            origin: Some(Origin::File { path: Arc::clone(self.path), line: position.line }),
            column: position.column,
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
            let message = "more problems of this file are not shown";
            faults.push(SourceProblem::new(fault.origin, Problem::new(fault.problem.reason, message)));
        }
        _ => {}
    }
}
