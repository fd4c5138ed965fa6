use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{Digest, Endpoint, ObjectKey, Problem, Reason};

/// One declared object. An unchanged object keeps its `Arc` from one [`Desired`](super::Desired) to the next, so that
/// comparing two of them costs little more than comparing pointers.
#[derive(Clone, Debug)]
pub struct DeclaredObject<S> {
    /// Identity and origin.
    pub meta: DeclaredMeta,
    /// The declaration in force: the last good one. `None` if there never was one.
    pub spec: Option<Arc<S>>,
    /// Digest of `spec` with references unresolved and literal values left out.
    pub spec_digest: Option<Digest>,
    /// Why the newest declaration is not accepted, if it is not.
    pub rejected: Option<Problem>,
    /// How to reach the server, or which reference was not found. `None` for skills and where `spec` is.
    pub endpoint: Option<Result<Arc<Endpoint>, Problem>>,
}

impl<S> DeclaredObject<S> {
    /// Why what is declared is not in force: it is not valid, or it may not run here.
    pub fn rejection(&self) -> Option<&Problem> {
        self.rejected.as_ref().or_else(|| self.policy_denial())
    }

    /// Tells whether it may not run here.
    pub fn is_denied_by_policy(&self) -> bool {
        self.policy_denial().is_some()
    }

    fn policy_denial(&self) -> Option<&Problem> {
        self.endpoint.as_ref()?.as_ref().err().filter(|problem| problem.reason == Reason::PolicyDenied)
    }
}

/// The same declaration, not an equal one: what [`OrdMap::diff`](imbl::OrdMap::diff) needs to cost only what changed.
impl<S> PartialEq for DeclaredObject<S> {
    fn eq(&self, other: &Self) -> bool {
        std::ptr::eq(self, other)
    }
}

impl<S> Eq for DeclaredObject<S> {}

/// Identity and origin of a declared object.
#[derive(Clone, Debug)]
pub struct DeclaredMeta {
    /// Namespace and name.
    pub key: ObjectKey,
    /// Stays while the object exists; another if it was deleted and created again.
    pub uid: Arc<str>,
    /// 1 for a new object, plus one whenever its declaration changes.
    pub generation: i64,
    /// When the object appeared.
    pub created_at: Timestamp,
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
    pub last_commit: Option<Arc<Commit>>,
}

impl DeclaredMeta {
    /// Gives the file that declares the object, relative to the root of its source, if one does.
    pub fn file(&self) -> Option<&Arc<PathBuf>> {
        self.origin.file().map(|(path, _)| path)
    }
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

impl Origin {
    /// Gives the file, relative to the root of its source, and the line from 1; `None` if the object stands in no file.
    pub fn file(&self) -> Option<(&Arc<PathBuf>, u32)> {
        match self {
            Self::File { path, line } => Some((path, *line)),
            Self::Cluster { .. } => None,
        }
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

/// Tells whether two endpoints are the same connection, or the same problem.
pub fn same_endpoint(
    one: Option<&Result<Arc<Endpoint>, Problem>>,
    other: Option<&Result<Arc<Endpoint>, Problem>>,
) -> bool {
    let seen = |endpoint: &Result<Arc<Endpoint>, Problem>| match endpoint {
        Ok(endpoint) => Ok(endpoint.digest()),
        Err(problem) => Err(problem.clone()),
    };
    one.map(seen) == other.map(seen)
}
