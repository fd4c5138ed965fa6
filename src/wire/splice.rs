//! Changing a member of a JSON object without reading the rest.

use std::borrow::Cow;
use std::fmt;

use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;

/// The members of a JSON object in order, each with its decoded key and raw value.
///
/// A key that stands twice is given twice. Values nested deeper than `serde_json`'s limit are refused.
pub fn members(object: &str) -> Result<Vec<Member<'_>>, serde_json::Error> {
    serde_json::from_str::<Collected<'_>>(object).map(|members| members.0)
}

/// A decoded key and its raw value.
pub type Member<'a> = (Cow<'a, str>, &'a RawValue);

/// The members of an object, in order.
pub type Members<'a> = [Member<'a>];

/// One change to an object.
#[derive(Clone, Copy, Debug)]
pub enum Edit<'a> {
    /// Sets a member to this JSON text: in place if it is there, else at the end.
    Set(&'a str, &'a str),
    /// Takes a member out.
    Remove(&'a str),
}

impl Edit<'_> {
    fn key(&self) -> &str {
        match self {
            Self::Set(key, _) | Self::Remove(key) => key,
        }
    }
}

/// The object with the edits applied; every other member keeps its bytes and its place.
pub fn rewrite(object: &str, edits: &[Edit<'_>]) -> Result<String, serde_json::Error> {
    rewrite_members(&members(object)?, edits)
}

/// [`rewrite`] for an object whose members are known already.
pub fn rewrite_members(members: &Members<'_>, edits: &[Edit<'_>]) -> Result<String, serde_json::Error> {
    let len: usize = members.iter().map(|(key, value)| key.len() + value.get().len() + 4).sum();
    let mut text = String::with_capacity(len + 64);
    text.push('{');
    for (key, value) in members {
        match edits.iter().find(|edit| edit.key() == key) {
            Some(Edit::Remove(_)) => {}
            Some(Edit::Set(_, value)) => push(&mut text, key, value)?,
            None => push(&mut text, key, value.get())?,
        }
    }
    for edit in edits {
        if let Edit::Set(key, value) = edit
            && !members.iter().any(|(found, _)| found == key)
        {
            push(&mut text, key, value)?;
        }
    }
    text.push('}');
    Ok(text)
}

fn push(text: &mut String, key: &str, value: &str) -> Result<(), serde_json::Error> {
    if text.len() > 1 {
        text.push(',');
    }
    text.push_str(&serde_json::to_string(key)?);
    text.push(':');
    text.push_str(value);
    Ok(())
}

struct Collected<'a>(Vec<Member<'a>>);

/// A key, borrowed where it holds no escapes.
#[derive(serde::Deserialize)]
struct Key<'a>(#[serde(borrow)] Cow<'a, str>);

impl<'de: 'a, 'a> Deserialize<'de> for Collected<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Collect;
        impl<'de> Visitor<'de> for Collect {
            type Value = Collected<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Collected<'de>, A::Error> {
                let mut members = Vec::with_capacity(8);
                while let Some((Key(key), value)) = map.next_entry::<Key<'de>, &'de RawValue>()? {
                    members.push((key, value));
                }
                Ok(Collected(members))
            }
        }
        deserializer.deserialize_map(Collect)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changes_one_member_and_keeps_the_rest_byte_for_byte() {
        let object = r#"{ "name" : "a", "n": 1.0e+2, "x":{"name":"a"} , "u\u0041":"\u00e9" }"#;
        assert_eq!(
            rewrite(object, &[Edit::Set("name", "\"b\""), Edit::Set("new", "[]")]).unwrap(),
            r#"{"name":"b","n":1.0e+2,"x":{"name":"a"},"uA":"\u00e9","new":[]}"#
        );
        assert_eq!(rewrite(r#"{"a":1,"b":2}"#, &[Edit::Remove("a")]).unwrap(), r#"{"b":2}"#);
        assert_eq!(rewrite("{}", &[Edit::Remove("a")]).unwrap(), "{}");
    }

    #[test]
    fn a_doubled_member_is_changed_in_both_places() {
        assert_eq!(rewrite(r#"{"a":1,"a":2}"#, &[Edit::Set("a", "3")]).unwrap(), r#"{"a":3,"a":3}"#);
    }

    #[test]
    fn refuses_what_is_not_an_object() {
        for text in ["", "[]", "1", "{", "{}x", r#"{"a"}"#] {
            assert!(members(text).is_err(), "{text}");
        }
    }
}
