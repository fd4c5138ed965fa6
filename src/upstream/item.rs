use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use crate::wire::{JsonEdit, ListKind, members};

/// One item of a list, read once: whoever lists it or routes to it shares this.
#[derive(Clone, PartialEq, Eq)]
pub struct Item {
    name: Arc<str>,
    raw: Arc<str>,
    /// Where the name's JSON stands in it.
    name_range: Range<usize>,
}

/// Many parsers give up on JSON that is nested more deeply, some at 128 levels; one such item would cost an agent the
/// list of all servers.
const MAX_JSON_DEPTH: usize = 100;

impl Item {
    /// An entry of a server's list; or why it cannot be one of ours.
    ///
    /// Of a name that stands twice the last counts, and the other goes: agents would not all read the same.
    pub fn parse(list: ListKind, entry: &str) -> Result<Self, &'static str> {
        if exceeds_max_depth(entry) {
            return Err("it is nested more than 100 levels deep");
        }
        Self::with_single_name(list.item_key(), entry).ok_or("it has no name")
    }

    fn with_single_name(key: &str, entry: &str) -> Option<Self> {
        let members = members(entry).ok()?;
        let mut names = members.iter().filter(|(found, _)| found == key).map(|(_, name)| name.get());
        let name_json = names.next_back()?;
        let name = serde_json::from_str(name_json).ok()?;
        if names.next().is_none() {
            let start = name_json.as_ptr().addr() - entry.as_ptr().addr();
            return Some(Self { name, raw: entry.into(), name_range: start..start + name_json.len() });
        }
        let rest = members.rewrite(&[JsonEdit::Remove(key)]);
        let mut json = format!(r#"{{"{key}":{name_json}"#);
        let at = json.len() - name_json.len()..json.len();
        if rest.len() > 2 {
            json.push(',');
        }
        json.push_str(rest.strip_prefix('{')?);
        Some(Self { name, raw: json.into(), name_range: at })
    }

    /// The server's own name for it, or its URI or URI template.
    pub fn name(&self) -> &Arc<str> {
        &self.name
    }

    /// The same as JSON text, as the server wrote it.
    pub fn name_json(&self) -> &str {
        self.raw.get(self.name_range.clone()).unwrap_or_default()
    }

    /// The whole item as the server wrote it, a JSON object with its name in it once.
    pub fn raw(&self) -> &str {
        &self.raw
    }

    /// Gives what stands before and after the name's JSON.
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
