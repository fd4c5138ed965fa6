//! One declared object: its kind, its key and the document that it was parsed from. Pure.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::expand::editor_variable_advice;
use super::path::{is_skill_file, join_within_root};
use crate::resource::{
    Endpoint, McpServerSpec, ObjectKey, Problem, SkillSpec, Violation, check_cluster_server,
    check_cluster_skill, check_server, check_skill, is_namespace_name, is_object_name, server_advice,
};

/// The namespace of objects of a directory that do not specify one.
const DEFAULT_NAMESPACE: &str = "default";

/// The target in which the declarations of the files take effect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TargetMode {
    /// The directory that contains the files.
    Directory,
    /// A cluster: the files are manifests for `kubectl apply`.
    Cluster {
        /// The namespace of objects that do not specify one.
        namespace: String,
    },
}

impl TargetMode {
    /// Returns the namespace of objects that do not specify one.
    pub fn namespace(&self) -> &str {
        match self {
            Self::Directory => DEFAULT_NAMESPACE,
            Self::Cluster { namespace } => namespace,
        }
    }
}

/// A spec of an object of evenkeel's API group.
pub trait ObjectSpec: Clone + PartialEq + Serialize + DeserializeOwned {
    /// The kind, as in `kind:`.
    const KIND: &'static str;

    /// Returns every rule that the spec violates.
    fn check(&self, target: &TargetMode) -> Vec<Violation>;

    /// Returns what the valid spec most likely does not mean as it is written. `is_expanded` is true if `${NAME}` in it
    /// stands for a variable.
    fn advice(&self, is_expanded: bool) -> Vec<Violation>;

    /// Returns the endpoint of the object that `file` declares; `None` if the kind has no endpoint.
    fn endpoint(&self, file: &Path, resolve: &EndpointResolver<'_>)
    -> Option<Result<Arc<Endpoint>, Problem>>;

    /// True if this spec, declared in `file`, describes the same thing as the file `other`.
    fn refers_to_file(&self, file: &Path, other: &Path) -> bool;
}

/// Resolves the endpoint of a spec that a file declares.
pub type EndpointResolver<'a> = dyn Fn(&McpServerSpec, &Path) -> Result<Arc<Endpoint>, Problem> + 'a;

impl ObjectSpec for McpServerSpec {
    const KIND: &'static str = "McpServer";

    fn check(&self, target: &TargetMode) -> Vec<Violation> {
        let target_violations = match target {
            TargetMode::Directory => env_file_violation(self).into_iter().collect(),
            TargetMode::Cluster { .. } => check_cluster_server(self),
        };
        check_server(self).into_iter().chain(target_violations).collect()
    }

    fn advice(&self, is_expanded: bool) -> Vec<Violation> {
        server_advice(self, is_expanded)
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

/// Returns the violation of a path of variables' file that is empty or holds a variable.
fn env_file_violation(spec: &McpServerSpec) -> Option<Violation> {
    let path = spec.stdio.as_ref()?.env_file.as_ref()?;
    let message = if path.is_empty() {
        "envFile must not be empty".to_owned()
    } else {
        path.split_once("${")?;
        editor_variable_advice(path).unwrap_or_else(|| {
            "no variable is expanded in this path; write it relative to the folder of this file".to_owned()
        })
    };
    Some(Violation { path: "spec.stdio.envFile".into(), message })
}

impl ObjectSpec for SkillSpec {
    const KIND: &'static str = "Skill";

    fn check(&self, target: &TargetMode) -> Vec<Violation> {
        let target_violations = match target {
            TargetMode::Directory => {
                let violation = self.config_map_ref.as_ref().map(|_| Violation {
                    path: "spec.configMapRef".into(),
                    message: "configMapRef is only supported in a cluster; use path or inline".into(),
                });
                violation.into_iter().collect()
            }
            TargetMode::Cluster { .. } => check_cluster_skill(self),
        };
        check_skill(self).into_iter().chain(target_violations).collect()
    }

    fn advice(&self, _: bool) -> Vec<Violation> {
        Vec::new()
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
    /// The document itself, to be saved.
    pub document: Arc<str>,
    /// The declared spec, or the reason it cannot be accepted.
    pub spec: Result<S, Problem>,
}

/// Returns the key for a name and a namespace that are valid in Kubernetes.
///
/// Errors: a message that begins with the path of the invalid field.
pub fn object_key(name: Option<&str>, namespace: &str) -> Result<ObjectKey, String> {
    let name = name.ok_or("metadata.name is missing")?;
    let rule = "lower-case letters, digits and -, beginning and ending with a letter or digit";
    if !is_object_name(name) {
        return Err(format!(
            "metadata.name {name:?} must be at most 253 {rule}; it may have several parts joined by dots"
        ));
    }
    if !is_namespace_name(namespace) {
        return Err(format!("metadata.namespace {namespace:?} must be at most 63 {rule}"));
    }
    Ok(ObjectKey::new(namespace, name))
}
