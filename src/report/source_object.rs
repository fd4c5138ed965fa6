use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use serde_json::{Value, json};

use super::object::{ObjectKind, manifest};
use super::source::SourceStatus;
use crate::resource::{Digest, SourceId};

/// The single object of the kind `Source`.
#[derive(Clone, Debug)]
pub struct SourceObject {
    /// The identity of the source.
    pub id: SourceId,
    /// The start time of this process.
    pub created: Timestamp,
    /// The status.
    pub status: SourceStatus,
    /// The resource version of its latest change.
    pub resource_version: u64,
}

impl SourceObject {
    /// Returns the name of the object.
    pub fn name(&self) -> &'static str {
        self.id.kind
    }

    /// Returns the object in the form of the Kubernetes API.
    pub fn manifest(&self) -> Value {
        let metadata = ObjectMeta {
            name: Some(self.name().into()),
            uid: Some(self.uid()),
            generation: Some(1),
            resource_version: Some(self.resource_version.to_string()),
            creation_timestamp: Some(Time(self.created)),
            ..ObjectMeta::default()
        };
        let spec = json!({ self.id.kind: self.id.location });
        manifest(ObjectKind::Source, &metadata, Some(spec), &self.status)
    }

    /// Returns the uid. It is the same in every run, because it is derived from the path of the directory or the
    /// address of the cluster.
    pub(super) fn uid(&self) -> String {
        Digest::of(self.id.location.as_bytes()).uuid()
    }
}
