//! One declared object: its kind, its key and what it was read from. Pure.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::path::{is_skill_file, join_within_root};
use crate::resource::{
    Endpoint, McpServerSpec, ObjectKey, Problem, SkillSpec, Violation, check_cluster_server,
    check_cluster_skill, check_server, check_skill, is_namespace_name, is_object_name,
};

/// The namespace of objects of a directory that name none.
const DEFAULT_NAMESPACE: &str = "default";

/// Where what files declare is to be in force.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TargetMode {
    /// Where the files are.
    Directory,
    /// In a cluster: the files are manifests, that `kubectl apply` takes.
    Cluster {
        /// The namespace of objects that name none.
        namespace: String,
    },
}

impl TargetMode {
    /// Gives the namespace of objects that name none.
    pub fn namespace(&self) -> &str {
        match self {
            Self::Directory => DEFAULT_NAMESPACE,
            Self::Cluster { namespace } => namespace,
        }
    }
}

/// A spec that an object of our group may have.
pub trait ObjectSpec: Clone + PartialEq + Serialize + DeserializeOwned {
    /// As in `kind:`.
    const KIND: &'static str;

    /// Every rule that it breaks.
    fn check(&self, destination: &TargetMode) -> Vec<Violation>;

    /// How to reach what `file` declares, if it is something to be reached.
    fn endpoint(&self, file: &Path, resolve: &EndpointResolver<'_>)
    -> Option<Result<Arc<Endpoint>, Problem>>;

    /// Whether this, declared in `file`, is about what the `other` file is.
    fn refers_to_file(&self, file: &Path, other: &Path) -> bool;
}

/// Makes an endpoint of a spec and of the file that declares it.
pub type EndpointResolver<'a> = dyn Fn(&McpServerSpec, &Path) -> Result<Arc<Endpoint>, Problem> + 'a;

impl ObjectSpec for McpServerSpec {
    const KIND: &'static str = "McpServer";

    fn check(&self, destination: &TargetMode) -> Vec<Violation> {
        let more = match destination {
            TargetMode::Directory => Vec::new(),
            TargetMode::Cluster { .. } => check_cluster_server(self),
        };
        check_server(self).into_iter().chain(more).collect()
    }

    fn endpoint(
        &self,
        file: &Path,
        resolve: &EndpointResolver<'_>,
    ) -> Option<Result<Arc<Endpoint>, Problem>> {
        Some(resolve(self, file))
    }

    fn refers_to_file(&self, _: &Path, _: &Path) -> bool {
        false
    }
}

impl ObjectSpec for SkillSpec {
    const KIND: &'static str = "Skill";

    fn check(&self, destination: &TargetMode) -> Vec<Violation> {
        let more = match destination {
            TargetMode::Directory => {
                let map = self.config_map_ref.as_ref().map(|_| Violation {
                    path: "spec.configMapRef".into(),
                    message: "there are no ConfigMaps beside a file; use path or inline".into(),
                });
                map.into_iter().collect()
            }
            TargetMode::Cluster { .. } => check_cluster_skill(self),
        };
        check_skill(self).into_iter().chain(more).collect()
    }

    fn endpoint(&self, _: &Path, _: &EndpointResolver<'_>) -> Option<Result<Arc<Endpoint>, Problem>> {
        None
    }

    fn refers_to_file(&self, file: &Path, other: &Path) -> bool {
        let folder = self.path.as_ref().and_then(|path| join_within_root(file.parent()?, path));
        is_skill_file(other) && folder.as_deref() == other.parent()
    }
}

/// One declared object.
#[derive(Clone, Debug)]
pub struct ParsedObject<S> {
    pub key: ObjectKey,
    /// The line at which its document begins, from 1.
    pub line: u32,
    pub labels: BTreeMap<String, String>,
    pub annotations: BTreeMap<String, String>,
    /// The document itself, to be remembered.
    pub document: Arc<str>,
    /// What is declared, or why it cannot be accepted.
    pub spec: Result<S, Problem>,
}

/// Namespace and name, as Kubernetes allows them.
pub fn key(name: Option<&str>, namespace: &str) -> Result<ObjectKey, String> {
    let name = name.ok_or("metadata.name is missing")?;
    let allowed = "lower-case letters, digits and -, beginning and ending with a letter or digit";
    if !is_object_name(name) {
        return Err(format!(
            "metadata.name {name:?} must be at most 253 {allowed}; it may have several parts joined by dots"
        ));
    }
    if !is_namespace_name(namespace) {
        return Err(format!("metadata.namespace {namespace:?} must be at most 63 {allowed}"));
    }
    Ok(ObjectKey::new(namespace, name))
}
