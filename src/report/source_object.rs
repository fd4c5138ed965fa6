use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use serde_json::{Value, json};

use super::object::{ObjectKind, manifest};
use super::source::SourceStatus;
use crate::resource::{Digest, SourceId};

/// The one object of the kind `Source`.
#[derive(Clone, Debug)]
pub struct SourceObject {
    /// Which source it is.
    pub id: SourceId,
    /// When it was first looked at.
    pub created: Timestamp,
    /// What is true about it.
    pub status: SourceStatus,
    /// That of its newest change.
    pub resource_version: u64,
}

impl SourceObject {
    /// Its name.
    pub fn name(&self) -> &'static str {
        self.id.kind
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
        let spec = json!({ self.id.kind: self.id.location });
        manifest(ObjectKind::Source, &metadata, Some(spec), &self.status)
    }

    /// The same in every run: made from the path of a directory, or from what stands for one.
    pub(super) fn uid(&self) -> String {
        Digest::of(self.id.location.as_bytes()).uuid()
    }
}
