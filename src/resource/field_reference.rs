//! The fields of the custom resources, read from their CRD schemas: for `evenkeel explain` and `docs/fields.md`.
//!
//! Promises that every field of the schema is listed once, parents before children. Never contains a text of its own
//! about a field: descriptions, defaults and bounds are those of the types.

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use serde_json::Value;

use super::crd::finalize_crd;
use super::duration::DURATION_PATTERN;

/// One field of a custom resource.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Field {
    /// The path from the kind, such as `McpServer.spec.stdio.env.name`. Items of a list have the path of the list.
    pub path: String,
    /// The type: `string`, `integer`, `boolean`, `duration`, `time`, `object`, or one of these after `[]` for a list.
    pub type_name: String,
    /// True if the object that contains the field is refused without it.
    pub required: bool,
    /// The default as JSON, or the text itself of a string. `None` if there is none, and of objects: their fields have
    /// it.
    pub default: Option<String>,
    /// The bounds, each as a short text: `one of Always, OnDemand`, `at most 64 items`.
    pub bounds: Vec<String>,
    /// The description. Empty if the type has none.
    pub description: String,
}

impl Field {
    /// The last part of the path.
    pub fn name(&self) -> &str {
        self.path.rsplit('.').next().unwrap_or_default()
    }

    /// The path of the field that contains this one; `None` of a kind.
    pub fn parent(&self) -> Option<&str> {
        self.path.rsplit_once('.').map(|(parent, _)| parent)
    }
}

/// Returns the fields of a CRD's stored version, `apiVersion`, `kind` and `metadata` excepted. The first is the kind
/// itself.
pub fn fields(crd: &CustomResourceDefinition) -> Vec<Field> {
    let kind = &crd.spec.names.kind;
    let crd = finalize_crd(crd.clone());
    let mut fields = Vec::new();
    if let Some(schema) = crd.pointer("/spec/versions/0/schema/openAPIV3Schema") {
        collect(kind, schema, false, &mut fields);
    }
    fields
}

fn collect(path: &str, schema: &Value, required: bool, fields: &mut Vec<Field>) {
    let item = schema.get("items");
    let content = item.unwrap_or(schema);
    let type_name = match item {
        Some(item) => format!("[]{}", type_name(item)),
        None => type_name(schema).to_owned(),
    };
    let text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    let default = schema.get("default").filter(|default| !default.is_object()).map(text);
    let description = schema["description"].as_str().or(content["description"].as_str()).unwrap_or_default();
    fields.push(Field {
        type_name,
        required,
        default,
        bounds: bounds(schema).into_iter().chain(item.map(bounds).unwrap_or_default()).collect(),
        description: description.to_owned(),
        path: path.to_owned(),
    });
    let required_names: Vec<&str> =
        content["required"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    for (name, schema) in content["properties"].as_object().into_iter().flatten() {
        if !matches!(name.as_str(), "apiVersion" | "kind" | "metadata") {
            collect(&format!("{path}.{name}"), schema, required_names.contains(&name.as_str()), fields);
        }
    }
}

fn type_name(schema: &Value) -> &str {
    match (schema["type"].as_str(), schema["format"].as_str(), schema["pattern"].as_str()) {
        (Some("string"), Some("date-time"), _) => "time",
        (Some("string"), _, Some(DURATION_PATTERN)) => "duration",
        (Some(name), ..) => name,
        (None, ..) => "any",
    }
}

/// Returns the limits that the schema states. Rules that only CEL can express are included by their messages.
fn bounds(schema: &Value) -> Vec<String> {
    let is_duration = type_name(schema) == "duration";
    let number = |name: &str| schema[name].as_f64();
    let mut bounds = Vec::new();
    if let Some(values) = schema["enum"].as_array() {
        let values: Vec<&str> = values.iter().filter_map(Value::as_str).collect();
        bounds.push(format!("one of {}", values.join(", ")));
    }
    match (number("minimum"), number("maximum")) {
        (Some(min), Some(max)) => bounds.push(format!("from {min} to {max}")),
        (Some(min), None) if min > 0.0 => bounds.push(format!("at least {min}")),
        _ => {}
    }
    if let Some(max) = number("maxLength").filter(|_| !is_duration) {
        bounds.push(format!("at most {max} characters"));
    }
    if let Some(pattern) = schema["pattern"].as_str().filter(|_| !is_duration) {
        bounds.push(format!("matches {pattern}"));
    }
    if let Some(max) = number("maxItems") {
        bounds.push(format!("at most {max} items"));
    }
    let rules = schema["x-kubernetes-validations"].as_array().into_iter().flatten();
    bounds.extend(rules.filter_map(|rule| rule["message"].as_str()).map(|message| {
        if is_duration { message.trim_start_matches("must be ").to_owned() } else { message.to_owned() }
    }));
    bounds
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resource::McpServer;
    use kube::CustomResourceExt;

    #[test]
    fn fields_have_type_default_bounds_and_description() {
        let fields = fields(&McpServer::crd());
        assert_eq!(fields[0].path, "McpServer");
        let field = |path: &str| fields.iter().find(|field| field.path == path).unwrap();
        let call = field("McpServer.spec.timeouts.call");
        assert_eq!((call.type_name.as_str(), call.default.as_deref()), ("duration", Some("10m")));
        assert_eq!(call.bounds, ["from 1s to 24h"]);
        assert_eq!((call.name(), call.parent()), ("call", Some("McpServer.spec.timeouts")));
        let activation = field("McpServer.spec.activation");
        assert_eq!(activation.bounds, ["one of Always, OnDemand"]);
        let env = field("McpServer.spec.stdio.env");
        assert_eq!((env.type_name.as_str(), env.required), ("[]object", false));
        assert!(env.bounds.contains(&"at most 256 items".to_owned()), "{env:?}");
        assert!(field("McpServer.spec.stdio.env.name").required);
        assert_eq!(field("McpServer.spec.health.failures").bounds, ["from 1 to 20"]);
        assert!(fields.iter().all(|field| !field.description.is_empty()), "every field has a description");
    }
}
