use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{Digest, Endpoint, ObjectKey, Problem, Reason};

/// One declared object. An unchanged object keeps its `Arc` from one [`Desired`](super::Desired) to the next, so
/// comparing two of them costs little more than comparing pointers.
#[derive(Clone, Debug)]
pub struct DeclaredObject<S> {
    /// The identity and origin.
    pub meta: DeclaredMeta,
    /// The spec in force: the last valid one. `None` if there never was one.
    pub spec: Option<Arc<S>>,
    /// The digest of `spec`, with references unresolved and without literal values.
    pub spec_digest: Option<Digest>,
    /// The reason why the newest declaration is not accepted; `None` if it is.
    pub rejected: Option<Problem>,
    /// The resolved endpoint of the server, or the problem that prevents it, such as a missing reference. `None` for
    /// skills and if `spec` is `None`.
    pub endpoint: Option<Result<Arc<Endpoint>, Problem>>,
}

impl<S> DeclaredObject<S> {
    /// Returns why the declaration is not in force: it is invalid, or policy denies it.
    pub fn rejection(&self) -> Option<&Problem> {
        self.rejected.as_ref().or_else(|| self.policy_denial())
    }

    /// Returns true if policy does not permit the server to run here.
    pub fn is_denied_by_policy(&self) -> bool {
        self.policy_denial().is_some()
    }

    fn policy_denial(&self) -> Option<&Problem> {
        self.endpoint.as_ref()?.as_ref().err().filter(|problem| problem.reason == Reason::PolicyDenied)
    }
}

/// Compares by identity, not by value, so that the cost of [`OrdMap::diff`](imbl::OrdMap::diff) depends only on the
/// number of changes.
impl<S> PartialEq for DeclaredObject<S> {
    fn eq(&self, other: &Self) -> bool {
        std::ptr::eq(self, other)
    }
}

impl<S> Eq for DeclaredObject<S> {}

/// The identity and origin of a declared object.
#[derive(Clone, Debug)]
pub struct DeclaredMeta {
    /// The namespace and name.
    pub key: ObjectKey,
    /// The uid. It changes if the object is deleted and created again.
    pub uid: Arc<str>,
    /// The generation: 1 for a new object, incremented whenever its declaration changes.
    pub generation: i64,
    /// The time at which the object appeared.
    pub created_at: Timestamp,
    /// The labels.
    pub labels: BTreeMap<String, String>,
    /// The annotations.
    pub annotations: BTreeMap<String, String>,
    /// The location of the declaration.
    pub origin: Origin,
    /// The source revision at which this object last changed.
    pub revision: Arc<str>,
    /// The last commit that changed the object, if the source is a git work tree and the change was already committed
    /// when evenkeel read it.
    pub last_commit: Option<Arc<Commit>>,
}

impl DeclaredMeta {
    /// Returns the file that declares the object, relative to the root of its source; `None` for an object in a
    /// cluster.
    pub fn file(&self) -> Option<&Arc<PathBuf>> {
        self.origin.file().map(|(path, _)| path)
    }
}

/// A git commit that changed a declaration. Author and subject are written by the committer and not trusted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Commit {
    /// The full hash.
    pub id: String,
    /// The author's name and address, without control characters and at most 200 characters long.
    pub author: String,
    /// The first line of the commit message, without control characters and at most 200 characters long.
    pub subject: String,
}

/// The location at which an object is declared.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// A file of a directory source.
    File {
        /// The path relative to the root of the source.
        path: Arc<PathBuf>,
        /// The first line of the object's document, starting at 1.
        line: u32,
    },
    /// An object in a cluster.
    Cluster {
        /// The object's `metadata.resourceVersion`.
        resource_version: Arc<str>,
    },
}

impl Origin {
    /// Returns the file, relative to the root of its source, and the line, starting at 1; `None` for an object in a
    /// cluster.
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

/// Returns true if two endpoints define the same connection or have the same problem.
pub fn same_endpoint(
    first: Option<&Result<Arc<Endpoint>, Problem>>,
    second: Option<&Result<Arc<Endpoint>, Problem>>,
) -> bool {
    let identity = |endpoint: &Result<Arc<Endpoint>, Problem>| match endpoint {
        Ok(endpoint) => Ok(endpoint.digest()),
        Err(problem) => Err(problem.clone()),
    };
    first.map(identity) == second.map(identity)
}
