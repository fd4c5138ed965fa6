use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::CustomResourceExt;
use serde_json::{Value, json};

use super::{McpServer, Skill};

/// Returns the CRDs as YAML, each with its file name. `evenkeel crds` prints them, and `crds/` and
/// `manifests/components/crds/` contain them.
pub fn crds() -> Result<Vec<(&'static str, String)>, serde_yaml::ser::Error> {
    [("mcpservers.yaml", McpServer::crd()), ("skills.yaml", Skill::crd())]
        .into_iter()
        .map(|(file, crd)| Ok((file, serde_yaml::to_string(&finalize_crd(crd))?)))
        .collect()
}

/// Adds the status default, which the derive cannot express and which keeps kstatus from reporting a new object as
/// healthy. Removes what an API server warns about.
pub fn finalize_crd(crd: CustomResourceDefinition) -> Value {
    let mut crd = serde_json::to_value(crd).unwrap_or_default();
    if let Some(status) = crd.pointer_mut("/spec/versions/0/schema/openAPIV3Schema/properties/status") {
        status["default"] = json!({ "observedGeneration": -1 });
        if let Some(status) = status.as_object_mut() {
            status.remove("nullable");
        }
    }
    remove_unsigned_formats(&mut crd);
    join_description_lines(&mut crd);
    crd
}

/// Removes the formats of unsigned integers, which Kubernetes does not support. `minimum` already excludes negative
/// values.
fn remove_unsigned_formats(schema: &mut Value) {
    match schema {
        Value::Object(fields) => {
            fields.retain(|name, value| {
                name != "format" || !value.as_str().is_some_and(|it| it.starts_with("uint"))
            });
            fields.values_mut().for_each(remove_unsigned_formats);
        }
        Value::Array(items) => items.iter_mut().for_each(remove_unsigned_formats),
        _ => {}
    }
}

/// Joins the lines of each paragraph in the descriptions, because `kubectl explain` wraps them itself.
fn join_description_lines(schema: &mut Value) {
    match schema {
        Value::Object(fields) => {
            if let Some(Value::String(text)) = fields.get_mut("description") {
                let paragraphs: Vec<_> = text.split("\n\n").map(|lines| lines.replace('\n', " ")).collect();
                *text = paragraphs.join("\n\n");
            }
            fields.values_mut().for_each(join_description_lines);
        }
        Value::Array(items) => items.iter_mut().for_each(join_description_lines),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn crd_files_match_the_code() {
        let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
        for folder in ["crds", "manifests/components/crds"] {
            for (file, expected) in crds().unwrap() {
                let path = root.join(folder).join(file);
                if std::env::var_os("EVENKEEL_BLESS").is_some() {
                    std::fs::write(&path, &expected).unwrap();
                }
                let found = std::fs::read_to_string(&path).unwrap_or_default();
                assert!(
                    found == expected,
                    "{folder}/{file} is stale; run EVENKEEL_BLESS=1 cargo test crd_files"
                );
            }
        }
    }

    /// Checks that every node has a type and that no keyword is used that a CRD must not have.
    #[test]
    fn schemas_are_structural() {
        fn walk(path: &str, schema: &Value) {
            for banned in ["$ref", "$defs", "definitions", "additionalItems", "patternProperties"] {
                assert!(schema.get(banned).is_none(), "{path}: {banned}");
            }
            let typed = schema.get("type").is_some()
                || schema.get("x-kubernetes-int-or-string").is_some()
                || schema.get("x-kubernetes-preserve-unknown-fields").is_some();
            assert!(typed, "{path} has no type: {schema}");
            let format = schema.get("format").and_then(Value::as_str).unwrap_or("date-time");
            assert!(["date-time", "int64"].contains(&format), "{path}: an API server warns of {format}");
            for (name, schema) in schema["properties"].as_object().into_iter().flatten() {
                walk(&format!("{path}.{name}"), schema);
            }
            if let Some(items) = schema.get("items") {
                walk(&format!("{path}[]"), items);
            }
        }
        for crd in [McpServer::crd(), Skill::crd()] {
            let crd = finalize_crd(crd);
            let version = &crd["spec"]["versions"][0];
            walk("", &version["schema"]["openAPIV3Schema"]);
            assert!(version["subresources"]["status"].is_object());
            let status = &version["schema"]["openAPIV3Schema"]["properties"]["status"];
            assert_eq!(status["default"], json!({ "observedGeneration": -1 }));
            assert_eq!(status["properties"]["conditions"]["x-kubernetes-list-type"], "map");
        }
    }
}
