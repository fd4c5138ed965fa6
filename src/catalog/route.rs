//! One item on its way to agents: where a request for it goes, and its entry in a list.

use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;

use super::names::Identity;
use super::{Item, Section};
use crate::wire::{Edit, List, members, rewrite};

/// Where an item leads: its server, and what the server calls it.
#[derive(Debug)]
pub struct Route {
    section: Arc<Section>,
    name: String,
    /// The item's JSON with its name in it once, shared with the section where that is possible.
    raw: Bytes,
    /// Where the name stands in it.
    at: Range<usize>,
}

impl Route {
    /// The route of an item; `None` if what the server wrote is not a JSON object.
    pub(super) fn new(section: &Arc<Section>, list: List, item: &Item) -> Option<Self> {
        let (raw, at) = located(&item.raw, list.key(), &item.name)?;
        Some(Self { section: section.clone(), name: item.name.clone(), raw, at })
    }

    /// The server's section: its key, who answers, its limits.
    pub fn section(&self) -> &Arc<Section> {
        &self.section
    }

    /// The server's own name of the item, or its URI.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The same as JSON text.
    pub fn name_json(&self) -> &str {
        self.text(self.at.clone())
    }

    /// Appends the item's JSON under the name that agents know, every other byte as its server wrote it.
    pub(super) fn list_as(&self, name: &str, list: &mut String) {
        list.push_str(self.text(0..self.at.start));
        push_json_string(name, list);
        list.push_str(self.text(self.at.end..self.raw.len()));
    }

    /// True if both are listed with the same bytes under the same name.
    pub(super) fn lists_like(&self, other: &Self) -> bool {
        self.raw == other.raw
    }

    pub(super) fn identity(&self) -> Identity<'_> {
        Identity { server: &self.section.key, name: &self.name }
    }

    fn text(&self, range: Range<usize>) -> &str {
        // The bytes were read as JSON and the range stands at its tokens, so this never falls back.
        let bytes = self.raw.get(range).unwrap_or_default();
        std::str::from_utf8(bytes).unwrap_or_default()
    }
}

/// The JSON with exactly one member that holds the name, and where its value stands.
fn located(raw: &Bytes, member: &str, name: &str) -> Option<(Bytes, Range<usize>)> {
    let text = std::str::from_utf8(raw).ok()?;
    let members = members(text).ok()?;
    let mut names = members.iter().filter(|(key, _)| key == member);
    if let (Some((_, value)), None) = (names.next(), names.next()) {
        let value = value.get();
        let start = value.as_ptr().addr() - text.as_ptr().addr();
        return Some((raw.clone(), start..start + value.len()));
    }
    // A name that stands twice would be read differently by different agents.
    let rest = rewrite(text, &[Edit::Remove(member)]).ok()?;
    let mut json = format!(r#"{{"{member}":"#);
    let start = json.len();
    push_json_string(name, &mut json);
    let end = json.len();
    if rest.len() > 2 {
        json.push(',');
    }
    json.push_str(rest.strip_prefix('{')?);
    Some((json.into(), start..end))
}

fn push_json_string(text: &str, json: &mut String) {
    if text.bytes().all(|byte| matches!(byte, b' '..=b'~') && byte != b'"' && byte != b'\\') {
        json.push('"');
        json.push_str(text);
        json.push('"');
    } else {
        json.push_str(&serde_json::Value::from(text).to_string());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalog::testing::section;

    #[test]
    fn only_the_name_changes() {
        for (raw, own, expected) in [
            (r#"{"name":"a","x":1}"#, r#""a""#, r#"{"name":"N","x":1}"#),
            (
                r#" { "x" : {"name":"a"} , "na\u006de" : "\u0061" , "y":1.0e+2 } "#,
                r#""\u0061""#,
                r#" { "x" : {"name":"a"} , "na\u006de" : "N" , "y":1.0e+2 } "#,
            ),
            (r#"{"name":"b","x":[],"name":"a"}"#, r#""a""#, r#"{"name":"N","x":[]}"#),
            (r"{}", r#""a""#, r#"{"name":"N"}"#),
        ] {
            let section = Arc::new(section("default", "s", "s", &[]));
            let tool = Item { name: "a".into(), raw: raw.into() };
            let route = Route::new(&section, List::Tools, &tool).unwrap();
            let mut list = String::new();
            route.list_as("N", &mut list);
            assert_eq!(list, expected);
            assert_eq!(route.name_json(), own);
        }
    }

    #[test]
    fn a_name_is_written_as_json() {
        let mut json = String::new();
        push_json_string("a\"b\\c\nd€", &mut json);
        assert_eq!(json, r#""a\"b\\c\nd€""#);
    }
}
