//! Edits members of a JSON object without parsing the other values.

use std::borrow::Cow;
use std::fmt;

use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;

/// The members of a JSON object in order, each with its decoded key and raw value. Duplicate keys are kept.
#[derive(Debug, Default)]
pub struct Members<'a>(Vec<Member<'a>>);

/// A decoded key and its raw value.
pub type Member<'a> = (Cow<'a, str>, &'a RawValue);

/// Parses the members of a JSON object. Rejects values nested deeper than `serde_json`'s limit.
///
/// ```
/// use evenkeel::wire::{JsonEdit, parse_members};
///
/// let params = parse_members(r#"{"name":"github_search","arguments":{"n":1.0e+2}}"#)?;
/// assert_eq!(params.get_string("name").as_deref(), Some("github_search"));
/// let forwarded = params.rewrite(&[JsonEdit::Set("name", r#""search""#)]);
/// assert_eq!(forwarded, r#"{"name":"search","arguments":{"n":1.0e+2}}"#);
/// # Ok::<(), serde_json::Error>(())
/// ```
pub fn parse_members(object: &str) -> Result<Members<'_>, serde_json::Error> {
    serde_json::from_str(object)
}

impl<'a> Members<'a> {
    /// Returns the value of a member. Of duplicates the last counts, as in most parsers.
    pub fn get(&self, key: &str) -> Option<&'a RawValue> {
        self.0.iter().rev().find(|(found, _)| found == key).map(|(_, value)| *value)
    }

    /// Returns the decoded value of a member if it is a string.
    pub fn get_string(&self, key: &str) -> Option<Cow<'a, str>> {
        self.get(key).and_then(decode_json_string)
    }

    /// Returns all members in order.
    pub fn iter(&self) -> std::slice::Iter<'_, Member<'a>> {
        self.0.iter()
    }

    /// Returns the object with the edits applied. All other members keep their bytes and position.
    pub fn rewrite(&self, edits: &[JsonEdit<'_>]) -> String {
        let edits = edits.iter().copied();
        let mut object = String::with_capacity(self.max_len(edits.clone()));
        self.rewrite_into(edits, &mut object);
        object
    }

    /// Returns an upper bound of the object's length with the edits, not counting escapes in keys.
    pub(super) fn max_len<'e>(&self, edits: impl Iterator<Item = JsonEdit<'e>>) -> usize {
        let old = self.0.iter().map(|(key, value)| key.len() + value.get().len() + 4);
        old.chain(edits.map(|edit| edit.max_added_len())).sum::<usize>() + 2
    }

    /// Appends the result of [`Self::rewrite`] to `text`.
    pub(super) fn rewrite_into<'e>(
        &self,
        edits: impl Iterator<Item = JsonEdit<'e>> + Clone,
        text: &mut String,
    ) {
        text.push('{');
        let mut first = true;
        let mut push = |key, value| {
            if !std::mem::take(&mut first) {
                text.push(',');
            }
            push_json_string(key, text);
            text.push(':');
            text.push_str(value);
        };
        for (key, value) in &self.0 {
            match edits.clone().find(|edit| edit.key() == key) {
                Some(JsonEdit::Remove(_)) => {}
                Some(JsonEdit::Set(_, value)) => push(key, value),
                None => push(key, value.get()),
            }
        }
        for edit in edits {
            if let JsonEdit::Set(key, value) = edit
                && self.get(key).is_none()
            {
                push(key, value);
            }
        }
        text.push('}');
    }
}

impl<'m, 'a> IntoIterator for &'m Members<'a> {
    type Item = &'m Member<'a>;
    type IntoIter = std::slice::Iter<'m, Member<'a>>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

/// The `params` of a request: the members, and those of `_meta` if that is an object.
#[derive(Debug, Default)]
pub struct RequestParams<'a> {
    /// All members.
    pub members: Members<'a>,
    /// The members of `_meta`.
    pub meta: Option<Members<'a>>,
}

impl<'a> RequestParams<'a> {
    /// Parses a JSON object.
    pub fn parse(object: &'a str) -> Result<Self, serde_json::Error> {
        let params = parse_members(object)?;
        let meta = params.get("_meta").and_then(|meta| parse_members(meta.get()).ok());
        Ok(Self { members: params, meta })
    }
}

/// One edit of a JSON object.
#[derive(Clone, Copy, Debug)]
pub enum JsonEdit<'a> {
    /// Sets a member to a JSON text: in place if it exists, else at the end.
    Set(&'a str, &'a str),
    /// Removes a member.
    Remove(&'a str),
}

impl JsonEdit<'_> {
    fn key(&self) -> &str {
        match self {
            Self::Set(key, _) | Self::Remove(key) => key,
        }
    }

    /// Returns an upper bound of the length that the edit adds to an object.
    fn max_added_len(&self) -> usize {
        match self {
            Self::Set(key, value) => key.len() + value.len() + 4,
            Self::Remove(_) => 0,
        }
    }
}

/// Parses an object and returns it with the edits applied. All other members keep their bytes and position.
pub fn rewrite(object: &str, edits: &[JsonEdit<'_>]) -> Result<String, serde_json::Error> {
    Ok(parse_members(object)?.rewrite(edits))
}

/// Decodes a JSON string; `None` if the value is not a string.
pub fn decode_json_string(raw: &RawValue) -> Option<Cow<'_, str>> {
    let inner = raw.get().strip_prefix('"')?.strip_suffix('"')?;
    if inner.contains('\\') {
        return serde_json::from_str(raw.get()).ok().map(Cow::Owned);
    }
    Some(Cow::Borrowed(inner))
}

/// Encodes a text as a JSON string.
pub fn json_string(text: &str) -> String {
    let mut json = String::with_capacity(text.len() + 2);
    push_json_string(text, &mut json);
    json
}

/// Appends the result of [`json_string`] to `json`.
pub fn push_json_string(text: &str, json: &mut String) {
    if text.bytes().all(|byte| matches!(byte, b' '..=b'~') && byte != b'"' && byte != b'\\') {
        json.push('"');
        json.push_str(text);
        json.push('"');
    } else {
        json.push_str(&serde_json::Value::from(text).to_string());
    }
}

/// A member key, borrowed if it contains no escapes.
#[derive(serde::Deserialize)]
struct Key<'a>(#[serde(borrow)] Cow<'a, str>);

impl<'de: 'a, 'a> Deserialize<'de> for Members<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct MembersVisitor;
        impl<'de> Visitor<'de> for MembersVisitor {
            type Value = Members<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Members<'de>, A::Error> {
                let mut members = Vec::with_capacity(8);
                while let Some((Key(key), value)) = map.next_entry::<Key<'de>, &'de RawValue>()? {
                    members.push((key, value));
                }
                Ok(Members(members))
            }
        }
        deserializer.deserialize_map(MembersVisitor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rewrite_changes_one_member_and_keeps_the_others_verbatim() {
        let object = r#"{ "name" : "a", "n": 1.0e+2, "x":{"name":"a"} , "u\u0041":"\u00e9" }"#;
        assert_eq!(
            rewrite(object, &[JsonEdit::Set("name", "\"b\""), JsonEdit::Set("new", "[]")]).unwrap(),
            r#"{"name":"b","n":1.0e+2,"x":{"name":"a"},"uA":"\u00e9","new":[]}"#
        );
        assert_eq!(rewrite(r#"{"a":1,"b":2}"#, &[JsonEdit::Remove("a")]).unwrap(), r#"{"b":2}"#);
        assert_eq!(rewrite("{}", &[JsonEdit::Remove("a")]).unwrap(), "{}");
    }

    #[test]
    fn rewrite_changes_every_occurrence_of_a_duplicate_key() {
        assert_eq!(rewrite(r#"{"a":1,"a":2}"#, &[JsonEdit::Set("a", "3")]).unwrap(), r#"{"a":3,"a":3}"#);
    }

    #[test]
    fn get_returns_the_last_of_duplicate_keys() {
        let found = parse_members(r#"{"a":"1","b":2,"\u0061":"\u0032"}"#).unwrap();
        assert_eq!(
            (found.get_string("a").as_deref(), found.get_string("b"), found.get_string("c")),
            (Some("2"), None, None)
        );
        assert_eq!(found.get("b").map(RawValue::get), Some("2"));
    }

    #[test]
    fn json_string_escapes_text() {
        assert_eq!(json_string("a\"b\\c\nd€"), r#""a\"b\\c\nd€""#);
    }

    #[test]
    fn members_rejects_non_objects() {
        for text in ["", "[]", "1", "{", "{}x", r#"{"a"}"#] {
            assert!(parse_members(text).is_err(), "{text}");
        }
    }
}
