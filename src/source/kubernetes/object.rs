//! One object of the API server as a declaration. Pure.

use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::core::DynamicObject;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::resource::{
    DeclaredMeta, McpServerSpec, McpServerStatus, ObjectKey, Origin, Problem, Reason, SkillSpec, SkillStatus,
    Violation, check_cluster_server, check_cluster_skill, check_server, check_skill,
};
use crate::source::StoredStatus;

/// Holds a whole earlier manifest, values and all.
const LAST_APPLIED_ANNOTATION: &str = "kubectl.kubernetes.io/last-applied-configuration";

/// What the API server says about an object now.
#[derive(Clone, Debug)]
pub(super) struct LatestObject<S> {
    pub meta: DeclaredMeta,
    /// What is declared, or why it cannot be accepted.
    pub spec: Result<S, Problem>,
}

/// What differs between the kinds.
pub(super) trait WatchedKind: DeserializeOwned {
    type Status: DeserializeOwned;

    /// Every rule that it breaks, of the CRD (which may be another version's) and of a cluster.
    fn check(&self) -> Result<(), Problem>;

    /// The generation that a status speaks of, and the revision that it names.
    fn observed(status: &Self::Status) -> (Option<i64>, Option<&str>);
}

impl WatchedKind for McpServerSpec {
    type Status = McpServerStatus;

    fn check(&self) -> Result<(), Problem> {
        violations_to_result(check_server(self).into_iter().chain(check_cluster_server(self)))
    }

    fn observed(status: &McpServerStatus) -> (Option<i64>, Option<&str>) {
        (status.observed_generation, status.last_applied_revision.as_deref())
    }
}

impl WatchedKind for SkillSpec {
    type Status = SkillStatus;

    fn check(&self) -> Result<(), Problem> {
        violations_to_result(check_skill(self).into_iter().chain(check_cluster_skill(self)))
    }

    fn observed(status: &SkillStatus) -> (Option<i64>, Option<&str>) {
        (status.observed_generation, status.last_applied_revision.as_deref())
    }
}

/// Takes an object apart: what is declared, and the status that it shows.
pub(super) fn decode<S: WatchedKind>(object: DynamicObject) -> (LatestObject<S>, StoredStatus<S::Status>) {
    let DynamicObject { metadata, mut data, .. } = object;
    let mut part = |name: &str| data.get_mut(name).map(Value::take).unwrap_or_default();
    // A status that cannot be read is as good as none: it is written again.
    let status = serde_json::from_value::<S::Status>(part("status")).ok();
    let spec = serde_json::from_value::<S>(part("spec"))
        .map_err(|error| {
            Problem::new(Reason::InvalidSpec, format!("spec: {}", redact_decode_error(&error.to_string())))
        })
        .and_then(|spec| spec.check().map(|()| spec));

    let key = object_key(&metadata);
    let resource_version = metadata.resource_version.unwrap_or_default();
    let generation = metadata.generation.unwrap_or_default();
    let mut annotations = metadata.annotations.unwrap_or_default();
    annotations.remove(LAST_APPLIED_ANNOTATION);
    // Every write of a status gives the object another version, so a revision that was told stays.
    let told = status.as_ref().map(S::observed);
    let revision = match told {
        Some((Some(of), Some(revision))) if of == generation => revision.to_owned(),
        _ => resource_version.clone(),
    };
    let uid: Arc<str> = metadata.uid.unwrap_or_default().into();
    let shown = StoredStatus {
        uid: uid.clone(),
        resource_version: resource_version.parse().unwrap_or_default(),
        status,
        terminating_generation: metadata.deletion_timestamp.map(|_| generation),
    };
    let meta = DeclaredMeta {
        key,
        uid,
        generation,
        created_at: metadata.creation_timestamp.map_or(Timestamp::UNIX_EPOCH, |time| time.0),
        labels: metadata.labels.unwrap_or_default(),
        annotations,
        origin: Origin::Cluster { resource_version: resource_version.into() },
        revision: revision.into(),
        last_commit: None,
    };
    (LatestObject { meta, spec }, shown)
}

fn violations_to_result(broken: impl Iterator<Item = Violation>) -> Result<(), Problem> {
    let broken: Vec<_> = broken.map(|violation| violation.to_string()).collect();
    if broken.is_empty() { Ok(()) } else { Err(Problem::new(Reason::InvalidSpec, broken.join("; "))) }
}

/// What the decoder says, without the value that it met, which may be a secret.
fn redact_decode_error(message: &str) -> String {
    for kind in ["invalid type: ", "invalid value: "] {
        if let Some((before, rest)) = message.split_once(kind)
            && let Some((_, expected)) = rest.rsplit_once(", expected ")
        {
            return format!("{before}{kind}expected {expected}");
        }
    }
    message.to_owned()
}

/// Namespace and name.
pub(super) fn object_key(metadata: &ObjectMeta) -> ObjectKey {
    let text = |text: &Option<String>| text.as_deref().unwrap_or_default().to_owned();
    ObjectKey::new(text(&metadata.namespace), text(&metadata.name))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[expect(clippy::needless_pass_by_value, reason = "tables read better")]
    fn object(spec: Value, status: Value) -> DynamicObject {
        serde_json::from_value(json!({
            "apiVersion": "evenkeel.dev/v1alpha1",
            "kind": "McpServer",
            "metadata": {
                "name": "a", "namespace": "n", "uid": "u", "generation": 3, "resourceVersion": "41",
                "creationTimestamp": "2026-01-01T00:00:00Z", "annotations": { LAST_APPLIED_ANNOTATION: "hunter2", "x": "y" },
            },
            "spec": spec,
            "status": status,
        }))
        .unwrap()
    }

    #[test]
    fn spec_is_checked_by_the_rules_of_a_cluster() {
        let env = |from: Value| json!({ "stdio": { "command": "allowed", "env": [{ "name": "A_TOKEN", "valueFrom": from }] } });
        for (spec, expected) in [
            (json!({ "http": { "url": "http://a" } }), ""),
            (json!({ "stdio": { "command": "allowed" } }), ""),
            (json!({ "stdio": { "command": "allowed", "cwd": "x" } }), "InvalidSpec: spec.stdio.cwd: "),
            (env(json!({ "env": "HOME" })), "InvalidSpec: spec.stdio.env[0].valueFrom.env: "),
            (env(json!({ "secretKeyRef": { "name": "s", "key": "k" } })), ""),
            (
                json!({ "http": { "url": "http://a", "headers": [{ "name": "A", "valueFrom": { "env": "HOME" } }] } }),
                "InvalidSpec: spec.http.headers[0].valueFrom.env: ",
            ),
            (json!({}), "InvalidSpec: spec: exactly one of stdio and http"),
            (
                json!({ "http": { "url": "http://a" }, "later": 1 }),
                "InvalidSpec: spec: unknown field `later`",
            ),
            (json!({ "http": "hunter2" }), "InvalidSpec: spec: invalid type: expected struct HttpTransport"),
            (Value::Null, "InvalidSpec: spec: invalid type: expected struct McpServerSpec"),
        ] {
            let (newest, _) = decode::<McpServerSpec>(object(spec.clone(), Value::Null));
            let told = newest.spec.map_or_else(|problem| problem.to_string(), |_| String::new());
            assert!(told.starts_with(expected) && told.is_empty() == expected.is_empty(), "{spec}: {told}");
            assert!(!told.contains("hunter2"), "{told}");
        }
        let skill = object(json!({ "path": "x" }), Value::Null);
        let (newest, _) = decode::<SkillSpec>(skill);
        assert!(newest.spec.unwrap_err().message.starts_with("spec.path: "));
    }

    #[test]
    fn metadata_is_copied_and_the_applied_revision_is_kept() {
        let spec = json!({ "http": { "url": "http://a" } });
        for (status, revision) in [
            (Value::Null, "41"),
            (json!({ "observedGeneration": -1 }), "41"),
            (json!({ "observedGeneration": 3, "lastAppliedRevision": "7" }), "7"),
            (json!({ "observedGeneration": 2, "lastAppliedRevision": "7" }), "41"),
            (json!({ "observedGeneration": "nonsense" }), "41"),
        ] {
            let (newest, shown) = decode::<McpServerSpec>(object(spec.clone(), status.clone()));
            assert_eq!(&*newest.meta.revision, revision, "{status}");
            assert_eq!(newest.meta.key.to_string(), "n/a");
            assert_eq!((newest.meta.generation, &*newest.meta.uid), (3, "u"));
            assert_eq!(newest.meta.annotations.keys().collect::<Vec<_>>(), ["x"]);
            assert_eq!(shown.resource_version, 41);
        }
    }
}
