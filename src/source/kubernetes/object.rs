//! Decodes one object of the API server into a declaration. Pure.

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

/// The annotation of `kubectl apply`, which contains a whole earlier manifest with its values.
const LAST_APPLIED_ANNOTATION: &str = "kubectl.kubernetes.io/last-applied-configuration";

/// The latest state of an object in the API server.
#[derive(Clone, Debug)]
pub(super) struct LatestObject<S> {
    pub meta: DeclaredMeta,
    /// The declared spec, or the reason it cannot be accepted.
    pub spec: Result<S, Problem>,
}

/// The kind-specific parts of a watched object.
pub(super) trait WatchedKind: DeserializeOwned {
    type Status: DeserializeOwned;

    /// Checks the rules of the CRD (the installed one may be of another version) and those of a cluster.
    ///
    /// Errors: every violated rule.
    fn check(&self) -> Result<(), Problem>;

    /// Returns the generation that a status describes, and the revision that it contains.
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

/// Splits an object into its declaration and its stored status.
pub(super) fn decode<S: WatchedKind>(object: DynamicObject) -> (LatestObject<S>, StoredStatus<S::Status>) {
    let DynamicObject { metadata, mut data, .. } = object;
    let mut take_field = |name: &str| data.get_mut(name).map(Value::take).unwrap_or_default();
    // A status that cannot be decoded is treated as missing and is written again.
    let status = serde_json::from_value::<S::Status>(take_field("status")).ok();
    let spec = serde_json::from_value::<S>(take_field("spec"))
        .map_err(|error| {
            Problem::new(Reason::InvalidSpec, format!("spec: {}", redact_decode_error(&error.to_string())))
        })
        .and_then(|spec| spec.check().map(|()| spec));

    let key = object_key(&metadata);
    let resource_version = metadata.resource_version.unwrap_or_default();
    let generation = metadata.generation.unwrap_or_default();
    let mut annotations = metadata.annotations.unwrap_or_default();
    annotations.remove(LAST_APPLIED_ANNOTATION);
    // Every write of a status changes the resourceVersion of the object, so a revision that was reported for this
    // generation is kept.
    let observed = status.as_ref().map(S::observed);
    let revision = match observed {
        Some((Some(observed), Some(revision))) if observed == generation => revision.to_owned(),
        _ => resource_version.clone(),
    };
    let uid: Arc<str> = metadata.uid.unwrap_or_default().into();
    let stored_status = StoredStatus {
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
    (LatestObject { meta, spec }, stored_status)
}

fn violations_to_result(violations: impl Iterator<Item = Violation>) -> Result<(), Problem> {
    let violations: Vec<_> = violations.map(|violation| violation.to_string()).collect();
    if violations.is_empty() { Ok(()) } else { Err(Problem::new(Reason::InvalidSpec, violations.join("; "))) }
}

/// Returns the error of the decoder without the value that caused it, which may be a secret.
fn redact_decode_error(message: &str) -> String {
    for kind in ["invalid type: ", "invalid value: "] {
        if let Some((before, details)) = message.split_once(kind)
            && let Some((_, expected)) = details.rsplit_once(", expected ")
        {
            return format!("{before}{kind}expected {expected}");
        }
    }
    message.to_owned()
}

/// Returns the namespace and name of an object.
pub(super) fn object_key(metadata: &ObjectMeta) -> ObjectKey {
    let text_or_empty = |text: &Option<String>| text.as_deref().unwrap_or_default().to_owned();
    ObjectKey::new(text_or_empty(&metadata.namespace), text_or_empty(&metadata.name))
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
                "creationTimestamp": "2026-01-01T00:00:00Z",
                "annotations": { LAST_APPLIED_ANNOTATION: "hunter2", "x": "y" },
            },
            "spec": spec,
            "status": status,
        }))
        .unwrap()
    }

    #[test]
    fn spec_is_checked_by_the_rules_of_a_cluster() {
        let env = |from: Value| {
            let variable = json!({ "name": "A_TOKEN", "valueFrom": from });
            json!({ "stdio": { "command": "allowed", "env": [variable] } })
        };
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
            let (latest, _) = decode::<McpServerSpec>(object(spec.clone(), Value::Null));
            let message = latest.spec.map_or_else(|problem| problem.to_string(), |_| String::new());
            assert!(
                message.starts_with(expected) && message.is_empty() == expected.is_empty(),
                "{spec}: {message}"
            );
            assert!(!message.contains("hunter2"), "{message}");
        }
        let skill = object(json!({ "path": "x" }), Value::Null);
        let (latest, _) = decode::<SkillSpec>(skill);
        assert!(latest.spec.unwrap_err().message.starts_with("spec.path: "));
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
            let (latest, stored_status) = decode::<McpServerSpec>(object(spec.clone(), status.clone()));
            assert_eq!(&*latest.meta.revision, revision, "{status}");
            assert_eq!(latest.meta.key.to_string(), "n/a");
            assert_eq!((latest.meta.generation, &*latest.meta.uid), (3, "u"));
            assert_eq!(latest.meta.annotations.keys().collect::<Vec<_>>(), ["x"]);
            assert_eq!(stored_status.resource_version, 41);
        }
    }
}
