use axum::body::{Body, to_bytes};
use axum::http::HeaderMap;
use axum::http::header::CONTENT_TYPE;
use serde_json::{Map, Value};
use tokio::time::timeout;

use super::object_version::{ObjectVersion, find_object};
use super::parameters::Parameters;
use super::resource::Resource;
use crate::admin::app::App;
use crate::admin::error_response::ErrorResponse;
use crate::report::StatusSnapshot;
use crate::resource::{ObjectKey, REQUEST_ANNOTATIONS};
use crate::source::ReconcileRequest;

/// The longest patch body that is accepted, in bytes.
const MAX_BODY_BYTES: usize = 64 << 10;
/// The longest annotation value that is accepted, in bytes.
const MAX_ANNOTATION_BYTES: usize = 256;
/// The longest time to wait until the object shows the requested annotations.
const STATUS_UPDATE_TIMEOUT: std::time::Duration = std::time::Duration::from_secs(5);

/// Applies a patch of the annotations that request work, and returns the object with them.
///
/// Waits at most [`STATUS_UPDATE_TIMEOUT`] for the store to show them; then returns the object as it was.
pub(super) async fn patch(
    app: &App,
    resource: Resource,
    key: &ObjectKey,
    headers: &HeaderMap,
    parameters: &Parameters,
    body: Body,
) -> Result<ObjectVersion, ErrorResponse> {
    let found = |snapshot: &StatusSnapshot| find_object(snapshot, resource, key);
    let forbidden = || ErrorResponse::annotations_only(&app.state.edit_hint);
    if !resource.accepts_reconcile_requests() {
        return Err(forbidden());
    }
    app.authorization.check_write(headers)?;
    let requests = app.state.requests.as_ref().ok_or_else(|| ErrorResponse::annotate_in_cluster(key))?;
    let item = found(&app.snapshot())
        .ok_or_else(|| ErrorResponse::object_not_found(resource.group(), resource.plural(), &key.name))?;
    let body = to_bytes(body, MAX_BODY_BYTES)
        .await
        .map_err(|_| ErrorResponse::bad_request("the body is too long"))?;
    let content_type =
        headers.get(CONTENT_TYPE).and_then(|content_type| content_type.to_str().ok()).unwrap_or_default();
    let patch: Value = serde_json::from_slice(&body)
        .map_err(|error| ErrorResponse::bad_request(format!("the patch is not JSON: {error}")))?;
    let requested = requested_annotations(content_type, &patch, &forbidden)?;
    check_preconditions(&patch, &item)?;
    if requested.is_empty() || parameters.dry_run {
        return Ok(item);
    }

    let uid = item.uid().unwrap_or_default();
    requests.submit(ReconcileRequest { key: key.clone(), uid, annotations: requested.clone() });
    let has_requested = |item: &ObjectVersion| {
        let annotations = item.annotations();
        requested.iter().all(|(key, value)| annotations.and_then(|map| map.get(*key)) == value.as_ref())
    };
    let mut store = app.state.store.clone();
    let updated = store.wait_for(|snapshot| found(snapshot).is_none_or(|item| has_requested(&item)));
    let now =
        timeout(STATUS_UPDATE_TIMEOUT, updated).await.map(|updated| updated.map(|snapshot| found(&snapshot)));
    // The object was removed, the time is over, or the instance is shutting down: return it as it was.
    Ok(now.ok().and_then(Result::ok).flatten().unwrap_or(item))
}

/// Returns the annotations that a patch sets, or removes (`None`).
///
/// # Errors
///
/// Returns `forbidden()` if the patch changes anything else, and 400 if a value is not a short string.
fn requested_annotations(
    content_type: &str,
    patch: &Value,
    forbidden: &impl Fn() -> ErrorResponse,
) -> Result<Vec<(&'static str, Option<String>)>, ErrorResponse> {
    let content_type = content_type.split(';').next().unwrap_or_default().trim();
    let changes = match (content_type, patch) {
        ("application/merge-patch+json" | "application/strategic-merge-patch+json", Value::Object(patch)) => {
            merge_patch_annotations(patch)
        }
        ("application/json-patch+json", Value::Array(operations)) => operations
            .iter()
            .map(json_patch_annotations)
            .collect::<Option<Vec<_>>>()
            .map(|operations| operations.concat()),
        _ => None,
    };
    let mut requested = Vec::new();
    for (key, value) in changes.ok_or_else(forbidden)? {
        let Some(annotation) = REQUEST_ANNOTATIONS.into_iter().find(|annotation| *annotation == key) else {
            return Err(forbidden());
        };
        let value = match value {
            Value::Null => None,
            Value::String(value) if value.len() <= MAX_ANNOTATION_BYTES => Some(value),
            _ => return Err(ErrorResponse::bad_request(format!("{key} must be a short string"))),
        };
        requested.push((annotation, value));
    }
    Ok(requested)
}

type AnnotationChanges = Vec<(String, Value)>;

/// Checks the name, namespace, uid and resourceVersion of a merge patch, as an API server does.
fn check_preconditions(patch: &Value, item: &ObjectVersion) -> Result<(), ErrorResponse> {
    let in_patch = |key: &str| patch.get("metadata")?.get(key)?.as_str();
    for (key, actual) in [("name", &item.key.name), ("namespace", &item.key.namespace)] {
        if let Some(other) = in_patch(key).filter(|in_patch| *in_patch != &**actual) {
            let message = format!("metadata.{key} is {other:?} in the patch and {actual:?} in the path");
            return Err(ErrorResponse::bad_request(message));
        }
    }
    let (uid, version) = (item.uid().unwrap_or_default(), item.version.to_string());
    for (key, actual) in [("uid", &*uid), ("resourceVersion", &*version)] {
        if let Some(other) = in_patch(key).filter(|in_patch| *in_patch != actual) {
            return Err(ErrorResponse::conflict(&item.key.name, key, other, actual));
        }
    }
    Ok(())
}

/// Returns the annotations of a merge patch; `None` if it holds more than annotations and the fields that identify
/// the object.
fn merge_patch_annotations(patch: &Map<String, Value>) -> Option<AnnotationChanges> {
    const TOP_LEVEL_FIELDS: [&str; 3] = ["apiVersion", "kind", "metadata"];
    const METADATA_FIELDS: [&str; 5] = ["name", "namespace", "uid", "resourceVersion", "annotations"];
    if !patch.keys().all(|key| TOP_LEVEL_FIELDS.contains(&key.as_str())) {
        return None;
    }
    let Some(metadata) = patch.get("metadata") else { return Some(Vec::new()) };
    let metadata = metadata.as_object()?;
    if !metadata.keys().all(|key| METADATA_FIELDS.contains(&key.as_str())) {
        return None;
    }
    match metadata.get("annotations") {
        None => Some(Vec::new()),
        Some(annotations) => Some(annotations.as_object()?.clone().into_iter().collect()),
    }
}

/// Returns the annotations of one operation of a JSON patch; `None` if it changes anything else.
fn json_patch_annotations(operation: &Value) -> Option<AnnotationChanges> {
    let (op, path) = (operation["op"].as_str()?, operation["path"].as_str()?);
    let key = path.strip_prefix("/metadata/annotations")?.strip_prefix('/');
    let value = match op {
        "add" | "replace" => operation.get("value")?.clone(),
        "remove" => Value::Null,
        _ => return None,
    };
    match (key, value) {
        (Some(key), value) => Some(vec![(key.replace("~1", "/").replace("~0", "~"), value)]),
        (None, Value::Object(all)) if op == "add" => Some(all.into_iter().collect()),
        (None, _) => None,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn patch_may_only_set_and_remove_request_annotations() {
        let [reconcile, reconnect] = REQUEST_ANNOTATIONS;
        let merge = "application/merge-patch+json";
        let operations = "application/json-patch+json; charset=utf-8";
        let path = "/metadata/annotations/evenkeel.dev~1reconcile-requested-at";
        for (kind, patch, expected) in [
            (merge, json!({}), Some(vec![])),
            (
                merge,
                json!({ "metadata": { "annotations": { reconcile: "1" } } }),
                Some(vec![(reconcile, Some("1"))]),
            ),
            (
                merge,
                json!({ "metadata": { "annotations": { reconnect: null } } }),
                Some(vec![(reconnect, None)]),
            ),
            (merge, json!({ "metadata": { "annotations": { "other": "1" } } }), None),
            (merge, json!({ "metadata": { "labels": {} } }), None),
            (merge, json!({ "spec": {} }), None),
            (merge, json!({ "metadata": { "annotations": { reconcile: 1 } } }), None),
            (merge, json!({ "metadata": { "annotations": { reconcile: "x".repeat(999) } } }), None),
            (
                operations,
                json!([{ "op": "add", "path": path, "value": "1" }]),
                Some(vec![(reconcile, Some("1"))]),
            ),
            (operations, json!([{ "op": "remove", "path": path }]), Some(vec![(reconcile, None)])),
            (
                operations,
                json!([{ "op": "add", "path": "/metadata/annotations", "value": { reconcile: "1" } }]),
                Some(vec![(reconcile, Some("1"))]),
            ),
            (operations, json!([{ "op": "replace", "path": "/spec", "value": {} }]), None),
            ("application/apply-patch+yaml", json!({}), None),
        ] {
            let found = requested_annotations(kind, &patch, &|| ErrorResponse::annotations_only("/d")).ok();
            let expected: Option<Vec<_>> = expected
                .map(|list| list.into_iter().map(|(key, value)| (key, value.map(str::to_owned))).collect());
            assert_eq!(found, expected, "{patch}");
        }
    }
}
