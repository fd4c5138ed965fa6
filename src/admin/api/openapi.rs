use serde_json::{Map, Value, json};

use super::discovery::served_resources;
use super::manifest::set_fields;
use super::resource::Resource;
use crate::resource::Digest;

const OBJECT_META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta";

/// Returns the index at `/openapi/v3`. The digest in each URL lets clients cache the document.
pub(super) fn index() -> Value {
    let mut paths = Map::new();
    for resource in Resource::ALL {
        let (group, version) = (resource.group(), resource.version());
        let path =
            if group.is_empty() { format!("api/{version}") } else { format!("apis/{group}/{version}") };
        let digest = Digest::of_json(&document(group, version)).hex_prefix(64);
        let url = format!("/openapi/v3/{path}?hash={digest}");
        paths.insert(path, json!({ "serverRelativeURL": url }));
    }
    json!({ "paths": paths })
}

/// Returns the OpenAPI document of one version of a group; `None` if nothing is served there.
pub(super) fn document(group: &str, version: &str) -> Option<Value> {
    let (mut paths, mut schemas) = (Map::new(), Map::new());
    for resource in served_resources(group, version) {
        add_paths(resource, &mut paths);
        schemas.insert(schema_name(resource), schema(resource));
    }
    schemas.insert(OBJECT_META.into(), object_meta_schema());
    (!paths.is_empty()).then(|| {
        json!({
            "openapi": "3.0.0",
            "info": { "title": "evenkeel", "version": env!("CARGO_PKG_VERSION") },
            "paths": paths,
            "components": { "schemas": schemas },
        })
    })
}

fn add_paths(resource: Resource, paths: &mut Map<String, Value>) {
    let group = resource.group();
    let base = if group.is_empty() { "/api/v1".into() } else { format!("/apis/{}", resource.api_version()) };
    let plural = resource.plural();
    let collection = if resource.namespaced() {
        format!("{base}/namespaces/{{namespace}}/{plural}")
    } else {
        format!("{base}/{plural}")
    };
    let kind = group_version_kind(resource);
    let operation = |action: &str| {
        json!({
            "operationId": format!("{action}{}{}", resource.kind(), group.replace('.', "")),
            "x-kubernetes-action": action,
            "x-kubernetes-group-version-kind": kind,
            "responses": { "200": { "description": "OK" } },
        })
    };
    let mut patch = operation("patch");
    // Tells kubectl to leave field validation to the server.
    let validation = json!([{ "name": "fieldValidation", "in": "query", "schema": { "type": "string" } }]);
    set_fields(&mut patch, [("parameters", validation)]);
    paths.insert(format!("{collection}/{{name}}"), json!({ "get": operation("get"), "patch": patch }));
    paths.insert(collection, json!({ "get": operation("list") }));
}

fn group_version_kind(resource: Resource) -> Value {
    json!({ "group": resource.group(), "version": resource.version(), "kind": resource.kind() })
}

fn schema_name(resource: Resource) -> String {
    match resource.group() {
        "" => format!("io.k8s.api.core.v1.{}", resource.kind()),
        "events.k8s.io" => format!("io.k8s.api.events.v1.{}", resource.kind()),
        _ => format!("dev.evenkeel.{}.{}", resource.version(), resource.kind()),
    }
}

fn schema(resource: Resource) -> Value {
    let mut schema = resource.schema().unwrap_or_else(|| json!({ "type": "object", "properties": {} }));
    let metadata =
        json!({ "allOf": [{ "$ref": format!("#/components/schemas/{OBJECT_META}") }], "default": {} });
    let text = |description: &str| json!({ "type": "string", "description": description });
    let common = [
        ("apiVersion", text("The group and version of the object.")),
        ("kind", text("The kind of the object.")),
        ("metadata", metadata),
    ];
    if let Some(properties) = schema.get_mut("properties") {
        set_fields(properties, common);
    }
    set_fields(&mut schema, [("x-kubernetes-group-version-kind", json!([group_version_kind(resource)]))]);
    schema
}

/// Returns the schema of the `ObjectMeta` fields that objects of this API have.
fn object_meta_schema() -> Value {
    let field = |kind: &str, description: &str| json!({ "type": kind, "description": description });
    let map = |description: &str| {
        json!({
            "type": "object",
            "description": description,
            "additionalProperties": { "type": "string" },
        })
    };
    json!({
        "type": "object",
        "description": "Standard object metadata.",
        "properties": {
            "name": field("string", "The name, unique within a namespace and kind."),
            "namespace": field("string", "The namespace; defaults to default."),
            "labels": map("Key-value pairs by which label selectors select objects."),
            "annotations": map("Key-value pairs that hold arbitrary metadata."),
            "uid": field("string", "The unique identifier of the object."),
            "generation": field("integer", "Increases with each change of the spec."),
            "resourceVersion": field("string", "Changes with each change of the object."),
            "creationTimestamp": field("string", "The time at which the object was first declared."),
        },
    })
}
