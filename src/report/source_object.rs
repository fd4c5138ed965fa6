use std::path::{Path, PathBuf};

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use serde_json::{Value, json};

use super::object::{Kind, manifest};
use super::source::SourceStatus;
use crate::resource::Digest;

/// The one object of the kind `Source`.
#[derive(Clone, Debug)]
pub struct Source {
    /// What is read.
    pub place: Place,
    /// When it was first looked at.
    pub created: Timestamp,
    /// What is true about it.
    pub status: SourceStatus,
    /// That of its newest change.
    pub resource_version: u64,
}

/// Where declarations are read.
#[derive(Clone, Debug)]
pub enum Place {
    /// The directory as given on the command line, absolute.
    Directory(PathBuf),
    /// An API server, and which of its namespaces.
    Cluster(String),
}

impl From<&Path> for Place {
    fn from(directory: &Path) -> Self {
        Self::Directory(directory.to_owned())
    }
}

impl Source {
    /// Its name.
    pub fn name(&self) -> &'static str {
        match self.place {
            Place::Directory(_) => "directory",
            Place::Cluster(_) => "cluster",
        }
    }

    /// The object as the Kubernetes API gives it.
    pub fn manifest(&self) -> Value {
        let metadata = ObjectMeta {
            name: Some(self.name().into()),
            uid: Some(self.uid()),
            generation: Some(1),
            resource_version: Some(self.resource_version.to_string()),
            creation_timestamp: Some(Time(self.created)),
            ..ObjectMeta::default()
        };
        let spec = match &self.place {
            Place::Directory(directory) => json!({ "directory": directory }),
            Place::Cluster(cluster) => json!({ "cluster": cluster }),
        };
        manifest(Kind::Source, &metadata, Some(spec), &self.status)
    }

    /// The same in every run: made from the path of a directory, or from what stands for one.
    pub(super) fn uid(&self) -> String {
        match &self.place {
            Place::Directory(directory) => Digest::of(directory.as_os_str().as_encoded_bytes()),
            Place::Cluster(cluster) => Digest::of(cluster.as_bytes()),
        }
        .uuid()
    }
}
