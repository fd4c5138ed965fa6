use serde_json::{Value, json};

/// Sets fields of a JSON object; does nothing to other values.
pub(super) fn set_fields<const N: usize>(object: &mut Value, fields: [(&str, Value); N]) {
    if let Some(object) = object.as_object_mut() {
        object.extend(fields.map(|(name, value)| (name.to_owned(), value)));
    }
}

/// Returns the `PartialObjectMetadata` of a manifest.
pub(super) fn partial_metadata(manifest: &Value) -> Value {
    json!({
        "apiVersion": "meta.k8s.io/v1",
        "kind": "PartialObjectMetadata",
        "metadata": manifest.get("metadata"),
    })
}
