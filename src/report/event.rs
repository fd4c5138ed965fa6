use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::api::events::v1 as api;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta, Time};
use serde::Serialize;

use super::object::ObjectKind;
use super::source_object::SourceObject;
use crate::resource::{API_VERSION, Commit, DeclaredMeta, Digest, GROUP, ObjectKey, Reason};

/// The maximum length of a note in bytes, according to `events.k8s.io/v1`.
const MAX_NOTE_BYTES: usize = 1024;
/// The annotation of an event with the source revision at which its object last changed.
const REVISION_ANNOTATION: &str = "evenkeel.dev/revision";

/// One occurrence on one object. It becomes one audit record, and is aggregated into an [`Event`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Occurrence {
    /// The time of the occurrence.
    pub at: Timestamp,
    /// The object.
    pub regarding: Regarding,
    /// The action.
    pub action: EventAction,
    /// True if an operator should know about it, because it deviates from the declared state.
    pub warning: bool,
    /// The reason.
    pub reason: Reason,
    /// The message, at most 1,024 bytes, without secrets.
    pub note: String,
    /// The note of the event, where the message differs each time and would prevent aggregation.
    pub fixed_note: Option<&'static str>,
    /// The source revision at which the object last changed; for a removed object, the first revision without it.
    pub revision: Arc<str>,
    /// The commit of that change, where it is known.
    pub commit: Option<Arc<Commit>>,
    /// The public digest of the previous declaration, if there was one.
    pub previous_digest: Option<Digest>,
    /// The public digest of the current declaration, if there is one.
    pub digest: Option<Digest>,
}

impl Occurrence {
    /// Returns the note of its event.
    pub fn event_note(&self) -> &str {
        self.fixed_note.unwrap_or(&self.note)
    }

    /// Returns the text that, with the object and the reason, identifies the event of this occurrence. All changes of a
    /// declaration are one event, whose note is that of the latest change.
    pub(super) fn aggregation_key(&self) -> &str {
        if self.reason == Reason::Updated { self.fixed_note.unwrap_or_default() } else { self.event_note() }
    }
}

/// The object of an occurrence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Regarding {
    /// The kind.
    pub kind: ObjectKind,
    /// The namespace and name; the namespace of a `Source` is empty.
    pub key: ObjectKey,
    /// The uid.
    pub uid: Arc<str>,
    /// The generation at the time of the occurrence.
    pub generation: i64,
}

/// The action of an occurrence.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum EventAction {
    /// The object was declared.
    Create,
    /// The declaration changed.
    Update,
    /// The object is no longer declared.
    Delete,
    /// A client of the status API requested work on the object.
    Request,
    /// Evenkeel worked on the object. The reason is the result.
    Reconcile,
}

/// Equal occurrences, aggregated into an `Event` of the Kubernetes API.
#[derive(Clone, Debug)]
pub struct Event {
    /// The name of the event, in the namespace of the object.
    pub key: ObjectKey,
    /// The latest occurrence. All of them have the same object and reason.
    pub latest: Arc<Occurrence>,
    /// The time of the first occurrence.
    pub first_at: Timestamp,
    /// The number of occurrences.
    pub count: u32,
    /// The resource version. It grows with every change of any object.
    pub resource_version: u64,
}

/// Two values are equal if they are the same event after the same occurrences.
impl PartialEq for Event {
    fn eq(&self, other: &Self) -> bool {
        self.resource_version == other.resource_version
    }
}

/// Formats the object as in log lines: `Kind/namespace/name`.
impl fmt::Display for Regarding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (kind, name) = (self.kind.name(), &self.key.name);
        if self.kind.is_namespaced() { write!(f, "{kind}/{}", self.key) } else { write!(f, "{kind}/{name}") }
    }
}

impl Regarding {
    /// Creates the reference to a declared object.
    pub(super) fn for_object(kind: ObjectKind, meta: &DeclaredMeta) -> Self {
        Self { kind, key: meta.key.clone(), uid: meta.uid.clone(), generation: meta.generation }
    }

    /// Creates the reference to the source.
    pub(super) fn for_source(source: &SourceObject) -> Self {
        let key = ObjectKey::new("", source.name());
        Self { kind: ObjectKind::Source, key, uid: source.uid().into(), generation: 1 }
    }

    /// Returns the namespace of events about the object. Events about cluster-scoped objects are in `default`, as in
    /// Kubernetes.
    pub(super) fn event_namespace(&self) -> &str {
        if self.key.namespace.is_empty() { "default" } else { &self.key.namespace }
    }
}

impl Event {
    /// Returns the event in the form of `events.k8s.io/v1`, with `instance` as the reporting instance.
    pub fn manifest(&self, instance: &str) -> api::Event {
        let Occurrence { at, regarding, action, warning, reason, revision, .. } = &*self.latest;
        let revision = BTreeMap::from([(REVISION_ANNOTATION.to_owned(), revision.to_string())]);
        api::Event {
            metadata: ObjectMeta {
                name: Some(self.key.name.to_string()),
                namespace: Some(self.key.namespace.to_string()),
                uid: Some(Digest::of(self.key.to_string().as_bytes()).uuid()),
                creation_timestamp: Some(Time(self.first_at)),
                resource_version: Some(self.resource_version.to_string()),
                annotations: Some(revision).filter(|_| !self.latest.revision.is_empty()),
                ..ObjectMeta::default()
            },
            event_time: Some(MicroTime(self.first_at)),
            series: (self.count > 1).then(|| api::EventSeries {
                count: i32::try_from(self.count).unwrap_or(i32::MAX),
                last_observed_time: MicroTime(*at),
            }),
            reporting_controller: Some(GROUP.into()),
            reporting_instance: Some(instance.into()),
            action: Some(format!("{action:?}")),
            reason: Some(reason.to_string()),
            regarding: Some(ObjectReference {
                api_version: Some(API_VERSION.into()),
                kind: Some(regarding.kind.name().into()),
                name: Some(regarding.key.name.to_string()),
                namespace: Some(regarding.key.namespace.to_string()).filter(|name| !name.is_empty()),
                uid: Some(regarding.uid.to_string()),
                ..ObjectReference::default()
            }),
            note: Some(self.latest.event_note().to_owned()),
            type_: Some(if *warning { "Warning" } else { "Normal" }.into()),
            ..api::Event::default()
        }
    }
}

/// Shortens a note to the maximum length.
pub(super) fn bounded_note(message: &str) -> String {
    if message.len() <= MAX_NOTE_BYTES {
        return message.to_owned();
    }
    let end = message.floor_char_boundary(MAX_NOTE_BYTES - '…'.len_utf8());
    format!("{}…", message.get(..end).unwrap_or_default())
}
