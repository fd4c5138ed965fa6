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

/// The longest body that is read, in bytes.
const MAX_BODY_BYTES: usize = 64 << 10;
/// The longest value of an annotation, in bytes.
const MAX_ANNOTATION_BYTES: usize = 256;
/// How long the object may take to show what was asked for.
const STATUS_UPDATE_TIMEOUT: std::time::Duration = std::time::Duration::from_secs(5);

/// Takes the annotations that ask for work, and gives the object as it is with them.
pub(super) async fn patch(
    app: &App,
    resource: Resource,
    key: &ObjectKey,
    headers: &HeaderMap,
    asked: &Parameters,
    body: Body,
) -> Result<ObjectVersion, ErrorResponse> {
    let found = |snapshot: &StatusSnapshot| find_object(snapshot, resource, key);
    let refused = || ErrorResponse::annotations_only(&app.state.edit_hint);
    if !resource.accepts_reconcile_requests() {
        return Err(refused());
    }
    app.authorization.check_write(headers)?;
    let requests = app.state.requests.as_ref().ok_or_else(|| ErrorResponse::annotate_in_cluster(key))?;
    let item = found(&app.snapshot())
        .ok_or_else(|| ErrorResponse::object_not_found(resource.group(), resource.plural(), &key.name))?;
    let body = to_bytes(body, MAX_BODY_BYTES)
        .await
        .map_err(|_| ErrorResponse::bad_request("the body is too long"))?;
    let kind = headers.get(CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default();
    let patch: Value = serde_json::from_slice(&body)
        .map_err(|error| ErrorResponse::bad_request(format!("the patch is not JSON: {error}")))?;
    let wanted = requested_annotations(kind, &patch, &refused)?;
    check_preconditions(&patch, &item)?;
    if wanted.is_empty() || asked.dry_run {
        return Ok(item);
    }

    let uid = item.uid().unwrap_or_default();
    requests.submit(ReconcileRequest { key: key.clone(), uid, annotations: wanted.clone() });
    let shows = |item: &ObjectVersion| {
        let annotations = item.annotations();
        wanted.iter().all(|(key, value)| annotations.and_then(|map| map.get(*key)) == value.as_ref())
    };
    let mut store = app.state.store.clone();
    let shown = store.wait_for(|snapshot| found(snapshot).is_none_or(|item| shows(&item)));
    let now = timeout(STATUS_UPDATE_TIMEOUT, shown).await.map(|shown| shown.map(|snapshot| found(&snapshot)));
    // It was removed meanwhile, or the end has come: then it is as it was.
    Ok(now.ok().and_then(Result::ok).flatten().unwrap_or(item))
}

/// The annotations that a patch sets or (`None`) removes, if it changes nothing else.
fn requested_annotations(
    kind: &str,
    patch: &Value,
    refused: &impl Fn() -> ErrorResponse,
) -> Result<Vec<(&'static str, Option<String>)>, ErrorResponse> {
    let kind = kind.split(';').next().unwrap_or_default().trim();
    let changes = match (kind, patch) {
        ("application/merge-patch+json" | "application/strategic-merge-patch+json", Value::Object(patch)) => {
            merge_patch_annotations(patch)
        }
        ("application/json-patch+json", Value::Array(steps)) => {
            steps.iter().map(json_patch_annotations).collect::<Option<Vec<_>>>().map(|steps| steps.concat())
        }
        _ => None,
    };
    let mut wanted = Vec::new();
    for (key, value) in changes.ok_or_else(refused)? {
        let Some(known) = REQUEST_ANNOTATIONS.into_iter().find(|known| *known == key) else {
            return Err(refused());
        };
        let value = match value {
            Value::Null => None,
            Value::String(value) if value.len() <= MAX_ANNOTATION_BYTES => Some(value),
            _ => return Err(ErrorResponse::bad_request(format!("{key} must be a short string"))),
        };
        wanted.push((known, value));
    }
    Ok(wanted)
}

type AnnotationChanges = Vec<(String, Value)>;

/// Refuses a merge patch of another object, or of another version of it, as an API server does.
fn check_preconditions(patch: &Value, item: &ObjectVersion) -> Result<(), ErrorResponse> {
    let said = |key: &str| patch.get("metadata")?.get(key)?.as_str();
    for (key, is) in [("name", &item.key.name), ("namespace", &item.key.namespace)] {
        if let Some(another) = said(key).filter(|said| *said != &**is) {
            let message = format!("metadata.{key} is {another:?} in the patch and {is:?} in the path");
            return Err(ErrorResponse::bad_request(message));
        }
    }
    let (uid, version) = (item.uid().unwrap_or_default(), item.version.to_string());
    for (key, is) in [("uid", &*uid), ("resourceVersion", &*version)] {
        if let Some(another) = said(key).filter(|said| *said != is) {
            return Err(ErrorResponse::conflict(&item.key.name, key, another, is));
        }
    }
    Ok(())
}

/// The annotations of a merge patch that has nothing else; what names the object may stand beside them.
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

/// The annotations of one step of a JSON patch.
fn json_patch_annotations(step: &Value) -> Option<AnnotationChanges> {
    let (op, path) = (step["op"].as_str()?, step["path"].as_str()?);
    let key = path.strip_prefix("/metadata/annotations")?.strip_prefix('/');
    let value = match op {
        "add" | "replace" => step.get("value")?.clone(),
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
        let steps = "application/json-patch+json; charset=utf-8";
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
            (steps, json!([{ "op": "add", "path": path, "value": "1" }]), Some(vec![(reconcile, Some("1"))])),
            (steps, json!([{ "op": "remove", "path": path }]), Some(vec![(reconcile, None)])),
            (
                steps,
                json!([{ "op": "add", "path": "/metadata/annotations", "value": { reconcile: "1" } }]),
                Some(vec![(reconcile, Some("1"))]),
            ),
            (steps, json!([{ "op": "replace", "path": "/spec", "value": {} }]), None),
            ("application/apply-patch+yaml", json!({}), None),
        ] {
            let found = requested_annotations(kind, &patch, &|| ErrorResponse::annotations_only("/d")).ok();
            let expected: Option<Vec<_>> = expected
                .map(|list| list.into_iter().map(|(key, value)| (key, value.map(str::to_owned))).collect());
            assert_eq!(found, expected, "{patch}");
        }
    }
}
