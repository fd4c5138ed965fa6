//! The `structuredContent` of tool results for agents of the legacy era.

use std::borrow::Cow;

use memchr::memmem;
use serde_json::value::RawValue;

use crate::wire::{JsonEdit, json_string, parse_members};

/// Leaves out `structuredContent` that is no object, which legacy agents do not accept. If the result has no text, the
/// value is its text, as the specification says (SEP-2106).
pub(super) fn with_structured_object(result: &[u8]) -> Cow<'_, [u8]> {
    const KEY: &[u8] = br#""structuredContent""#;
    // Nearly all results have an object there, or nothing, and need no parsing.
    let is_object = |position: usize| {
        let value =
            result.get(position + KEY.len()..).unwrap_or_default().trim_ascii_start().strip_prefix(b":");
        value.is_some_and(|value| value.trim_ascii_start().starts_with(b"{"))
    };
    if memmem::find_iter(result, KEY).all(is_object) {
        return Cow::Borrowed(result);
    }
    let Some(members) = std::str::from_utf8(result).ok().and_then(|text| parse_members(text).ok()) else {
        return Cow::Borrowed(result);
    };
    let Some(value) = members.get("structuredContent").filter(|value| !value.get().starts_with('{')) else {
        return Cow::Borrowed(result);
    };
    let content = members.get("content").map_or("[]", RawValue::get);
    let blocks: Vec<&RawValue> = serde_json::from_str(content).unwrap_or_default();
    let is_text = |block: &&RawValue| {
        parse_members(block.get())
            .is_ok_and(|block| block.get_string("type").is_some_and(|kind| kind == "text"))
    };
    let mut edits = vec![JsonEdit::Remove("structuredContent")];
    let text = format!(r#"{{"type":"text","text":{}}}"#, json_string(value.get()));
    let content = blocks.iter().map(|block| block.get()).chain([&*text]).collect::<Vec<_>>().join(",");
    let content = format!("[{content}]");
    if !blocks.iter().any(is_text) {
        edits.push(JsonEdit::Set("content", &content));
    }
    Cow::Owned(members.rewrite(&edits).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn structured_content_of_legacy_agents_is_an_object() {
        let text = |text: &str| format!(r#"{{"type":"text","text":{}}}"#, json_string(text));
        for (raw, expected) in [
            (r#"{"content":[],"structuredContent": {"a":[1]}}"#.to_owned(), None),
            (r#"{"content":[{"type":"text","text":"\"structuredContent\":5"}]}"#.to_owned(), None),
            (r#"{"content":[],"_meta":{"structuredContent":5}}"#.to_owned(), None),
            (
                r#"{"content":[],"structuredContent":[1,"x"],"isError":false}"#.to_owned(),
                Some(format!(r#"{{"content":[{}],"isError":false}}"#, text(r#"[1,"x"]"#))),
            ),
            (
                r#"{"structuredContent" : null}"#.to_owned(),
                Some(format!(r#"{{"content":[{}]}}"#, text("null"))),
            ),
            (
                format!(r#"{{"content":[{}],"structuredContent":7}}"#, text("seven")),
                Some(format!(r#"{{"content":[{}]}}"#, text("seven"))),
            ),
        ] {
            let adapted = String::from_utf8(with_structured_object(raw.as_bytes()).into_owned()).unwrap();
            assert_eq!(adapted, expected.unwrap_or(raw));
        }
    }
}
