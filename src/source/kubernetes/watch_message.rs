//! The messages of the watches, and the identities of the watches.

use std::fmt;
use std::sync::Arc;

use kube::core::DynamicObject;

use super::references::{ConfigMapFiles, ConfigMapName, ReferenceLookup, SecretName, SecretValues};
use crate::resource::{ObjectKey, Problem};

/// A message of a watch.
pub(super) enum WatchMessage {
    Server(Box<DynamicObject>),
    Skill(Box<DynamicObject>),
    ServerDeleted(ObjectKey),
    SkillDeleted(ObjectKey),
    Secret(SecretName, ReferenceLookup<SecretValues>),
    ConfigMap(ConfigMapName, ReferenceLookup<ConfigMapFiles>),
    /// All existing objects were sent.
    Listed(WatchId),
    /// The watch failed, and restarts.
    Failed(WatchId, Problem),
}

/// The identity of a watch. Without a namespace it covers all namespaces.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum WatchId {
    Servers(Option<Arc<str>>),
    Skills(Option<Arc<str>>),
    Secret(SecretName),
    ConfigMap(ConfigMapName),
}

impl WatchId {
    /// Returns the plural name of the watched kind, as in a URL.
    pub fn plural(&self) -> &'static str {
        match self {
            Self::Servers(_) => "mcpservers",
            Self::Skills(_) => "skills",
            Self::Secret(_) => "secrets",
            Self::ConfigMap(_) => "configmaps",
        }
    }
}

impl fmt::Display for WatchId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Servers(Some(namespace)) | Self::Skills(Some(namespace)) => {
                write!(f, "{} in namespace {namespace}", self.plural())
            }
            Self::Servers(None) | Self::Skills(None) => write!(f, "{} in all namespaces", self.plural()),
            Self::Secret(name) => write!(f, "secret {} in namespace {}", name.name, name.namespace),
            Self::ConfigMap(name) => write!(f, "configmap {} in namespace {}", name.name, name.namespace),
        }
    }
}
