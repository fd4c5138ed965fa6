//! Output schemas that the TypeScript SDK 1.x certainly compiles.
//!
//! It compiles all output schemas with Ajv when it lists the tools, and an error of one loses the list. Agents that need
//! no such schema lose little, so what is not certain counts as refused.

use memchr::memmem;
use serde_json::{Map, Value};

use super::plain_pattern::is_plain_pattern;

/// Returns true if a schema certainly compiles: its references are local and its keywords well-formed.
pub(super) fn is_surely_compiled(schema: &str) -> bool {
    let Ok(root) = serde_json::from_str::<Value>(schema) else { return false };
    let id = root.get("$id");
    // Ajv looks for identifiers under keywords that it does not know too.
    let identifiers = memmem::find_iter(schema.as_bytes(), br#""$id""#).count();
    id.is_none_or(Value::is_string)
        && identifiers <= usize::from(id.is_some())
        && is_schema(&root, &root, true)
}

fn is_schema(schema: &Value, root: &Value, is_root: bool) -> bool {
    match schema {
        Value::Bool(_) => true,
        Value::Object(keywords) => {
            keywords.iter().all(|(keyword, value)| is_keyword(keyword, value, keywords, root, is_root))
        }
        _ => false,
    }
}

fn is_keyword(
    keyword: &str,
    value: &Value,
    schema: &Map<String, Value>,
    root: &Value,
    is_root: bool,
) -> bool {
    let is_subschema = |value: &Value| is_schema(value, root, false);
    let are_subschemas = |value: &Value| match value {
        Value::Array(schemas) => schemas.iter().all(is_subschema),
        _ => false,
    };
    match keyword {
        "$ref" => value.as_str().is_some_and(|reference| is_local_reference(reference, root)),
        // A schema with an identifier of its own is the base of references.
        "$id" => is_root,
        // Rarely used, and easily wrong.
        "id" | "$anchor" | "$dynamicAnchor" | "dependencies" | "dependentRequired" => false,
        "pattern" => value.as_str().is_some_and(is_plain_pattern),
        "patternProperties" => value.as_object().is_some_and(|schemas| {
            schemas.iter().all(|(pattern, schema)| is_plain_pattern(pattern) && is_subschema(schema))
        }),
        "type" => match value {
            Value::Array(types) => types.iter().all(is_type),
            value => is_type(value),
        },
        "nullable" => value == &Value::Bool(true) && schema.contains_key("type"),
        "minimum" | "maximum" | "exclusiveMinimum" | "exclusiveMaximum" | "multipleOf" | "minLength"
        | "maxLength" | "minItems" | "maxItems" | "minProperties" | "maxProperties" | "minContains"
        | "maxContains" => value.is_number(),
        "uniqueItems" => value.is_boolean(),
        "format" => value.is_string(),
        "enum" => value.as_array().is_some_and(|values| !values.is_empty()),
        "required" => value.as_array().is_some_and(|names| names.iter().all(Value::is_string)),
        "items" => is_subschema(value) || are_subschemas(value),
        "additionalItems"
        | "additionalProperties"
        | "contains"
        | "propertyNames"
        | "not"
        | "if"
        | "then"
        | "else" => is_subschema(value),
        "allOf" | "anyOf" | "oneOf" => are_subschemas(value),
        "properties" | "$defs" | "definitions" | "dependentSchemas" => {
            value.as_object().is_some_and(|schemas| schemas.values().all(is_subschema))
        }
        // Annotations, and keywords that Ajv does not know and ignores.
        _ => true,
    }
}

fn is_type(value: &Value) -> bool {
    const TYPES: [&str; 7] = ["string", "number", "integer", "boolean", "null", "object", "array"];
    value.as_str().is_some_and(|name| TYPES.contains(&name))
}

fn is_local_reference(reference: &str, root: &Value) -> bool {
    let is_plain = !reference.contains('%');
    let target = reference.strip_prefix('#').filter(|_| is_plain).and_then(|pointer| root.pointer(pointer));
    target.is_some_and(|target| target.is_object() || target.is_boolean())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uncertain_schema_counts_as_refused() {
        for (property, expected) in [
            (r#"{"type":["string","null"],"format":"date","default":null}"#, true),
            (r##"{"$ref":"#/$defs/A"}"##, true),
            (r##"{"$ref":"#"}"##, true),
            (r##"{"anyOf":[{"$ref":"#/$defs/A"},{"type":"null"}]}"##, true),
            (r#"{"type":"array","items":{"type":"integer","minimum":0},"x-new":{"type":"any"}}"#, true),
            (r#"{"type":"string","nullable":true}"#, true),
            (r#"{"const":{"type":"any"}}"#, true),
            (r#"{"type":"string","pattern":"^[a-z]+$"}"#, true),
            (r#"{"patternProperties":{"^x-":{"type":"string"}}}"#, true),
            // Each of these makes the TypeScript SDK 1.x refuse the whole list.
            (r##"{"$ref":"#/$defs/B"}"##, false),
            (r#"{"$ref":"https://example.com/x"}"#, false),
            (r#"{"type":"any"}"#, false),
            (r#"{"nullable":true}"#, false),
            (r#"{"exclusiveMinimum":true,"minimum":0}"#, false),
            (r#"{"type":"string","pattern":"(?i)x"}"#, false),
            (r#"{"patternProperties":{"(":{"type":"string"}}}"#, false),
            (r#"{"enum":[]}"#, false),
            (r#"{"properties":[]}"#, false),
            (r#"{"required":true}"#, false),
            (r#"{"additionalProperties":null}"#, false),
            (r#"{"items":5}"#, false),
            (r#"{"id":"x"}"#, false),
            (r#"{"$id":"https://x/y"}"#, false),
        ] {
            let schema = format!(
                r#"{{"type":"object","$id":"https://x/y","properties":{{"a":{property}}},"$defs":{{"A":{{"type":"object"}}}}}}"#
            );
            assert_eq!(is_surely_compiled(&schema), expected, "{property}");
        }
    }
}
