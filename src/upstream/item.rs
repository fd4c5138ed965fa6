use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use crate::wire::{Era, JsonEdit, ListKind, ParamHeaders, parse_members};

/// One item of a server's list, parsed once and shared by lists and routes.
#[derive(Clone, PartialEq, Eq)]
pub struct Item {
    name: Arc<str>,
    raw: Arc<str>,
    /// The range of the name's JSON in `raw`.
    name_range: Range<usize>,
    /// The form for agents of the legacy era, if it differs.
    legacy: Option<Box<Item>>,
    /// The arguments that modern agents also send as headers, if it is a tool that has any.
    param_headers: Option<Arc<ParamHeaders>>,
}

impl Item {
    /// Parses an entry whose members are known to be well-formed; [`read_item`](super::read_item) parses one of a
    /// server. The error says why it cannot be exposed.
    ///
    /// If the name member occurs more than once, only the last one is kept, because agents would interpret duplicates
    /// differently.
    pub fn parse(list: ListKind, entry: &str) -> Result<Self, &'static str> {
        let mut item = Self::with_single_name(list.item_key(), entry).ok_or("it has no name")?;
        if list == ListKind::Tools {
            // Agents do not use a tool whose annotations are invalid, or use it without headers.
            let headers = ParamHeaders::from_tool(item.raw.as_bytes()).unwrap_or_default();
            item.param_headers = (!headers.is_empty()).then(|| Arc::new(headers));
        }
        Ok(item)
    }

    /// Sets the JSON that agents of the legacy era get in place of this item's.
    pub(super) fn with_legacy_form(self, list: ListKind, entry: &str) -> Result<Self, &'static str> {
        Ok(Self { legacy: Some(Box::new(Self::parse(list, entry)?)), ..self })
    }

    /// Returns the form of this item for agents of an era.
    pub fn for_era(&self, era: Era) -> &Self {
        self.legacy.as_deref().filter(|_| era == Era::Legacy).unwrap_or(self)
    }

    fn with_single_name(key: &str, entry: &str) -> Option<Self> {
        let members = parse_members(entry).ok()?;
        let mut names = members.iter().filter(|(member, _)| member == key).map(|(_, name)| name.get());
        let name_json = names.next_back()?;
        let name = serde_json::from_str(name_json).ok()?;
        if names.next().is_none() {
            let start = name_json.as_ptr().addr() - entry.as_ptr().addr();
            let name_range = start..start + name_json.len();
            return Some(Self { name, raw: entry.into(), name_range, legacy: None, param_headers: None });
        }
        let other_members = members.rewrite(&[JsonEdit::Remove(key)]);
        let mut json = format!(r#"{{"{key}":{name_json}"#);
        let name_range = json.len() - name_json.len()..json.len();
        if other_members.len() > 2 {
            json.push(',');
        }
        json.push_str(other_members.strip_prefix('{')?);
        Some(Self { name, raw: json.into(), name_range, legacy: None, param_headers: None })
    }

    /// Returns the arguments of a tool that modern agents also send as headers.
    pub fn param_headers(&self) -> Option<&ParamHeaders> {
        self.param_headers.as_deref()
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
}
