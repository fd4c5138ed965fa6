//! Compares the `Mcp-Param-…` headers of a modern agent with the arguments that they repeat (SEP-2243). Pure.
//!
//! The agent was shown a tool with `x-mcp-header` over HTTP, so it sends the headers, whatever the tool's server uses.

use http::{HeaderMap, HeaderName};
use rmcp::model::ErrorCode;
use serde_json::value::RawValue;
use serde_json::{Number, Value};

use super::era::{MAX_QUOTED_CHARS, decode_header_value, single_header};
use super::response::ResponseError;
use crate::text::sanitize;
use crate::wire::ParamHeaders;

/// Checks that each header is there, once and well-formed, if its argument is, and that both are equal.
pub(super) fn check_param_headers(
    expected: &ParamHeaders,
    headers: &HeaderMap,
    arguments: Option<&RawValue>,
) -> Result<(), ResponseError> {
    for (name, argument) in expected.repeated_arguments(arguments.map_or("{}", RawValue::get)) {
        let found = single_header(headers, name.as_str())?;
        let is_equal = match (found, &argument) {
            (None, None) => true,
            (Some(found), Some(argument)) => {
                decode_header_value(found).is_some_and(|found| equals_argument(&found, argument))
            }
            (Some(_), None) | (None, Some(_)) => false,
        };
        if !is_equal {
            return Err(mismatch(name, found, argument.as_ref()));
        }
    }
    Ok(())
}

/// Numbers are compared as numbers: `42.0` equals `42`.
fn equals_argument(header: &str, argument: &Value) -> bool {
    match argument {
        Value::String(text) => header == text,
        Value::Bool(value) => header == if *value { "true" } else { "false" },
        Value::Number(number) => {
            serde_json::from_str(header).is_ok_and(|header| equals_number(&header, number))
        }
        Value::Null | Value::Array(_) | Value::Object(_) => false,
    }
}

fn equals_number(one: &Number, other: &Number) -> bool {
    // Integers beyond 2^53 are compared exactly.
    one == other || (one.is_f64() || other.is_f64()) && one.as_f64() == other.as_f64()
}

fn mismatch(name: &HeaderName, found: Option<&str>, argument: Option<&Value>) -> ResponseError {
    let found =
        found.map_or("missing".to_owned(), |found| format!("{:?}", sanitize(found, MAX_QUOTED_CHARS)));
    let argument =
        argument.map_or("absent".to_owned(), |argument| sanitize(&argument.to_string(), MAX_QUOTED_CHARS));
    ResponseError::bad_request(
        ErrorCode::HEADER_MISMATCH,
        format!("Header mismatch: {name} is {found}, and the argument that it repeats is {argument}"),
    )
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;
    use serde_json::json;

    use super::*;

    fn check(header: &[&str], arguments: &str) -> Result<(), i32> {
        let schema = json!({ "properties": {
            "a": { "type": "string", "x-mcp-header": "A" },
            "deep": { "properties": { "n": { "type": "integer", "x-mcp-header": "N" } } },
        }});
        let tool = json!({ "name": "t", "inputSchema": schema }).to_string();
        let expected = ParamHeaders::from_tool(tool.as_bytes()).unwrap();
        let mut headers = HeaderMap::new();
        for line in header {
            let (name, value) = line.split_once(": ").unwrap();
            let name = HeaderName::from_bytes(name.as_bytes()).unwrap();
            headers.append(name, HeaderValue::from_bytes(value.as_bytes()).unwrap());
        }
        let arguments: Option<&RawValue> = serde_json::from_str(arguments).unwrap();
        check_param_headers(&expected, &headers, arguments).map_err(|error| {
            assert_eq!(error.status, 400);
            error.code().0
        })
    }

    #[test]
    fn headers_must_repeat_the_arguments() {
        for (headers, arguments, is_valid) in [
            (&[][..], "null", true),
            (&[], "{}", true),
            (&[], r#"{"a":null}"#, true),
            (&["mcp-param-other: x"], r#"{"other":"y"}"#, true),
            (&["Mcp-Param-A: Hello"], r#"{"a":"Hello"}"#, true),
            (&["mcp-param-a: =?base64?SGVsbG8=?="], r#"{"a":"Hello"}"#, true),
            (&["mcp-param-a: =?base64?w6k=?="], r#"{"a":"\u00e9"}"#, true),
            (&["mcp-param-a: =?base64??="], r#"{"a":""}"#, true),
            (&["mcp-param-a: "], r#"{"a":""}"#, true),
            // Without the whole wrapper, a value is literal.
            (&["mcp-param-a: SGVsbG8="], r#"{"a":"SGVsbG8="}"#, true),
            (&["mcp-param-a: =?base64?SGVsbG8="], r#"{"a":"=?base64?SGVsbG8="}"#, true),
            (&["mcp-param-a: =?BASE64?SGVsbG8=?="], r#"{"a":"=?BASE64?SGVsbG8=?="}"#, true),
            (&["mcp-param-a: =?base64?SGVsbG8=?="], r#"{"a":"=?base64?SGVsbG8=?="}"#, false),
            (&["mcp-param-a: =?base64?SGVsbG8?="], r#"{"a":"Hello"}"#, false),
            (&["mcp-param-a: =?base64?SGVs!!!bG8=?="], r#"{"a":"Hello"}"#, false),
            (&["mcp-param-a: =?base64?/w==?="], r#"{"a":"\u00ff"}"#, false),
            (&["mcp-param-a: \u{e9}"], r#"{"a":"\u00e9"}"#, false),
            (&["mcp-param-a: hello"], r#"{"a":"Hello"}"#, false),
            (&["mcp-param-a: x", "mcp-param-a: x"], r#"{"a":"x"}"#, false),
            (&[], r#"{"a":"x"}"#, false),
            (&["mcp-param-a: x"], "{}", false),
            (&["mcp-param-a: null"], r#"{"a":null}"#, false),
            (&["mcp-param-a: x"], r#"{"a":["x"]}"#, false),
            // The value of another type than the schema says: its server judges it.
            (&["mcp-param-a: true"], r#"{"a":true}"#, true),
            (&["mcp-param-a: True"], r#"{"a":true}"#, false),
            (&[], r#"{"a":{}}"#, true),
            (&["mcp-param-n: 42"], r#"{"deep":{"n":42}}"#, true),
            (&["mcp-param-n: 42.0"], r#"{"deep":{"n":42}}"#, true),
            (&["mcp-param-n: 42"], r#"{"deep":{"n":4.2e1}}"#, true),
            (&["mcp-param-n: -7"], r#"{"deep":{"n":-7}}"#, true),
            (&["mcp-param-n: 43"], r#"{"deep":{"n":42}}"#, false),
            (&["mcp-param-n: 9007199254740993"], r#"{"deep":{"n":9007199254740992}}"#, false),
            (&["mcp-param-n: NaN"], r#"{"deep":{"n":42}}"#, false),
            (&["mcp-param-n: 42"], r#"{"n":42}"#, false),
            (&[], r#"{"deep":7}"#, true),
        ] {
            let expected = if is_valid { Ok(()) } else { Err(ErrorCode::HEADER_MISMATCH.0) };
            assert_eq!(check(headers, arguments), expected, "{headers:?} {arguments}");
        }
    }
}
