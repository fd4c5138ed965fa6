//! Finds the sentence for people in the body of an error response: plain text, JSON or an HTML page. Pure.

use serde_json::Value;

/// The members of a JSON body that may hold the message, in the order in which they are tried.
const MESSAGE_MEMBERS: [&str; 7] =
    ["message", "error_description", "detail", "title", "reason", "error", "errors"];
/// The elements whose content is not shown.
const HIDDEN_ELEMENTS: [&str; 3] = ["script", "style", "noscript"];
/// The characters that HTML pages write as references.
const REFERENCES: [(&str, &str); 7] = [
    ("&nbsp;", " "),
    ("&lt;", "<"),
    ("&gt;", ">"),
    ("&quot;", "\""),
    ("&#39;", "'"),
    ("&apos;", "'"),
    ("&amp;", "&"),
];

/// Returns the message of a body: the message of a JSON error, the title of an HTML page or its first text, or the first
/// line of anything else. Empty if there is none.
pub(super) fn body_message(body: &str) -> String {
    let body = body.trim_start_matches(|char: char| char.is_whitespace() || char == '\u{feff}');
    if body.contains(['\0', '\u{fffd}']) {
        return String::new();
    }
    if body.starts_with('<') {
        return html_message(body);
    }
    let json = serde_json::from_str::<Value>(body).ok();
    let message = json.as_ref().and_then(json_message);
    message.or_else(|| body.lines().next()).unwrap_or_default().trim().to_owned()
}

fn json_message(value: &Value) -> Option<&str> {
    match value {
        Value::String(text) => Some(text).filter(|text| !text.trim().is_empty()).map(String::as_str),
        Value::Array(values) => values.first().and_then(json_message),
        Value::Object(members) => MESSAGE_MEMBERS.iter().find_map(|name| json_message(members.get(*name)?)),
        _ => None,
    }
}

fn html_message(page: &str) -> String {
    // ASCII letters only, so that both texts have the same offsets.
    let lower = page.to_ascii_lowercase();
    let title = lower.find("<title").and_then(|start| {
        let start = start + lower.get(start..)?.find('>')? + 1;
        let end = start + lower.get(start..)?.find('<')?;
        page.get(start..end).map(first_line)
    });
    title.filter(|title| !title.is_empty()).unwrap_or_else(|| first_text(page, &lower))
}

/// Returns the first text between the tags of a page.
fn first_text(page: &str, lower: &str) -> String {
    let mut at = 0;
    while let (Some(rest), Some(lower_rest)) = (page.get(at..), lower.get(at..)) {
        let text_end = rest.find('<').unwrap_or(rest.len());
        let text = rest.get(..text_end).map(first_line).unwrap_or_default();
        if !text.is_empty() || text_end == rest.len() {
            return text;
        }
        let tag = lower_rest.get(text_end..).unwrap_or_default();
        let hidden =
            HIDDEN_ELEMENTS.iter().find(|name| tag.get(1..).is_some_and(|tag| tag.starts_with(**name)));
        let end = match hidden {
            Some(name) => tag.find(&format!("</{name}")).unwrap_or(tag.len()).max(1),
            None if tag.starts_with("<!--") => tag.find("-->").map_or(tag.len(), |end| end + 3),
            None => tag.find('>').map_or(tag.len(), |end| end + 1),
        };
        at += text_end + end;
    }
    String::new()
}

/// Returns the first line of a text that is not empty, with its character references replaced.
fn first_line(text: &str) -> String {
    let line = text.lines().map(str::trim).find(|line| !line.is_empty()).unwrap_or_default();
    REFERENCES
        .iter()
        .fold(line.to_owned(), |line, (reference, char)| line.replace(reference, char))
        .trim()
        .to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn message_of_a_body_is_found() {
        for (body, expected) in [
            ("", ""),
            ("Unauthorized\nmore", "Unauthorized"),
            ("\u{feff}\n  no access\n", "no access"),
            // Cloudflare, nginx, IIS, a login page, a page without a title
            (
                "<!DOCTYPE html>\n<html lang=\"en-US\"><head><TITLE>Attention Required! | Cloudflare</TITLE></head></html>",
                "Attention Required! | Cloudflare",
            ),
            ("<html>\r\n<head><title>403 Forbidden</title></head>\r\n<body>", "403 Forbidden"),
            (
                "<html><head><title>\n  Sign in &middot; A&amp;B &lt;x&gt;\n</title>",
                "Sign in &middot; A&B <x>",
            ),
            (
                "<html><head><title></title><style>p{}</style><script>if (a<b) {}</script></head><body><!-- <p>no</p> -->\
                 <p>\n  Access <b>denied</b></p>",
                "Access",
            ),
            ("<html><body><h1>\u{c4}rger \u{130}</h1>", "\u{c4}rger \u{130}"),
            ("<html><script>never ends", ""),
            ("<script", ""),
            ("<", ""),
            // JSON of MCP servers, API gateways and OAuth
            (
                r#"{"jsonrpc":"2.0","error":{"code":-32000,"message":"Invalid Host header: x"},"id":null}"#,
                "Invalid Host header: x",
            ),
            (r#"{"error":"invalid_token","error_description":"The token expired"}"#, "The token expired"),
            (r#"{"error":"invalid_token"}"#, "invalid_token"),
            (r#"{"message":"Forbidden"}"#, "Forbidden"),
            (r#"{"type":"about:blank","title":"Forbidden","status":403,"detail":"no role"}"#, "no role"),
            (r#"{"errors":[{"code":1,"message":"blocked"}]}"#, "blocked"),
            (r#"{"message":"","error":"x"}"#, "x"),
            (r#"{"code":403}"#, r#"{"code":403}"#),
            (r#"{"cut": "#, r#"{"cut":"#),
            ("\u{1f}\u{fffd}\u{8}\0", ""),
        ] {
            assert_eq!(body_message(body), expected, "{body:?}");
        }
    }
}
