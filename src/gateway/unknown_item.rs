//! Recognizes the answer of a server that does not know an item which it had listed. Pure.
//!
//! No specification says how such an answer looks. The official SDKs and the most common frameworks send a JSON-RPC error
//! or a tool result with `isError`, whose text has the noun and "unknown", "not found" or the like.

use std::borrow::Cow;

use memchr::memmem;
use rmcp::model::ErrorCode;
use serde::Deserialize;

use super::route_target::RouteTarget;
use crate::wire::{ListKind, RpcResponse};

/// The longest result that is searched, in bytes: an answer about an unknown tool is short.
const MAX_RESULT_BYTES: usize = 4_096;
/// The part of a text that is searched, in characters.
const MAX_TEXT_CHARS: usize = 300;
/// The phrases of answers about an unknown item, in lower case.
const PHRASES: [&str; 9] = [
    "unknown",
    "not found",
    "not exist",
    "n't exist",
    "no such",
    "not available",
    "not registered",
    "disabled",
    "could not find",
];

/// The beginnings of answers that are about something else: a server without `tools/call`, and a tool of the Python SDK
/// that failed.
const OTHER_PHRASES: [&str; 2] = ["method not found", "error executing tool"];

/// Returns the list that is out of date if this is the answer of a server that does not know the requested item.
pub(super) fn unknown_item_list(target: &RouteTarget, response: &RpcResponse) -> Option<ListKind> {
    let is_unknown = |list| match response {
        RpcResponse::Error(raw) => is_unknown_item_error(raw, list),
        RpcResponse::Result(raw) => {
            let name = target.upstream_name();
            list == ListKind::Tools && name.is_some_and(|name| is_unknown_tool_result(raw, name))
        }
    };
    target.list().filter(|list| is_unknown(*list))
}

/// True for the error of an unknown item. Its code says little: SDKs send -32602, -32601, -32603 and 0.
pub(super) fn is_unknown_item_error(raw: &[u8], list: ListKind) -> bool {
    #[derive(Deserialize)]
    struct ErrorBody<'a> {
        code: i64,
        #[serde(borrow)]
        message: Cow<'a, str>,
    }
    serde_json::from_slice(raw).is_ok_and(|ErrorBody { code, message }| {
        let is_not_found = code == i64::from(ErrorCode::RESOURCE_NOT_FOUND.0);
        (list == ListKind::Resources && is_not_found) || says_unknown(&message, list)
    })
}

/// True for a tool result with `isError` that says that the tool of this name is unknown. Other results cost one search
/// of a few bytes.
fn is_unknown_tool_result(raw: &[u8], name: &str) -> bool {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct ToolResult<'a> {
        is_error: bool,
        #[serde(borrow)]
        content: Vec<Content<'a>>,
    }
    #[derive(Deserialize)]
    struct Content<'a> {
        #[serde(borrow)]
        text: Cow<'a, str>,
    }
    if raw.len() > MAX_RESULT_BYTES || memmem::find(raw, br#""isError""#).is_none() {
        return false;
    }
    serde_json::from_slice(raw).is_ok_and(|ToolResult { is_error, content }| {
        let says_unknown =
            |Content { text }: &Content<'_>| text.contains(name) && says_unknown(text, ListKind::Tools);
        is_error && content.first().is_some_and(says_unknown)
    })
}

/// True for a text that says that an item of this list is unknown.
fn says_unknown(text: &str, list: ListKind) -> bool {
    let text: String = text.chars().take(MAX_TEXT_CHARS).flat_map(char::to_lowercase).collect();
    let has_one_of = |phrases: &[&str]| phrases.iter().any(|phrase| text.contains(phrase));
    text.contains(list.item_noun()) && has_one_of(&PHRASES) && !has_one_of(&OTHER_PHRASES)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn errors_of_sdks_name_an_unknown_item() {
        for (code, message, list) in [
            // TypeScript
            (-32602, "MCP error -32602: Tool a_tool not found", ListKind::Tools),
            (-32602, "MCP error -32602: Tool a_tool disabled", ListKind::Tools),
            (-32602, "MCP error -32602: Prompt p not found", ListKind::Prompts),
            (-32602, "MCP error -32602: Resource file:///a not found", ListKind::Resources),
            // Python: the code of an exception in a handler is 0
            (0, "Unknown prompt: p", ListKind::Prompts),
            (0, "Unknown resource: file:///a", ListKind::Resources),
            (-32602, "Unknown tool: a_tool", ListKind::Tools),
            // FastMCP
            (-32602, "Unknown tool: 'a_tool'", ListKind::Tools),
            (-32002, "Resource not found: Unknown resource: 'file:///a'", ListKind::Resources),
            // Go, and mark3labs/mcp-go
            (-32602, "unknown tool \"a_tool\"", ListKind::Tools),
            (-32602, "unknown prompt \"p\"", ListKind::Prompts),
            (-32002, "Resource not found", ListKind::Resources),
            (-32602, "tool 'a_tool' not found: tool not found", ListKind::Tools),
            // Rust
            (-32602, "tool not found", ListKind::Tools),
            // Java, Kotlin, C#, PHP and Ruby
            (-32602, "Unknown tool: a_tool", ListKind::Tools),
            (-32603, "Tool not found: a_tool", ListKind::Tools),
            (-32602, "Unknown tool: 'a_tool'", ListKind::Tools),
            (-32601, "Tool not found: \"a_tool\".", ListKind::Tools),
            // Servers without an SDK
            (-32601, "No such tool: a_tool", ListKind::Tools),
            (-32000, "The tool a_tool does not exist", ListKind::Tools),
            (-32002, "gone", ListKind::Resources),
        ] {
            let raw = json!({ "code": code, "message": message, "data": { "x": 1 } }).to_string();
            assert!(is_unknown_item_error(raw.as_bytes(), list), "{raw}");
        }
    }

    #[test]
    fn other_errors_name_no_unknown_item() {
        for (raw, list) in [
            (
                r#"{"code":-32602,"message":"Invalid arguments for tool a_tool: path is required"}"#,
                ListKind::Tools,
            ),
            (r#"{"code":-32601,"message":"Method not found: tools/call"}"#, ListKind::Tools),
            (r#"{"code":-32603,"message":"user not found"}"#, ListKind::Tools),
            (r#"{"code":-32002,"message":"gone"}"#, ListKind::Tools),
            (r#"{"code":-32602}"#, ListKind::Tools),
            (r#"{"code":null,"message":"unknown tool"}"#, ListKind::Tools),
            ("null", ListKind::Tools),
        ] {
            assert!(!is_unknown_item_error(raw.as_bytes(), list), "{raw}");
        }
    }

    #[test]
    fn tool_result_is_about_an_unknown_tool_only_if_it_names_it() {
        let result = |text: &str| {
            json!({ "content": [{ "type": "text", "text": text }], "isError": true }).to_string()
        };
        for (raw, expected) in [
            (result("Unknown tool: a_tool"), true),
            (result("MCP error -32602: Tool a_tool not found"), true),
            (result("Tool 'a_tool' not found"), true),
            (result("Das tool a_tool: not found \u{e9}"), true),
            (result("Error executing tool a_tool: file not found"), false),
            (result("Unknown tool: another"), false),
            (result("a_tool failed"), false),
            (result(&format!("{} unknown tool a_tool", "x".repeat(MAX_TEXT_CHARS))), false),
            (result(&"unknown tool a_tool ".repeat(1_000)), false),
            (r#"{"content":[{"type":"text","text":"Unknown tool: a_tool"}]}"#.to_owned(), false),
            (
                r#"{"content":[{"type":"text","text":"Unknown tool: a_tool"}],"isError":false}"#.to_owned(),
                false,
            ),
            (r#"{"content":[],"isError":true}"#.to_owned(), false),
            (r#"{"content":[{"type":"image","data":""}],"isError":true}"#.to_owned(), false),
            (r#"{"isError":true}"#.to_owned(), false),
        ] {
            assert_eq!(is_unknown_tool_result(raw.as_bytes(), "a_tool"), expected, "{raw}");
        }
    }
}
