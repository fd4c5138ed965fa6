//! Tool arguments that are also sent as headers in the modern protocol over HTTP (2026-07-28, SEP-2243: `x-mcp-header`).

use std::collections::BTreeSet;

use http::{HeaderName, HeaderValue};
use memchr::memmem;
use serde_json::Value;

use super::http::encode_header_value;

const ANNOTATION_KEY: &str = "x-mcp-header";

/// The arguments of one tool that are also sent as `Mcp-Param-…` headers, each as a path of keys.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ParamHeaders(Vec<(Vec<String>, HeaderName)>);

impl ParamHeaders {
    /// Reads the annotations of a tool, given as JSON. The error is the reason why the tool must not be used over HTTP.
    pub fn from_tool(tool: &[u8]) -> Result<Self, String> {
        // Few tools have annotations: search for the key before parsing.
        if memmem::find(tool, ANNOTATION_KEY.as_bytes()).is_none() {
            return Ok(Self::default());
        }
        let tool: Value = serde_json::from_slice(tool).map_err(|error| error.to_string())?;
        let mut reader = AnnotationReader::default();
        if let Some(schema) = tool.get("inputSchema") {
            reader.read_schema(schema, Some(&mut Vec::new()))?;
        }
        Ok(Self(reader.headers))
    }

    /// Returns true if no argument is sent as a header.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Returns the headers for the arguments, a JSON object. Absent arguments get no header.
    pub(super) fn header_values(&self, arguments: &str) -> Vec<(HeaderName, HeaderValue)> {
        let text = |value: Value| match value {
            Value::String(text) => text,
            value => value.to_string(),
        };
        let headers = self
            .repeated_arguments(arguments)
            .into_iter()
            .filter_map(|(name, value)| Some((name.clone(), encode_header_value(&text(value?))?)));
        headers.collect()
    }

    /// Returns each header with its argument; `None` for one that is absent, null, an array or an object, which gets no
    /// header.
    pub fn repeated_arguments(&self, arguments: &str) -> Vec<(&HeaderName, Option<Value>)> {
        let arguments: Value = serde_json::from_str(arguments).unwrap_or_default();
        let value = |path: &[String]| path.iter().try_fold(&arguments, |value, key| value.get(key));
        let is_primitive = |value: &&Value| value.is_string() || value.is_boolean() || value.is_number();
        self.0.iter().map(|(path, name)| (name, value(path).filter(is_primitive).cloned())).collect()
    }
}

#[derive(Default)]
struct AnnotationReader {
    headers: Vec<(Vec<String>, HeaderName)>,
    names: BTreeSet<String>,
}

impl AnnotationReader {
    /// Walks a schema. `path` is `None` outside the chain of `properties`, where no annotation is allowed.
    fn read_schema(&mut self, schema: &Value, mut path: Option<&mut Vec<String>>) -> Result<(), String> {
        let Value::Object(members) = schema else {
            if let Value::Array(items) = schema {
                items.iter().try_for_each(|item| self.read_schema(item, None))?;
            }
            return Ok(());
        };
        for (key, value) in members {
            match (key.as_str(), &mut path) {
                (ANNOTATION_KEY, Some(path)) if !path.is_empty() => {
                    self.add_annotation(schema, value, path)?;
                }
                (ANNOTATION_KEY, _) => {
                    return Err(format!("{ANNOTATION_KEY} is used outside an argument's schema"));
                }
                // These hold values, not schemas.
                ("default" | "const" | "enum" | "examples", _) => {}
                ("properties", Some(path)) => {
                    for (name, schema) in value.as_object().into_iter().flatten() {
                        path.push(name.clone());
                        self.read_schema(schema, Some(&mut **path))?;
                        path.pop();
                    }
                }
                ("properties" | "$defs" | "definitions" | "dependentSchemas" | "patternProperties", _) => {
                    value
                        .as_object()
                        .into_iter()
                        .flatten()
                        .try_for_each(|(_, schema)| self.read_schema(schema, None))?;
                }
                _ => self.read_schema(value, None)?,
            }
        }
        Ok(())
    }

    fn add_annotation(&mut self, schema: &Value, header: &Value, path: &[String]) -> Result<(), String> {
        let argument = path.join(".");
        let header = header.as_str().filter(|header| !header.is_empty());
        let header =
            header.ok_or_else(|| format!("{ANNOTATION_KEY} of {argument} is not a valid header name"))?;
        let name = HeaderName::from_bytes(format!("mcp-param-{header}").as_bytes())
            .map_err(|_| format!("{ANNOTATION_KEY} of {argument} is not a valid header name"))?;
        if !self.names.insert(header.to_ascii_lowercase()) {
            return Err(format!("{ANNOTATION_KEY} {header} is used by two arguments"));
        }
        if !matches!(schema.get("type").and_then(Value::as_str), Some("string" | "integer" | "boolean")) {
            return Err(format!(
                "{ANNOTATION_KEY} of {argument} requires the type string, integer or boolean"
            ));
        }
        self.headers.push((path.to_vec(), name));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn param_headers(schema: &Value) -> Result<ParamHeaders, String> {
        ParamHeaders::from_tool(json!({ "name": "t", "inputSchema": schema }).to_string().as_bytes())
    }

    #[test]
    fn annotated_arguments_are_sent_as_headers() {
        let schema = json!({ "type": "object", "properties": {
            "region": { "type": "string", "x-mcp-header": "Region" },
            "deep": { "type": "object", "properties": { "n": { "type": "integer", "x-mcp-header": "N" } } },
            "plain": { "type": "string" },
        }});
        let param_headers = param_headers(&schema).unwrap();
        let mut headers: Vec<_> = param_headers
            .header_values(r#"{"region":"é","deep":{"n":7},"plain":"x"}"#)
            .into_iter()
            .map(|(name, value)| format!("{name}: {}", value.to_str().unwrap()))
            .collect();
        headers.sort();
        assert_eq!(headers, ["mcp-param-n: 7", "mcp-param-region: =?base64?w6k=?="]);
        assert!(param_headers.header_values("{}").is_empty());
        assert!(ParamHeaders::from_tool(b"{\"name\":\"t\"}").unwrap().is_empty());
    }

    #[test]
    fn invalid_annotation_is_rejected() {
        let property = |schema: Value| json!({ "properties": { "a": schema } });
        for schema in [
            json!({ "x-mcp-header": "A" }),
            property(json!({ "type": "object", "x-mcp-header": "A" })),
            property(json!({ "type": "string", "x-mcp-header": "" })),
            property(json!({ "type": "string", "x-mcp-header": "a b" })),
            property(json!({ "type": "string", "x-mcp-header": 7 })),
            property(json!({ "items": { "type": "string", "x-mcp-header": "A" } })),
            json!({ "properties": {
                "a": { "type": "string", "x-mcp-header": "A" }, "b": { "type": "string", "x-mcp-header": "a" },
            }}),
        ] {
            assert!(param_headers(&schema).is_err(), "{schema}");
        }
    }
}
