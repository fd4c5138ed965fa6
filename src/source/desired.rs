use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use imbl::OrdMap;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::resource::{
    Digest, Endpoint, McpServerSpec, McpServerStatus, ObjectKey, Problem, Reason, SkillSpec, SkillStatus,
};
use crate::skills::Bundle;
use crate::source::requests::Asked;

/// Everything that is declared, at one instant: immutable, and cheap to clone and to change.
#[derive(Clone, Debug, Default)]
pub struct Desired {
    /// The declared servers.
    pub servers: OrdMap<ObjectKey, Arc<Declared<McpServerSpec>>>,
    /// The declared skills.
    pub skills: OrdMap<ObjectKey, Arc<Declared<SkillSpec>>>,
    /// What the skills hold. One that is not in here was not looked at yet, or was never declared well.
    pub contents: OrdMap<ObjectKey, Content>,
    /// The state of the source itself.
    pub source: Arc<SourceState>,
    /// What was in force when an earlier run ended, where the source remembers it: what differs from that changed
    /// while evenkeel was down.
    pub remembered: Option<Arc<Self>>,
    /// What was asked for over the status API: these annotations stand in no file.
    pub asked: Asked,
    /// Who took away what is declared no more, by the uids of the objects, where that is known.
    pub removals: OrdMap<Arc<str>, Arc<Commit>>,
    /// Grows from one to the next that a directory gives, so that it can be waited for: what was made from one of
    /// this number or a later one knows all of it.
    pub number: u64,
}

/// What a skill holds, by the same `Arc` while it is the same; or why that is not known.
pub type Content = Result<Arc<Bundle>, Problem>;

/// The statuses that the source itself holds of its objects: what an earlier run, another replica or this one
/// wrote there. Stays empty for a source that holds none.
#[derive(Clone, Debug, Default)]
pub struct Shown {
    /// Of the servers.
    pub servers: OrdMap<ObjectKey, Arc<ShownStatus<McpServerStatus>>>,
    /// Of the skills.
    pub skills: OrdMap<ObjectKey, Arc<ShownStatus<SkillStatus>>>,
}

/// The status of one object as its source holds it.
#[derive(Debug, PartialEq)]
pub struct ShownStatus<T> {
    /// The object's.
    pub uid: Arc<str>,
    /// Grows with every change of the object.
    pub resource_version: u64,
    /// `None` if there is none, or none that can be read.
    pub status: Option<T>,
    /// The generation of an object that is being deleted while somebody's finalizer holds it: it is declared no more.
    pub leaving: Option<i64>,
}

/// One declared object. An unchanged object keeps its `Arc` from one [`Desired`] to the next, so that
/// comparing two of them costs little more than comparing pointers.
#[derive(Clone, Debug)]
pub struct Declared<S> {
    /// Identity and origin.
    pub meta: Meta,
    /// The declaration in force: the last good one. `None` if there never was one.
    pub spec: Option<Arc<S>>,
    /// Digest of `spec` with references unresolved and literal values left out.
    pub spec_digest: Option<Digest>,
    /// Why the newest declaration is not accepted, if it is not.
    pub refused: Option<Problem>,
    /// How to reach the server, or which reference was not found. `None` for skills and where `spec` is.
    pub endpoint: Option<Result<Arc<Endpoint>, Problem>>,
}

impl<S> Declared<S> {
    /// Why what is declared is not in force: it is not valid, or it may not run here.
    pub fn refusal(&self) -> Option<&Problem> {
        self.refused.as_ref().or_else(|| self.denial())
    }

    /// Tells whether it may not run here.
    pub fn is_denied(&self) -> bool {
        self.denial().is_some()
    }

    fn denial(&self) -> Option<&Problem> {
        self.endpoint.as_ref()?.as_ref().err().filter(|problem| problem.reason == Reason::PolicyDenied)
    }
}

/// The same declaration, not an equal one: what [`OrdMap::diff`] needs to cost only what changed.
impl<S> PartialEq for Declared<S> {
    fn eq(&self, other: &Self) -> bool {
        std::ptr::eq(self, other)
    }
}

impl<S> Eq for Declared<S> {}

/// Identity and origin of a declared object.
#[derive(Clone, Debug)]
pub struct Meta {
    /// Namespace and name.
    pub key: ObjectKey,
    /// Stays while the object exists; another if it was deleted and created again.
    pub uid: Arc<str>,
    /// 1 for a new object, plus one whenever its declaration changes.
    pub generation: i64,
    /// When the object appeared.
    pub created: Timestamp,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// Its annotations.
    pub annotations: BTreeMap<String, String>,
    /// Where it is declared.
    pub origin: Origin,
    /// The source revision at which this object last changed.
    pub revision: Arc<str>,
    /// The commit that changed it last, if the source is a git work tree and the change was committed when
    /// it was seen.
    pub change: Option<Arc<Commit>>,
}

/// Who changed something, and why: what git says about a commit. The words of its author, not to be trusted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Commit {
    /// The whole hash.
    pub id: String,
    /// The author's name and address, without control characters, at most 200 characters.
    pub author: String,
    /// The first line of the message, likewise.
    pub subject: String,
}

/// Where an object is declared.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// A file of a directory source.
    File {
        /// Relative to the root.
        path: Arc<PathBuf>,
        /// The line at which its document begins, from 1.
        line: u32,
    },
    /// An object of an API server.
    Cluster {
        /// Its `metadata.resourceVersion`.
        resource_version: Arc<str>,
    },
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
    pub watching: Watching,
    /// What could not be read, in the order of the files.
    pub faults: Vec<Fault>,
    /// What was read and has no effect, so that its author may have meant something else.
    pub warnings: Vec<Fault>,
    /// Documents of other API groups, which are none of our business.
    pub foreign: usize,
    /// Where an API server was asked and nothing is declared: a name may be mistyped.
    pub nothing_in: Option<String>,
}

/// How changes are noticed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Watching {
    /// By file events or API watches, and a timer.
    #[default]
    Events,
    /// By the timer alone.
    Polling,
}

/// Something in the source that could not be read, for the person who wrote it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// Where, as far as it is known.
    pub origin: Option<Origin>,
    /// The column in that line, from 1.
    pub column: Option<u32>,
    /// What is wrong and what to do, in one sentence.
    pub problem: Problem,
    /// The lines around it with a caret at the place, without values that may be secret.
    pub excerpt: Option<String>,
}

impl Fault {
    /// A fault of a whole file, or of no file at all.
    pub fn new(origin: Option<Origin>, problem: Problem) -> Self {
        Self { origin, column: None, problem, excerpt: None }
    }

    /// `file:line:column`, as far as it is known.
    pub fn place(&self) -> Option<String> {
        let origin = self.origin.as_ref()?;
        Some(self.column.map_or_else(|| origin.to_string(), |column| format!("{origin}:{column}")))
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File { path, line } => write!(f, "{}:{line}", path.display()),
            Self::Cluster { resource_version } => write!(f, "resourceVersion {resource_version}"),
        }
    }
}

/// Whether two endpoints are the same connection, or the same problem.
pub(super) fn same_endpoint(
    one: Option<&Result<Arc<Endpoint>, Problem>>,
    other: Option<&Result<Arc<Endpoint>, Problem>>,
) -> bool {
    let seen = |endpoint: &Result<Arc<Endpoint>, Problem>| match endpoint {
        Ok(endpoint) => Ok(endpoint.digest()),
        Err(problem) => Err(problem.clone()),
    };
    one.map(seen) == other.map(seen)
}
