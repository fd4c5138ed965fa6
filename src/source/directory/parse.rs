//! The bytes of one file, as the objects it declares. Pure.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::excerpt::{Mistake, bounded, printable};
use super::places::Place;
use super::walk::is_skill;
use super::{mcp_json, yaml};
use crate::resource::{
    Endpoint, McpServerSpec, ObjectKey, Problem, Reason, SkillSpec, Violation, check_server,
    check_server_of_cluster, check_skill, check_skill_of_cluster, is_namespace, is_object_name,
};
use crate::source::{Fault, Origin};

/// More faults of one file are not told.
const MAX_FAULTS: usize = 20;

/// The namespace of objects of a directory that name none.
const DEFAULT_NAMESPACE: &str = "default";

/// Where what files declare is to be in force.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Destination {
    /// Where the files are.
    Directory,
    /// In a cluster: the files are manifests, that `kubectl apply` takes.
    Cluster {
        /// The namespace of objects that name none.
        namespace: String,
    },
}

/// A spec that an object of our group may have.
pub(super) trait Kind: Clone + PartialEq + Serialize + DeserializeOwned {
    /// As in `kind:`.
    const NAME: &'static str;

    /// Every rule that it breaks.
    fn check(&self, destination: &Destination) -> Vec<Violation>;

    /// How to reach what `file` declares, if it is something to be reached.
    fn endpoint(&self, file: &Path, resolve: &Resolve<'_>) -> Option<Result<Arc<Endpoint>, Problem>>;

    /// Whether this, declared in `file`, is about what the `other` file is.
    fn is_about(&self, file: &Path, other: &Path) -> bool;
}

/// Makes an endpoint of a spec and of the file that declares it.
pub(super) type Resolve<'a> = dyn Fn(&McpServerSpec, &Path) -> Result<Arc<Endpoint>, Problem> + 'a;

impl Kind for McpServerSpec {
    const NAME: &'static str = "McpServer";

    fn check(&self, destination: &Destination) -> Vec<Violation> {
        let more = match destination {
            Destination::Directory => Vec::new(),
            Destination::Cluster { .. } => check_server_of_cluster(self),
        };
        check_server(self).into_iter().chain(more).collect()
    }

    fn endpoint(&self, file: &Path, resolve: &Resolve<'_>) -> Option<Result<Arc<Endpoint>, Problem>> {
        Some(resolve(self, file))
    }

    fn is_about(&self, _: &Path, _: &Path) -> bool {
        false
    }
}

impl Kind for SkillSpec {
    const NAME: &'static str = "Skill";

    fn check(&self, destination: &Destination) -> Vec<Violation> {
        let more = match destination {
            Destination::Directory => {
                let map = self.config_map_ref.as_ref().map(|_| Violation {
                    path: "spec.configMapRef".into(),
                    message: "there are no ConfigMaps beside a file; use path or inline".into(),
                });
                map.into_iter().collect()
            }
            Destination::Cluster { .. } => check_skill_of_cluster(self),
        };
        check_skill(self).into_iter().chain(more).collect()
    }

    fn endpoint(&self, _: &Path, _: &Resolve<'_>) -> Option<Result<Arc<Endpoint>, Problem>> {
        None
    }

    fn is_about(&self, file: &Path, other: &Path) -> bool {
        let folder = self.path.as_ref().and_then(|path| below(file.parent()?, path));
        is_skill(other) && folder.as_deref() == other.parent()
    }
}

/// What one file holds.
#[derive(Debug, Default)]
pub(super) struct Parsed {
    /// The servers whose names could be read, in the order of the file.
    pub servers: Vec<Object<McpServerSpec>>,
    /// The skills likewise.
    pub skills: Vec<Object<SkillSpec>>,
    /// What is wrong, for the person who wrote it.
    pub faults: Vec<Fault>,
    /// What is read and has no effect.
    pub warnings: Vec<Fault>,
    /// Documents of other API groups.
    pub foreign: usize,
    /// The first document that may be one of ours though nothing in it says so: an object that is no longer found in
    /// this file may be in there.
    pub unread: Option<Box<Fault>>,
    /// Set if the file, or a document of ours in it, could not be read as far as its name: an object that is
    /// no longer found in this file may be in there, so it stays as it was.
    pub unnamed: Option<Problem>,
}

/// One declared object.
#[derive(Clone, Debug)]
pub(super) struct Object<S> {
    pub key: ObjectKey,
    /// The line at which its document begins, from 1.
    pub line: u32,
    pub labels: BTreeMap<String, String>,
    pub annotations: BTreeMap<String, String>,
    /// The document itself, to be remembered.
    pub text: Arc<str>,
    /// What is declared, or why it cannot be accepted.
    pub spec: Result<S, Problem>,
}

impl Parsed {
    /// Tells whether it declares nothing, and something in it is not understood.
    pub fn is_unclear(&self) -> bool {
        let unclear = self.unnamed.is_some() || self.unread.is_some();
        unclear && self.servers.is_empty() && self.skills.is_empty()
    }

    /// What is known of a file that cannot be read: `why` completes a sentence that begins with its path.
    pub fn unreadable(path: &Arc<PathBuf>, why: &str) -> Self {
        let mut file = File::new(path, &Destination::Directory);
        file.unnamed(Mistake::at_line(1, format!("the file {why}")));
        file.parsed
    }
}

/// Reads a file of a directory; `path` is relative to the root and used in messages alone.
pub(super) fn parse(path: &Arc<PathBuf>, bytes: &[u8]) -> Parsed {
    parse_for(&Destination::Directory, path, bytes)
}

/// Reads a file by the rules that hold where its objects are to be.
pub(super) fn parse_for(destination: &Destination, path: &Arc<PathBuf>, bytes: &[u8]) -> Parsed {
    // The parser is meant never to panic; if it does on one file, the others must not pay for it.
    catch_unwind(AssertUnwindSafe(|| read(destination, path, bytes)))
        .unwrap_or_else(|_| Parsed::unreadable(path, "makes the parser fail; please report it"))
}

/// Whether a file is one of those that agents have their servers in.
pub(super) fn is_json(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == "json")
}

/// A path for a message.
pub(super) fn shown(path: &Path) -> String {
    printable(&path.display().to_string())
}

fn read(destination: &Destination, path: &Arc<PathBuf>, bytes: &[u8]) -> Parsed {
    let mut file = File::new(path, destination);
    let in_directory = *destination == Destination::Directory;
    if is_skill(path) {
        // To kubectl it is no manifest.
        if in_directory {
            file.skill();
        }
        return file.parsed;
    }
    match std::str::from_utf8(bytes) {
        Ok(text) => {
            let text = text.strip_prefix('\u{feff}').unwrap_or(text);
            if is_json(path) && in_directory {
                mcp_json::read(text, &mut file);
            } else {
                yaml::read(text, &mut file);
            }
        }
        Err(error) => {
            let before = bytes.get(..error.valid_up_to()).unwrap_or_default();
            let line = before.split(|byte| *byte == b'\n').count();
            let line = u32::try_from(line).unwrap_or(u32::MAX);
            file.unnamed(Mistake::at_line(line, "the file is not text in UTF-8".to_owned()));
        }
    }
    file.parsed
}

/// A file that is being read: what was found in it so far.
pub(super) struct File<'a> {
    path: &'a Arc<PathBuf>,
    pub destination: &'a Destination,
    pub parsed: Parsed,
}

impl<'a> File<'a> {
    fn new(path: &'a Arc<PathBuf>, destination: &'a Destination) -> Self {
        Self { path, destination, parsed: Parsed::default() }
    }

    /// The namespace of objects that name none.
    pub fn namespace(&self) -> &'a str {
        match self.destination {
            Destination::Directory => DEFAULT_NAMESPACE,
            Destination::Cluster { namespace } => namespace,
        }
    }

    /// A document that should be one of ours, but does not say which.
    pub fn unnamed(&mut self, mistake: Mistake) {
        let told = format!("{}: {}", self.shown(mistake.place), bounded(&mistake.message));
        self.parsed.unnamed = Some(Problem::new(Reason::ParseError, told));
        self.fault(Reason::ParseError, mistake);
    }

    /// Counts a document of somebody else, or, with a mistake, one that may be ours all the same.
    pub fn foreign(&mut self, unread: Option<Mistake>) {
        self.parsed.foreign += 1;
        self.unread(unread);
    }

    /// Notes something that declares nothing, though it may have been meant to.
    pub fn unread(&mut self, mistake: Option<Mistake>) {
        if let Some(mistake) = mistake.filter(|_| self.parsed.unread.is_none()) {
            self.parsed.unread = Some(Box::new(self.told(Reason::ParseError, mistake)));
        }
    }

    /// An object that cannot be accepted: each mistake is a fault of the file, and together they are why.
    pub fn refuse<S: Kind>(&mut self, key: &ObjectKey, reason: Reason, mistakes: Vec<Mistake>) -> Problem {
        let mut told = String::new();
        for mistake in mistakes {
            if told.is_empty() {
                told = format!("{}: {}", self.shown(mistake.place), mistake.message);
            } else {
                told = format!("{told}; line {}: {}", mistake.place.line, mistake.message);
            }
            let message = format!("{} {key}: {}", S::NAME, mistake.message);
            self.fault(reason, Mistake { message, ..mistake });
        }
        Problem::new(reason, bounded(&told))
    }

    /// The folder of a skill that is declared by where it is. What is in it is another matter.
    fn skill(&mut self) {
        let name = self.path.parent().and_then(Path::file_name).map(|name| name.to_string_lossy());
        let Ok(key) = key(name.as_deref(), self.namespace()) else {
            let message = "the folder of a skill must have a name of lower-case letters, digits and hyphens";
            return self.unnamed(Mistake::at_line(1, message.into()));
        };
        let spec = SkillSpec {
            inline: None,
            path: Some(".".into()),
            config_map_ref: None,
            server_refs: Vec::new(),
            suspend: false,
        };
        self.parsed.skills.push(Object {
            key,
            line: 1,
            labels: BTreeMap::new(),
            annotations: BTreeMap::new(),
            text: "".into(),
            spec: Ok(spec),
        });
    }

    /// Something that has no effect.
    pub fn warn(&mut self, mistake: Mistake) {
        let fault = self.told(Reason::InvalidSpec, mistake);
        add(&mut self.parsed.warnings, fault);
    }

    fn fault(&mut self, reason: Reason, mistake: Mistake) {
        let fault = self.told(reason, mistake);
        add(&mut self.parsed.faults, fault);
    }

    fn told(&self, reason: Reason, Mistake { place, message, excerpt }: Mistake) -> Fault {
        Fault {
            origin: Some(Origin::File { path: Arc::clone(self.path), line: place.line }),
            column: place.column,
            problem: Problem::new(reason, bounded(&message)),
            excerpt,
        }
    }

    fn shown(&self, Place { line, column }: Place) -> String {
        let column = column.map_or_else(String::new, |column| format!(":{column}"));
        format!("{}:{line}{column}", shown(self.path))
    }
}

/// The folder `path` of `folder`, without `.` and `..`; `None` if that is above the root.
pub(super) fn below(folder: &Path, path: &str) -> Option<PathBuf> {
    let mut found = PathBuf::new();
    for part in folder.components().chain(Path::new(path).components()) {
        match part {
            Component::Normal(name) => found.push(name),
            Component::CurDir => {}
            Component::ParentDir if found.pop() => {}
            _ => return None,
        }
    }
    Some(found)
}

fn add(faults: &mut Vec<Fault>, fault: Fault) {
    match faults.len() {
        ..MAX_FAULTS => faults.push(fault),
        MAX_FAULTS => {
            let message = "there is more to be said of this file";
            faults.push(Fault::new(fault.origin, Problem::new(fault.problem.reason, message)));
        }
        _ => {}
    }
}

/// Namespace and name, as Kubernetes allows them.
pub(super) fn key(name: Option<&str>, namespace: &str) -> Result<ObjectKey, String> {
    let name = name.ok_or("metadata.name is missing")?;
    let allowed = "lower-case letters, digits and -, beginning and ending with a letter or digit";
    if !is_object_name(name) {
        return Err(format!(
            "metadata.name {name:?} must be at most 253 {allowed}; it may have several parts joined by dots"
        ));
    }
    if !is_namespace(namespace) {
        return Err(format!("metadata.namespace {namespace:?} must be at most 63 {allowed}"));
    }
    Ok(ObjectKey::new(namespace, name))
}

#[cfg(test)]
mod tests;
