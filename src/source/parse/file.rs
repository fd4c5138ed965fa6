//! One file that is being read: what was found in it so far, and what is wrong with it. Pure.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::excerpt::{ParseError, bounded};
use super::object::{ObjectSpec, ParsedObject, TargetMode, key};
use super::path::shown;
use super::positions::Position;
use crate::resource::{McpServerSpec, ObjectKey, Origin, Problem, Reason, SkillSpec, SourceProblem};

/// More faults of one file are not told.
const MAX_FAULTS: usize = 20;

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
    pub foreign: usize,
    /// The first document that may be one of ours though nothing in it says so: an object that is no longer found in
    /// this file may be in there.
    pub unread: Option<Box<SourceProblem>>,
    /// Set if the file, or a document of ours in it, could not be read as far as its name: an object that is
    /// no longer found in this file may be in there, so it stays as it was.
    pub unnamed: Option<Problem>,
}

impl ParsedFile {
    /// Tells whether it declares nothing, and something in it is not understood.
    pub fn is_unclear(&self) -> bool {
        let unclear = self.unnamed.is_some() || self.unread.is_some();
        unclear && self.servers.is_empty() && self.skills.is_empty()
    }

    /// What is known of a file that cannot be read: `why` completes a sentence that begins with its path.
    pub fn unreadable(path: &Arc<PathBuf>, why: &str) -> Self {
        let mut file = FileParser::new(path, &TargetMode::Directory);
        file.unnamed(ParseError::at_line(1, format!("the file {why}")));
        file.parsed
    }
}

/// A file that is being read: what was found in it so far.
pub struct FileParser<'a> {
    path: &'a Arc<PathBuf>,
    pub destination: &'a TargetMode,
    pub parsed: ParsedFile,
}

impl<'a> FileParser<'a> {
    /// A file of which nothing is read yet.
    pub fn new(path: &'a Arc<PathBuf>, destination: &'a TargetMode) -> Self {
        Self { path, destination, parsed: ParsedFile::default() }
    }

    /// A document that should be one of ours, but does not say which.
    pub fn unnamed(&mut self, mistake: ParseError) {
        let told = format!("{}: {}", self.shown(mistake.place), bounded(&mistake.message));
        self.parsed.unnamed = Some(Problem::new(Reason::ParseError, told));
        self.fault(Reason::ParseError, mistake);
    }

    /// Counts a document of somebody else, or, with a mistake, one that may be ours all the same.
    pub fn foreign(&mut self, unread: Option<ParseError>) {
        self.parsed.foreign += 1;
        self.unread(unread);
    }

    /// Notes something that declares nothing, though it may have been meant to.
    pub fn unread(&mut self, mistake: Option<ParseError>) {
        if let Some(mistake) = mistake.filter(|_| self.parsed.unread.is_none()) {
            self.parsed.unread = Some(Box::new(self.told(Reason::ParseError, mistake)));
        }
    }

    /// An object that cannot be accepted: each mistake is a fault of the file, and together they are why.
    pub fn refuse<S: ObjectSpec>(
        &mut self,
        key: &ObjectKey,
        reason: Reason,
        mistakes: Vec<ParseError>,
    ) -> Problem {
        let mut told = String::new();
        for mistake in mistakes {
            if told.is_empty() {
                told = format!("{}: {}", self.shown(mistake.place), mistake.message);
            } else {
                told = format!("{told}; line {}: {}", mistake.place.line, mistake.message);
            }
            let message = format!("{} {key}: {}", S::NAME, mistake.message);
            self.fault(reason, ParseError { message, ..mistake });
        }
        Problem::new(reason, bounded(&told))
    }

    /// The folder of a skill that is declared by where it is. What is in it is another matter.
    pub fn skill(&mut self) {
        let name = self.path.parent().and_then(Path::file_name).map(|name| name.to_string_lossy());
        let Ok(key) = key(name.as_deref(), self.destination.namespace()) else {
            let message = "the folder of a skill must have a name of lower-case letters, digits and hyphens";
            return self.unnamed(ParseError::at_line(1, message.into()));
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
            text: "".into(),
            spec: Ok(spec),
        });
    }

    /// Something that has no effect.
    pub fn warn(&mut self, mistake: ParseError) {
        let fault = self.told(Reason::InvalidSpec, mistake);
        add(&mut self.parsed.warnings, fault);
    }

    fn fault(&mut self, reason: Reason, mistake: ParseError) {
        let fault = self.told(reason, mistake);
        add(&mut self.parsed.faults, fault);
    }

    fn told(&self, reason: Reason, ParseError { place, message, excerpt }: ParseError) -> SourceProblem {
        SourceProblem {
            origin: Some(Origin::File { path: Arc::clone(self.path), line: place.line }),
            column: place.column,
            problem: Problem::new(reason, bounded(&message)),
            excerpt,
        }
    }

    fn shown(&self, Position { line, column }: Position) -> String {
        let column = column.map_or_else(String::new, |column| format!(":{column}"));
        format!("{}:{line}{column}", shown(self.path))
    }
}

fn add(faults: &mut Vec<SourceProblem>, fault: SourceProblem) {
    match faults.len() {
        ..MAX_FAULTS => faults.push(fault),
        MAX_FAULTS => {
            let message = "there is more to be said of this file";
            faults.push(SourceProblem::new(fault.origin, Problem::new(fault.problem.reason, message)));
        }
        _ => {}
    }
}
