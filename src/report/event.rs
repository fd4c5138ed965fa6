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

/// The longest note, in bytes: what `events.k8s.io/v1` takes.
const MAX_NOTE_BYTES: usize = 1024;
/// The annotation of an event that says at which source revision its object last changed.
const REVISION_ANNOTATION: &str = "evenkeel.dev/revision";

/// One thing that happened to one object: a record of the audit log, and one of an [`Event`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Occurrence {
    /// When.
    pub at: Timestamp,
    /// To what.
    pub regarding: Regarding,
    /// What was done.
    pub action: EventAction,
    /// True if a person should know: not what was asked for.
    pub warning: bool,
    /// The word for it.
    pub reason: Reason,
    /// The sentence for it, at most 1,024 bytes, without secrets.
    pub note: String,
    /// What an event says instead, where the sentence is another each time.
    pub fixed_note: Option<&'static str>,
    /// The source revision at which the object last changed; of one that was removed, the revision without it.
    pub revision: Arc<str>,
    /// The commit behind that, where it is known.
    pub commit: Option<Arc<Commit>>,
    /// The public digest of the declaration before, if there was one.
    pub previous_digest: Option<Digest>,
    /// The public digest of the declaration now, if there is one.
    pub digest: Option<Digest>,
}

impl Occurrence {
    /// What an event says of it.
    pub fn event_note(&self) -> &str {
        self.fixed_note.unwrap_or(&self.note)
    }

    /// What occurrences of one event have in common beside the object and the reason. However often a declaration
    /// changes, that is one event, which says the newest.
    pub(super) fn aggregation_key(&self) -> &str {
        if self.reason == Reason::Updated { self.fixed_note.unwrap_or_default() } else { self.event_note() }
    }
}

/// The object that something happened to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Regarding {
    /// Its kind.
    pub kind: ObjectKind,
    /// Its name; the one of a `Source` has no namespace.
    pub key: ObjectKey,
    /// Its uid.
    pub uid: Arc<str>,
    /// The generation that was in force.
    pub generation: i64,
}

/// What was done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum EventAction {
    /// The object was declared.
    Create,
    /// Its declaration changed.
    Update,
    /// It is no longer declared.
    Delete,
    /// Somebody asked for work on it over the status API.
    Request,
    /// Evenkeel worked on it; the reason says with what outcome.
    Reconcile,
}

/// The same thing once or again and again: an `Event` of the Kubernetes API.
#[derive(Clone, Debug)]
pub struct Event {
    /// Its own name, in the namespace of the object.
    pub key: ObjectKey,
    /// The newest occurrence, which has the object and the reason of all of them.
    pub latest: Arc<Occurrence>,
    /// When it happened first.
    pub first_at: Timestamp,
    /// How often it has happened.
    pub count: u32,
    /// Grows with every change of any object.
    pub resource_version: u64,
}

/// The same event after the same occurrences.
impl PartialEq for Event {
    fn eq(&self, other: &Self) -> bool {
        self.resource_version == other.resource_version
    }
}

/// As the log names it.
impl fmt::Display for Regarding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (kind, name) = (self.kind.name(), &self.key.name);
        if self.kind.is_namespaced() { write!(f, "{kind}/{}", self.key) } else { write!(f, "{kind}/{name}") }
    }
}

impl Regarding {
    /// A declared object.
    pub(super) fn for_object(kind: ObjectKind, meta: &DeclaredMeta) -> Self {
        Self { kind, key: meta.key.clone(), uid: meta.uid.clone(), generation: meta.generation }
    }

    /// The source itself.
    pub(super) fn for_source(source: &SourceObject) -> Self {
        let key = ObjectKey::new("", source.name());
        Self { kind: ObjectKind::Source, key, uid: source.uid().into(), generation: 1 }
    }

    /// Where events about it are: what has no namespace is told of in `default`, as Kubernetes does it.
    pub(super) fn event_namespace(&self) -> &str {
        if self.key.namespace.is_empty() { "default" } else { &self.key.namespace }
    }
}

impl Event {
    /// The event as `events.k8s.io/v1` gives it, reported by this `instance` of evenkeel.
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

/// A note that is not too long.
pub(super) fn bounded_note(message: &str) -> String {
    if message.len() <= MAX_NOTE_BYTES {
        return message.to_owned();
    }
    let end = message.floor_char_boundary(MAX_NOTE_BYTES - '…'.len_utf8());
    format!("{}…", message.get(..end).unwrap_or_default())
}
