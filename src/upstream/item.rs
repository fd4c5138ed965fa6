use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use crate::wire::{JsonEdit, ListKind, parse_members};

/// One item of a server's list, parsed once and shared by lists and routes.
#[derive(Clone, PartialEq, Eq)]
pub struct Item {
    name: Arc<str>,
    raw: Arc<str>,
    /// The range of the name's JSON in `raw`.
    name_range: Range<usize>,
}

/// The maximum nesting depth of an item. Many JSON parsers reject deeper nesting, some at 128 levels, so one such item
/// could make the merged list unreadable for an agent.
const MAX_JSON_DEPTH: usize = 100;

impl Item {
    /// Parses an entry of a server's list. The error says why it cannot be exposed.
    ///
    /// If the name member occurs more than once, only the last one is kept, because agents would interpret duplicates
    /// differently.
    pub fn parse(list: ListKind, entry: &str) -> Result<Self, &'static str> {
        if exceeds_max_depth(entry) {
            return Err("it is nested more than 100 levels deep");
        }
        Self::with_single_name(list.item_key(), entry).ok_or("it has no name")
    }

    fn with_single_name(key: &str, entry: &str) -> Option<Self> {
        let members = parse_members(entry).ok()?;
        let mut names = members.iter().filter(|(member, _)| member == key).map(|(_, name)| name.get());
        let name_json = names.next_back()?;
        let name = serde_json::from_str(name_json).ok()?;
        if names.next().is_none() {
            let start = name_json.as_ptr().addr() - entry.as_ptr().addr();
            return Some(Self { name, raw: entry.into(), name_range: start..start + name_json.len() });
        }
        let other_members = members.rewrite(&[JsonEdit::Remove(key)]);
        let mut json = format!(r#"{{"{key}":{name_json}"#);
        let name_range = json.len() - name_json.len()..json.len();
        if other_members.len() > 2 {
            json.push(',');
        }
        json.push_str(other_members.strip_prefix('{')?);
        Some(Self { name, raw: json.into(), name_range })
    }

    /// Returns the name that the server uses, or the URI or URI template.
    pub fn name(&self) -> &Arc<str> {
        &self.name
    }

    /// Returns the name as JSON text, as the server wrote it.
    pub fn name_json(&self) -> &str {
        self.raw.get(self.name_range.clone()).unwrap_or_default()
    }

    /// Returns the whole item as the server wrote it: a JSON object with exactly one name member.
    pub fn raw(&self) -> &str {
        &self.raw
    }

    /// Returns the JSON text before and after the name.
    pub fn around_name(&self) -> (&str, &str) {
        let part = |range| self.raw.get(range).unwrap_or_default();
        (part(0..self.name_range.start), part(self.name_range.end..self.raw.len()))
    }
}

fn exceeds_max_depth(json: &str) -> bool {
    let (mut depth, mut quoted, mut escaped) = (0_usize, false, false);
    for byte in json.bytes() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' => escaped = quoted,
            b'"' => quoted = !quoted,
            _ if quoted => {}
            b'{' | b'[' => depth += 1,
            b'}' | b']' => depth = depth.saturating_sub(1),
            _ => {}
        }
        if depth > MAX_JSON_DEPTH {
            return true;
        }
    }
    false
}

impl fmt::Debug for Item {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entry_without_a_name_is_rejected() {
        let name = |entry: &str| Item::parse(ListKind::Tools, entry).ok().map(|item| item.name().to_string());
        for entry in ["{}", "[]", r#"{"name":1}"#, r#"{"title":"a"}"#, r#"{"name":"a""#] {
            assert_eq!(name(entry), None, "{entry}");
        }
        assert_eq!(name(r#"{"x":{"name":"b"},"name":"\u0061"}"#).as_deref(), Some("a"));
        assert_eq!(name(r#"{"name":"b","x":1,"name":"a"}"#).as_deref(), Some("a"));
    }

    #[test]
    fn too_deeply_nested_entry_is_rejected() {
        let nested = |levels: usize| {
            let (open, close) = ("[".repeat(levels), "]".repeat(levels));
            format!(r#"{{"name":"a","say":"\"[[{open}","schema":{open}{close}}}"#)
        };
        assert!(Item::parse(ListKind::Tools, &nested(99)).is_ok());
        assert!(Item::parse(ListKind::Tools, &nested(100)).unwrap_err().contains("100 levels"));
        assert!(Item::parse(ListKind::Tools, &nested(50_000)).is_err());
    }
}
