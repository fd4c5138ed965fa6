//! What the watches tell, and which watches there are.

use std::fmt;
use std::sync::Arc;

use kube::core::DynamicObject;

use super::references::{ConfigMapFiles, ConfigMapName, ReferenceLookup, SecretName, SecretValues};
use crate::resource::{ObjectKey, Problem};

/// Something that a watch tells.
pub(super) enum WatchMessage {
    Server(Box<DynamicObject>),
    Skill(Box<DynamicObject>),
    ServerDeleted(ObjectKey),
    SkillDeleted(ObjectKey),
    Secret(SecretName, ReferenceLookup<SecretValues>),
    ConfigMap(ConfigMapName, ReferenceLookup<ConfigMapFiles>),
    /// Everything that is there was told.
    Listed(WatchId),
    /// The watch broke, and begins anew.
    Failed(WatchId, Problem),
}

/// One of the watches; without a namespace it is of all.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum WatchId {
    Servers(Option<Arc<str>>),
    Skills(Option<Arc<str>>),
    Secret(SecretName),
    ConfigMap(ConfigMapName),
}

impl WatchId {
    /// What is watched, as written in a URL.
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
